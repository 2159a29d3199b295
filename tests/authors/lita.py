"""LITA (NVlabs/LITA): the visual tokens of its five modes."""

from __future__ import annotations

import re
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.compressors.lita import slow_frames
from vidllm.errors import InputError

MODES = ("temporal", "spatial", "temporal_spatial", "spatial_pool", "temporal_spatial_pool")


def slow_fast(
    features: Tensor,
    mode: str = "temporal_spatial_pool",
    pool: int = 2,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """The visual tokens that LITA gives its decoder.

    Args:
        features: (B, T, N, D) frames of N patches in raster order.
        mode: "temporal": T fast tokens, the means of the frames. "spatial": N means over time.
            "spatial_pool": slow tokens, pool * pool frames (see `slow_frames`; short clips
            repeat some), each averaged over pool x pool patches. "temporal_spatial" and
            "temporal_spatial_pool" (the published one): the fast tokens, then the others.
        pool: side of the pooling.
        grid: rows and columns of a frame; square when None, the only case of the authors. A
            side that `pool` does not divide ends in smaller windows.

    Returns:
        (B, M, D) float32; fast tokens first, slow tokens frame by frame.

    Raises:
        InputError: an unknown mode, or N that is not the grid.
    """
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if features.dim() != 4 or 0 in features.shape or pool < 1:
        raise InputError(f"features must be (B, T, N, D), not {tuple(features.shape)}")
    x = features.float()
    batch, frames, patches, width = x.shape
    parts = []
    if mode.startswith("temporal"):
        parts.append(x.mean(dim=2))
    if mode.endswith("spatial"):
        parts.append(x.mean(dim=1))
    if mode.endswith("spatial_pool"):
        rows, columns = grid or (isqrt(patches), isqrt(patches))
        if rows * columns != patches:
            raise InputError(f"{patches} patches are no grid {rows} x {columns}: give grid")
        chosen = x[:, slow_frames(frames, pool * pool).to(x.device)]
        picture = chosen.reshape(-1, rows, columns, width).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(picture, pool, ceil_mode=True)
        parts.append(pooled.permute(0, 2, 3, 1).reshape(batch, -1, width))
    return torch.cat(parts, dim=1)


def explanation(answer: str) -> str:
    """An answer without its first two time tokens: its reasoning text; all of it if fewer."""
    marks = list(re.finditer(r"<\d+\.?\d*>|<t\d+>", answer))
    if len(marks) < 2:
        return answer
    one, two = marks[:2]
    return (answer[: one.start()] + answer[one.end() : two.start()] + answer[two.end() :]).strip()
