"""Evenly spread tokens: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .registry import register

#: 1/p and 1/p² of the plastic number p: steps whose multiples, taken modulo 1, fill the unit
#: square most evenly (the R2 sequence of M. Roberts).
_DOWN, _RIGHT = 0.7548776662466927, 0.5698402909980532


@register("uniform")
@dataclass
class Uniform(Compressor):
    """Keep as many tokens of every frame, and every cell of the grid equally often.

    The budget is shared out over the frames in proportion to their tokens, rounded so that no
    frame is more than one token from its share. A frame keeps the cells that were kept least
    often so far, of equal ones those that come first in a fixed order in which every run of
    cells is spread over the frame. So what is kept moves from frame to frame: a fixed stride
    through the sequence would keep the same columns of every frame wherever the grid's width
    divides it.

    With the same cells in every frame, no two cells are kept more than once apart. Nothing is
    drawn: equal grids have equal plans.
    """

    summary = "evenly spread tokens stay, other cells in every frame"
    uses_features = False

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """The `budget` tokens, frame by frame."""
        counts = torch.bincount(tokens.frame)
        counts = counts[counts > 0]
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shares = ((2 * ends * budget + len(tokens)) // (2 * len(tokens))).diff()
        order = torch.argsort(tokens.frame, stable=True)
        place, value = _places(tokens)
        each = int(counts[0])
        if bool((counts == each).all()):
            cells = place[order].view(-1, each)
            if bool((cells == cells[0]).all()):  # then the cells go round in one order
                around = torch.argsort(value[order[:each]], stable=True)
                frame = torch.arange(len(counts)).repeat_interleave(shares, output_size=budget)
                which = around[torch.arange(budget) % each]
                return Keep(order[frame * each + which].sort().values)
        kept_before = torch.zeros(int(place.max()) + 1, dtype=torch.float64)
        sizes, one = counts.tolist(), torch.ones(int(shares.max()), dtype=torch.float64)
        kept = []
        for mine, cells, share in zip(
            order.split(sizes), place[order].split(sizes), shares.tolist(), strict=True
        ):
            if not share:
                continue
            # A value is below 1, so that it only decides between equal counts.
            rank = kept_before[cells].add_(value[mine])
            best = torch.argsort(rank, stable=True)[:share]
            kept_before.index_add_(0, cells[best], one[:share])
            kept.append(mine[best])
        return Keep(torch.cat(kept).sort().values)


def _places(tokens: VideoTokens) -> tuple[Tensor, Tensor]:
    """(L,) long, one number a cell, and (L,) float64 in [0, 1), by which cells are ordered.

    Cells whose values lie in one interval are spread over the grid like a sheared lattice. A
    token without a cell stands in a row of its own below the grid, at its place in its frame.
    """
    row, column = tokens.cell.unbind(1)
    nowhere = row < 0
    if bool(nowhere.any()):
        frame = torch.where(nowhere, tokens.frame, -1)
        inside = torch.zeros_like(frame)
        for one in torch.unique(frame[nowhere]).tolist():
            inside[frame == one] = torch.arange(int((frame == one).sum()))
        row = torch.where(nowhere, tokens.grid[1], row)
        column = torch.where(nowhere, inside, column)
    value = (row.double() * _DOWN + column.double() * _RIGHT) % 1.0
    return row * (int(column.max()) + 1) + column, value
