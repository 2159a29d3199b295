"""Spatial average pooling (STORM, arXiv 2503.04130, the variant that pools inside a frame)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import Selection, VideoTokens

from .base import Compressor
from .registry import register
from .shared.segments import equal_runs, merge_groups, present_frames, share


@register("spatial-pool")
@dataclass
class SpatialPool(Compressor):
    """Mean over regions of each frame's grid.

    To a budget: frame t of T gets budget // T regions (the first budget % T frames one more).
    The rows are cut into bands and every band into groups of columns, nearly equal, and as near
    to square regions as the number allows; a quarter of an even grid is exactly 2 x 2 pooling.
    With `window`, fixed windows of window x window cells, smaller at the right and lower edge.

    A frame that is no full grid any more is cut into equal runs of its tokens in raster order.
    A budget below the number of frames merges neighbouring frames as well: each of `budget`
    equal runs of frames becomes one token.

    Attributes:
        window: side of a fixed window in cells; the count is then T * ceil(H/w) * ceil(W/w).
    """

    window: int | None = field(default=None, metadata={"help": "side of a window, not keep"})

    paper = "STORM, arXiv 2503.04130"
    summary = "mean over regions of a frame"
    uses_features = False
    fixed = ("window",)

    def fixed_budget(self, tokens: VideoTokens) -> int | None:
        """Windows that hold at least one token."""
        return None if self.window is None else int(self._windows(tokens, self.window).max()) + 1

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One merge that meets the budget at once."""
        if self.window is not None:
            return merge_groups(tokens, self._windows(tokens, self.window))
        order, frames, counts = present_frames(tokens)
        if budget < frames.numel():
            runs = equal_runs(torch.arange(frames.numel()), frames.numel(), budget)
            run = runs.repeat_interleave(counts)
        else:
            # Inside a frame raster order counts, whatever order a method before this one left.
            by_place = torch.argsort(tokens.position, stable=True)
            order = by_place[torch.argsort(tokens.frame[by_place], stable=True)]
            sizes: list[int] = counts.tolist()
            regions = share(budget, sizes)
            run = cut_regions(sizes, regions, tokens.grid[1], tokens.grid[2])
        group = torch.empty_like(run)
        group[order] = run
        return merge_groups(tokens, group)

    @staticmethod
    def _windows(tokens: VideoTokens, side: int) -> Tensor:
        """(L,) the window of every token, numbered from 0 with none empty."""
        corner = torch.div(tokens.cell, side, rounding_mode="floor")
        key = torch.cat([tokens.frame[:, None], corner], dim=1)
        window: Tensor = torch.unique(key, dim=0, return_inverse=True)[1]
        return window


def cut_regions(sizes: list[int], regions: list[int], rows: int, columns: int) -> Tensor:
    """The region of every token, frames one after the other: frame f is cut into regions[f].

    A full frame of rows x columns tokens is cut into near squares, others into equal runs.
    """
    known: dict[tuple[int, int], Tensor] = {}
    parts, done = [], 0
    for size, wanted in zip(sizes, regions, strict=True):
        if (size, wanted) not in known:
            full = size == rows * columns
            known[size, wanted] = (
                _regions(rows, columns, wanted)
                if full
                else equal_runs(torch.arange(size), size, wanted)
            )
        parts.append(known[size, wanted] + done)
        done += wanted
    return torch.cat(parts)


def _regions(rows: int, columns: int, wanted: int) -> Tensor:
    """(rows * columns,) the region of every cell in raster order; `wanted` regions in all."""
    bands = _bands(rows, columns, wanted)
    groups = [wanted // bands + (band < wanted % bands) for band in range(bands)]
    first = torch.tensor([sum(groups[:band]) for band in range(bands)])
    band = equal_runs(torch.arange(rows), rows, bands)[:, None]
    wide = torch.tensor(groups)[band]
    return (first[band] + equal_runs(torch.arange(columns)[None], columns, wide)).flatten()


def _bands(rows: int, columns: int, wanted: int) -> int:
    """How many bands of rows: an exact rectangle of regions when one is near to square."""
    fewest, most = -(-wanted // columns), min(rows, wanted)
    best, worst = 0, math.log(2) + 1e-9
    for bands in range(fewest, most + 1):
        skew = abs(math.log((rows / bands) / (columns * bands / wanted)))
        if wanted % bands == 0 and skew < worst:
            best, worst = bands, skew
    if best:
        return best
    return min(max(round(math.sqrt(wanted * rows / columns)), fewest), most)
