"""DyCoke (KD-TAO/DyCoke): what stays before the decoder, and what a decode step reads."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.dycoke_cache import CacheState, choose
from vidllm.compressors.shared.kernels import row_cosine
from vidllm.errors import InputError


def select(
    features: Tensor, num_tokens_per_frame: int, merging_ratio: float, faithful: bool = False
) -> Tensor:
    """The tokens that DyCoke keeps of one clip before the decoder; nothing is averaged.

    In every four frames the first stays whole. The second and third are compared with it and
    the fourth with the third (as it was), cell by cell, and keep the int((1 - merging_ratio) n)
    tokens of lowest cosine.

    Args:
        features: (T * n, D) or (T, n, D), frame by frame. num_tokens_per_frame: n.
        merging_ratio: share removed of a thinned frame, in [0, 1].
        faithful: as the published code, with its defects: an odd last frame is lost; where T is
            a multiple of 4 the third frame of the last group stays whole, because a loop ends
            too early; 4 frames or fewer fail; the tokens of a thinned frame stand by rising
            cosine; a count of 0 empties every thinned frame; tokens beyond the last whole frame
            are ignored. By default none of these: every frame keeps at least one token, any T
            works, and tokens stand in raster order.

    Returns:
        (k,) indices into T * n, frame by frame, on the CPU. Equal cosines: the earlier token.

    Raises:
        InputError: wrong options or shapes; with `faithful` 4 frames or fewer.
    """
    x, n = features.reshape(-1, features.shape[-1]), num_tokens_per_frame
    if not 0 <= merging_ratio <= 1:
        raise InputError(f"dycoke: merging_ratio must be in [0, 1], not {merging_ratio}")
    if n < 1 or x.shape[0] < n or (x.shape[0] % n and not faithful):
        raise InputError(f"dycoke: {x.shape[0]} tokens are no frames of {n}")
    frames, kept = x.shape[0] // n, int((1 - merging_ratio) * n)
    third = {t for t in range(frames) if t % 4 == 2}
    if faithful:
        if frames <= 4:
            raise InputError("dycoke: the published code needs more than 4 frames")
        third = {t + 2 for t in range(0, frames - 4, 4)}
        frames -= frames % 2
    else:
        kept = max(1, kept)
    index = []
    for t in range(frames):
        own = torch.arange(t * n, (t + 1) * n)
        if t % 2 or t in third:
            alike = row_cosine(x, own, own - (t - _reference(t)) * n).cpu()
            chosen = alike.argsort(stable=True)[:kept]
            own = own[chosen if faithful else chosen.sort().values]
        index.append(own)
    return torch.cat(index)


def _reference(frame: int) -> int:
    """The frame to compare with: the lowest set bit cleared (1 and 2 with 0, 3 with 2, ...)."""
    return frame & (frame - 1)


def select_cache(
    attn: Tensor,
    image_start: int,
    image_len: int,
    prune_ratio: float,
    state: CacheState | None = None,
    threshold: float = 0.9,
    faithful: bool = False,
) -> tuple[Tensor | None, CacheState]:
    """The cache entries that the layers from L on read at one decode step.

    The choice is made anew where the attention to the video has moved since the step before:
    a cosine below `threshold`. All text stays.

    Args:
        attn: (heads, length) attention of the one new token in the layer before L (3 in the
            published code), softmaxed, over all cache entries.
        image_start, image_len: the video's entries in the cache.
        prune_ratio: share of them removed, in [0, 1]; int(image_len * (1 - prune_ratio)) stay.
        state: what the last step of the same answer returned.
        faithful: as the published code, where a step whose attention has not moved reads the
            full cache, so that the calm steps save nothing. By default it reads the video
            entries chosen last. (The published code also carries its state over to the next
            answer; here a caller passes None.)

    Returns:
        kept (k,) ascending on the device of `attn`, or None for the full cache; the new state.

    Raises:
        InputError: wrong options, attention that is not finite, or a span that does not fit
            `attn` or `state`.
    """
    length = attn.shape[-1]
    if not 0 <= prune_ratio <= 1:
        raise InputError(f"dycoke: prune_ratio must be in [0, 1], not {prune_ratio}")
    if attn.dim() != 2 or image_start < 0 or image_len < 1 or image_start + image_len > length:
        raise InputError(
            f"dycoke: {image_len} video entries from {image_start} do not fit attention "
            f"{tuple(attn.shape)}"
        )
    stop = image_start + image_len
    video = attn.detach().float().mean(dim=0)[image_start:stop]
    moved, state = choose(video, int(image_len * (1 - prune_ratio)), state, threshold)
    kept = None
    if state.chosen is not None and (moved or not faithful):
        text = torch.arange(length, device=attn.device)
        kept = torch.cat([text[:image_start], image_start + state.chosen, text[stop:]])
    return kept, state
