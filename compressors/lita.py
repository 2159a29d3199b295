"""LITA's SlowFast tokens (arXiv 2403.19046): one a frame, and a few frames in more detail.

`slow_fast` is the authors' function; `Lita` is the method on `VideoTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens import Merge, Selection, VideoTokens, apply_rows

from .base import Compressor
from .registry import register
from .shared.learned import place
from .shared.segments import equal_runs, merge_groups, present_frames, share
from .spatial_pool import cut_regions

MODES = ("temporal", "spatial", "temporal_spatial", "spatial_pool", "temporal_spatial_pool")


def slow_frames(frames: int, count: int) -> Tensor:
    """(count,) evenly spaced of 0..frames-1, both ends among them; halves round to even."""
    return torch.from_numpy(np.round(np.linspace(0, frames - 1, count)).astype(np.int64))


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


@register("lita")
@dataclass
class Lita(Compressor):
    """A fast token a frame, and slow tokens of a few frames pooled on the grid (LITA, SlowFast).

    The paper gives F frames of N tokens F fast and N slow tokens: pool^2 frames, each pooled
    pool x pool. A smaller budget is divided in that proportion: fast tokens are then the means of
    equal runs of frames, slow frames are pooled more. A larger one adds slow frames at the
    paper's pooling, and pools less once every frame is slow.

    A frame that is both fast and slow belongs to two outputs. Its tokens are carried by the slow
    ones, save the one at which the fast token stands; without it the fast token would stand for
    none, and a later mean by size could not weigh it.

    Attributes:
        pool: side of the pooling, the paper's 2.
        faithful: all fast tokens before all slow ones, as the authors place them. By default
            they stand in time order (the defect: text positions run through the clip twice).
    """

    pool: int = field(default=2, metadata={"help": "side of the pooling of slow frames"})
    faithful: bool = field(default=False, metadata={"help": "fast tokens first, then slow ones"})

    makes_tokens = True
    paper = "LITA, arXiv 2403.19046"
    summary = "a mean a frame and a few frames in detail"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < 1:
            raise InputError(f"lita: pool must be at least 1, not {self.pool}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Fast and slow tokens at once."""
        order = torch.argsort(tokens.position, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        _, frames, counts = present_frames(tokens)
        total = len(frames)
        # total / (total + len / total) of the budget, rounded half up, and at most one a frame.
        whole = total * total + len(tokens)
        fast = max(1, min(total, budget, (2 * budget * total * total + whole) // (2 * whole)))
        slow = min(budget - fast, len(tokens) - total)
        fast = budget - slow
        runs = equal_runs(torch.arange(total), total, fast)
        number = torch.searchsorted(frames, tokens.frame)
        run = runs[number]
        detail = self._slow(tokens, order, number, counts, slow)
        free = torch.ones(len(tokens), dtype=torch.bool)
        if detail is not None:
            free[detail.representative] = False
        stands = _groups(tokens, torch.where(free, run, -1)).representative
        parts = [apply_rows(tokens.features, Merge(run, stands))]
        carrier = run
        if detail is not None:
            parts.append(apply_rows(tokens.features, detail))
            stands = torch.cat([stands, detail.representative])
            carrier = torch.where(detail.target >= 0, detail.target + fast, run)
        made = torch.cat(parts)
        return place(tokens, order, made, rank[stands], carrier[order], faithful=self.faithful)

    def _slow(
        self, tokens: VideoTokens, order: Tensor, number: Tensor, counts: Tensor, slow: int
    ) -> Merge | None:
        """The slow tokens; every slow frame leaves at least one token for the fast one."""
        if slow == 0:
            return None
        candidates = torch.nonzero(counts > 1).flatten()
        pooled = max(1.0, len(tokens) / len(counts) / self.pool**2)
        wanted = max(min(self.pool**2, slow), int(-(-slow // pooled)))
        wanted = min(wanted, slow, len(candidates))
        picked = candidates[slow_frames(len(candidates), wanted)]
        while int((counts[picked] - 1).sum()) < slow:  # frames of unequal size
            wanted += 1
            picked = candidates[slow_frames(len(candidates), wanted)]
        sizes: list[int] = counts[picked].tolist()
        regions = share(slow, [size - 1 for size in sizes])
        cut = cut_regions(sizes, regions, tokens.grid[1], tokens.grid[2])
        members = order[torch.isin(number[order], picked)]
        group = torch.full((len(tokens),), -1)
        group[members] = cut
        return _groups(tokens, group)


def _groups(tokens: VideoTokens, group: Tensor) -> Merge:
    """`merge_groups` where group -1 is left out."""
    out = group < 0
    if not bool(out.any()):
        return merge_groups(tokens, group)
    merged = merge_groups(tokens, torch.where(out, int(group.max()) + 1, group))
    extra = int(merged.target[out][0])
    target = merged.target - (merged.target > extra).long()
    stands = merged.representative
    stands = stands[torch.arange(len(stands)) != extra]
    return Merge(torch.where(out, -1, target), stands)
