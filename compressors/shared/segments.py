"""Arithmetic that the pooling methods share: exact shares, equal runs, groups into merges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidllm.tokens import Merge, VideoTokens, split_budget

from .kernels import TINY, blocks, unit_into


def unit(x: Tensor, floor: float = TINY) -> Tensor:
    """Rows of length 1 in float32; a norm counts as `floor` at least, so that zeros stay zeros."""
    rows = x.detach().reshape(-1, x.shape[-1])
    result = torch.empty(rows.shape, device=x.device)
    for where, some in blocks(rows):
        unit_into(result[where], some, floor)
    return result.view(x.shape)


def share(budget: int, capacity: Sequence[int]) -> list[int]:
    """Split `budget` over parts: each at least 1 and at most its capacity, nearly in proportion.

    Equal capacities get budget // parts each, and the first budget % parts one more. It needs
    len(capacity) <= budget <= sum(capacity), which the callers see to.
    """
    spare = [size - 1 for size in capacity]
    if not any(spare):
        return [1] * len(spare)
    return [1 + extra for extra in split_budget(budget - len(spare), spare)]


def equal_runs(rank: Tensor, count: Tensor | int, parts: Tensor | int) -> Tensor:
    """The run of every item when `count` items in a row are cut into `parts` runs.

    Run i holds the items from floor(i * count / parts) to floor((i + 1) * count / parts), so
    the lengths differ by at most one and nothing is dropped or padded.
    """
    return ((rank + 1) * parts - 1) // count


def starts(counts: Tensor) -> Tensor:
    """Where each part begins when parts of these sizes stand in a row."""
    return counts.cumsum(0) - counts


def present_frames(tokens: VideoTokens) -> tuple[Tensor, Tensor, Tensor]:
    """The frames that still have tokens: (order (L,), frames (F,), counts (F,)).

    `order` lists the tokens frame by frame and in their present order inside a frame.
    """
    order = torch.argsort(tokens.frame, stable=True)
    frames, counts = torch.unique_consecutive(tokens.frame[order], return_counts=True)
    return order, frames, counts


def by_slot(tokens: VideoTokens) -> tuple[Tensor, Tensor]:
    """Tokens sorted by slot then time (L,), and how many each present slot has (N,)."""
    order = torch.argsort(tokens.position, stable=True)
    slot = tokens.cell[:, 0] * tokens.grid[2] + tokens.cell[:, 1]
    order = order[torch.argsort(slot[order], stable=True)]
    _, counts = torch.unique_consecutive(slot[order], return_counts=True)
    return order, counts


def before_in_cell(tokens: VideoTokens) -> Tensor:
    """(L,) the last earlier token in the same cell of every token, or -1."""
    order, counts = by_slot(tokens)
    first = torch.zeros(len(tokens), dtype=torch.bool)
    first[starts(counts)] = True
    before = torch.empty_like(order)
    before[order] = torch.where(first, -1, order.roll(1))
    return before


def merge_groups(tokens: VideoTokens, group: Tensor) -> Merge:
    """Merge the tokens of each group (L,) of 0..K-1 into their plain mean, in time order.

    A group is represented by its member nearest to the middle of the group: in time first,
    then on the grid, then the earlier one.
    """
    slots = int(group.max()) + 1
    place = torch.cat([tokens.frame[:, None], tokens.cell], dim=1).double()
    count = torch.bincount(group, minlength=slots).double()
    centre = place.new_zeros(slots, 3).index_add_(0, group, place) / count[:, None]
    # Rounded, so that the two middle members of an even group tie exactly.
    away = ((place - centre[group]).square() * 1e6).round()
    order = torch.argsort(tokens.position, stable=True)
    for key in (away[:, 1:].sum(1), away[:, 0], group):
        order = order[torch.argsort(key[order], stable=True)]
    first = starts(torch.bincount(group, minlength=slots))
    return Merge(group, order[first]).in_order(tokens.position)
