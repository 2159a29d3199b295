"""DART, the port in ModelTC/LightCompress: the tokens that it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.dart import FLOOR, _pick, _strongest
from vidllm.compressors.shared.segments import unit
from vidllm.errors import InputError


def select(
    hidden_normed: Tensor,
    key_cache: Tensor,
    image_start: int,
    image_len: int,
    pivot_image: int = 4,
    pivot_text: int = 4,
    reduction_ratio: float = 0.7778,
    faithful: bool = True,
) -> Tensor:
    """The image tokens that DART keeps: pivot_image + (pivot_image + pivot_text) * c of them,
    with c = int(image_len * (1 - reduction_ratio) / (pivot_image + pivot_text)).

    Args:
        hidden_normed: (1, L, D) states that enter the layer, after the model's LAST norm.
        key_cache: (1, H, L, d) keys of the layer before, rotated, all key heads.
        image_start, image_len: the image's place. Text pivots come from behind it.
        pivot_image, pivot_text: tokens with the largest L1 norm of all heads' keys.
        reduction_ratio: the share of image tokens that should leave.
        faithful: pivots take turns in the order of a Python set, as the port does; otherwise
            in the order of the sequence, which does not hang on the interpreter.

    Returns:
        (K,) long, sequence indices, ascending.

    Raises:
        InputError: a batch of more than one, or fewer tokens than pivots.
    """
    if hidden_normed.shape[0] != 1 or key_cache.shape[0] != 1:
        raise InputError("dart chooses for one row at a time: hidden (1, L, D), keys (1, H, L, d)")
    length, end = hidden_normed.shape[1], image_start + image_len
    if not 1 <= pivot_image <= image_len or not 0 <= pivot_text <= length - end:
        raise InputError(
            f"dart: {pivot_image} image and {pivot_text} text pivots do not fit {image_len} image "
            f"tokens and {length - end} text tokens behind them"
        )
    norms = key_cache[0].float().abs().sum(dim=(0, 2))
    image = [image_start + i for i in _strongest(norms[image_start:end], pivot_image)]
    text = [end + i for i in _strongest(norms[end:], pivot_text)]
    pivots = list(set(image + text)) if faithful else sorted(image + text)
    count = int(image_len * (1 - reduction_ratio) / (pivot_image + pivot_text))
    rows = unit(hidden_normed[0], FLOOR)
    taken = torch.zeros(image_len, dtype=torch.bool, device=rows.device)
    taken[[i - image_start for i in image]] = True
    cosine = rows[pivots] @ rows[image_start:end].T
    taken = _pick(cosine, [(row, count) for row in range(len(pivots))], taken)
    return image_start + torch.nonzero(taken).flatten()
