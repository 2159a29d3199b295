"""DyCoke: frames in groups, of which only the first stays whole (arXiv 2411.15024).

`select` is the temporal "merging" of the published code and `DyCoke` the method on `VideoTokens`.
What it does while answering (`select_cache`) is in `dycoke_cache`; "dycoke,dycoke-cache" is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .dycoke_cache import CacheState, select_cache
from .evs import row_cosine
from .registry import register
from .shared.segments import present_frames, share

__all__ = ["CacheState", "DyCoke", "allocate", "select", "select_cache"]


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


def allocate(sizes: Sequence[int], budget: int, group: int) -> list[int]:
    """How many tokens every frame keeps; the sum is `budget`, which is below the sum of `sizes`.

    The first frame of every group stays whole and the others share what is left, each at least
    one token and the first ones one more. While the budget does not hold that, groups double;
    when even one group is too much all frames share alike, and with fewer tokens than frames
    evenly spaced frames keep one each.
    """
    frames = len(sizes)
    if budget < frames:
        spread = {(2 * i + 1) * frames // (2 * budget) for i in range(budget)}
        return [int(t in spread) for t in range(frames)]
    while True:
        others = [size for t, size in enumerate(sizes) if t % group]
        left = budget - (sum(sizes) - sum(others))
        if left >= len(others):
            shares = iter(share(left, others))
            return [next(shares) if t % group else size for t, size in enumerate(sizes)]
        if group >= frames:
            return share(budget, sizes)
        group *= 2


@register("dycoke")
@dataclass
class DyCoke(Compressor):
    """Keep one frame of a group whole and of the others the tokens least like it (DyCoke, TTM).

    Frame i of a group is compared, cell by cell, with frame i minus its lowest bit: 1 and 2 with
    0, and 3 with 2, as the published groups of four do. Groups follow the frames that still have
    tokens, and a token whose cell is missing in the other frame counts as new and stays first.

    The published method has a fixed share for the thinned frames (`select` gives it). Here the
    budget decides: whole frames first, the rest shared by the thinned ones. A budget that does
    not hold the whole frames and one token of each other doubles the groups until it does; below
    that all frames are thinned alike, the first one evenly, as nothing stands before it. A budget
    below the number of frames keeps one token in each of evenly spaced frames.

    The defects of the published code are corrected: an odd last frame stays, the last group is
    thinned as the others, four frames or fewer work. `select(..., faithful=True)` has them.

    Attributes:
        group: frames a group, a power of two from 2 up; only the first of them is whole.
    """

    group: int = field(default=4, metadata={"help": "frames of which one stays whole"})

    paper = "DyCoke, arXiv 2411.15024"
    summary = "one frame of a group stays whole, the others keep what is new"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2 or self.group & (self.group - 1):
            raise InputError(f"dycoke: group must be a power of two from 2 up, not {self.group}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Share the budget between the frames, then keep the least similar of each."""
        order, _, counts = present_frames(tokens)
        sizes: list[int] = counts.tolist()
        goals = allocate(sizes, budget, self.group)
        rank = torch.arange(len(sizes)).repeat_interleave(counts)
        alike = _similarity(tokens, order, rank, len(sizes))
        index = []
        for t, (own, part) in enumerate(zip(order.split(sizes), alike.split(sizes), strict=True)):
            goal, size = goals[t], sizes[t]
            if t == 0:
                index.append(own[(2 * torch.arange(goal) + 1) * size // (2 * max(1, goal))])
            else:
                index.append(own[part.argsort(stable=True)[:goal]])
        return Keep(torch.cat(index).sort().values)


def _similarity(tokens: VideoTokens, order: Tensor, rank: Tensor, frames: int) -> Tensor:
    """(L,) cosine of the tokens in `order` with their cell in the frame to compare with.

    `rank` (L,) is the frame of each among those present; -2 where there is no such cell.
    """
    _, rows, columns = tokens.grid
    slot = (tokens.cell[:, 0] * columns + tokens.cell[:, 1])[order]
    known = (tokens.cell[order] >= 0).all(dim=1)
    table = torch.full((frames, rows * columns), -1)
    table[rank[known], slot[known]] = order[known]
    before = table[rank & (rank - 1).clamp(min=0), slot.clamp(min=0)]
    there = known & (before >= 0) & (rank > 0)
    alike = torch.full((order.numel(),), -2.0)
    alike[there] = row_cosine(tokens.features, order[there], before[there]).cpu()
    return alike
