"""VidCom2 (xuyang-liu16/VidCom2): the tokens of a full grid, with and without newlines."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.vidcom2 import _least_usual, _wanted, frame_scales, rate
from vidllm.errors import InputError


def select(features: Tensor, tokens_per_frame: int, R: float) -> Tensor:
    """The tokens that VidCom2 keeps of one clip, by the published order and arithmetic.

    A frame of scale s keeps its max(1, round(s * n)) least usual tokens (half to even), so the
    sum is near R * N and not exact.

    Args:
        features: (N, D) or (T, n, D), frame by frame. tokens_per_frame: n. R: share kept.

    Returns:
        (k,) kept indices into N, ascending, on the CPU. Equal scores: the earlier token.

    Raises:
        InputError: R outside (0, 1], or features that are no whole frames.
    """
    x = features.reshape(-1, features.shape[-1])
    if not 0 < R <= 1:
        raise InputError(f"vidcom2: R must be above 0 and at most 1, not {R}")
    if tokens_per_frame < 1 or x.shape[0] == 0 or x.shape[0] % tokens_per_frame:
        raise InputError(f"vidcom2: {x.shape[0]} tokens are no frames of {tokens_per_frame}")
    sizes = [tokens_per_frame] * (x.shape[0] // tokens_per_frame)
    vid, frame = rate(x, sizes)
    kept = _wanted(frame_scales(vid, sizes, R), sizes)[1]
    return _least_usual(vid + frame, sizes, kept)


def select_grid(features: Tensor, R: float, grid: int) -> Tensor:
    """`select` for LLaVA-Video, whose square frames get a newline token after every row.

    Args:
        features: (N, D) without the newlines. R: share kept. grid: side g of a frame.

    Returns:
        (k,) indices into the T x g x (g + 1) grid with newlines: for every frame its kept
        tokens in raster order and then its g newlines, which all stay.
    """
    kept = select(features, grid * grid, R)
    cells, row, column = kept // grid**2, kept % grid**2 // grid, kept % grid
    place = cells * grid * (grid + 1) + row * (grid + 1) + column
    newlines = torch.arange(grid) * (grid + 1) + grid
    frames = features.reshape(-1, features.shape[-1]).shape[0] // grid**2
    parts = [
        torch.cat([place[cells == t], newlines + t * grid * (grid + 1)]) for t in range(frames)
    ]
    return torch.cat(parts)
