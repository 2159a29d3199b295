"""Parts of a clip (frames, slots, runs): exact shares of a budget, and merging inside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidllm.tokens import Keep, Merge, Selection, VideoTokens, apply_rows, split_budget
from vidllm.tokens.video_tokens import slot_means, take

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


def halve_frames(
    tokens: VideoTokens, budget: int, decide: Callable[[Tensor, int, Tensor], Merge]
) -> tuple[VideoTokens, list[Selection]]:
    """`merge_parts` of frames, none of which loses more than half in a round."""
    order, _, counts = present_frames(tokens)
    sizes: list[int] = counts.tolist()
    return merge_parts(tokens, order.split(sizes), halvings(sizes, budget), decide)


def halvings(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """What is left of every part after each round, when none loses more than half in a round."""
    left, turns = list(sizes), list[list[int]]()
    while sum(left) > budget:
        goals = share(budget, left)
        left = [size - min(size // 2, size - goal) for size, goal in zip(left, goals, strict=True)]
        turns.append(left)
    return turns


def merge_parts(
    tokens: VideoTokens,
    parts: Sequence[Tensor],
    turns: Sequence[Sequence[int]],
    decide: Callable[[Tensor, int, Tensor], Merge],
) -> tuple[VideoTokens, list[Selection]]:
    """Merge every part in rounds, with the merged features of one part at a time.

    Args:
        parts: the tokens of every part, in time order over all parts.
        turns: what remains of every part after each round.
        decide: from a part's features (n, D), how many remain and the tokens' positions (n,), a
            round.

    Returns:
        The tokens, part by part, and the rounds as selections on the whole clip.
    """
    x = tokens.features
    made = x.new_empty(sum(turns[-1]), x.shape[1])
    differentiable, pieces = x.requires_grad and torch.is_grad_enabled(), list[Tensor]()
    found: list[list[Merge]] = [[] for _ in turns]
    for number, (part, out) in enumerate(zip(parts, made.split(list(turns[-1])), strict=True)):
        now, size, position = take(x, part), tokens.size[part], tokens.position[part]
        for turn, left in enumerate(turns):
            every = torch.arange(len(now))
            merge = Merge(every, every)
            if left[number] < len(now):
                merge = decide(now.detach(), left[number], position)
                now = apply_rows(now, merge, size)
                size = size.new_zeros(len(merge)).index_add_(0, merge.target, size)
                position = position[merge.representative]
            found[turn].append(merge)
        if differentiable:
            pieces.append(now)
        else:
            out.copy_(now)
    light, rounds = tokens.with_features(x[:, :0]), list[Selection]()
    order = torch.cat(list(parts))
    for merges in found:
        selection = _together(merges, order)
        light = light.apply(selection)
        rounds.append(selection)
        order = torch.arange(len(selection))
    return light.with_features(torch.cat(pieces) if differentiable else made), rounds


def _together(merges: Sequence[Merge], order: Tensor) -> Merge:
    """Merges of parts that stand one after the other in `order`, as one."""
    slots = torch.tensor([len(merge) for merge in merges])
    tokens = torch.tensor([len(merge.target) for merge in merges])
    target = torch.cat([merge.target for merge in merges])
    chosen = torch.cat([merge.representative for merge in merges])
    placed = torch.empty_like(target)
    placed[order] = target + starts(slots).repeat_interleave(tokens)
    stands = order[chosen + starts(tokens).repeat_interleave(slots)]
    kinds = {merge.weighting for merge in merges if len(merge) < len(merge.target)}
    return Merge(placed, stands, kinds.pop())


def compose(
    whole: Merge, weight: Tensor, selection: Selection, own: Tensor
) -> tuple[Merge, Tensor]:
    """What a merge of rows with `weight` (L,) and a selection on its slots do together.

    Args:
        own: (K,) how much each slot counts in the selection, if that merges.

    Returns:
        The merge of the first rows, and their weights in it.
    """
    if isinstance(selection, Keep):
        slot = torch.full((len(whole),), -1)
        slot[selection.index] = torch.arange(len(selection))
        stays = selection.index
    else:
        slot, stays = selection.target, selection.representative
        live = slot >= 0
        total = own.new_zeros(len(selection)).index_add_(0, slot[live], own[live])
        part = torch.where(live, own / total[slot.clamp(min=0)], 0.0)
        weight = weight * part[whole.target.clamp(min=0)]
    target = torch.where(whole.target < 0, -1, slot[whole.target.clamp(min=0)])
    return Merge(target, whole.representative[stays]), weight


class Merged:
    """Rows as a weighted merge leaves them, made when they are asked for.

    Args:
        x: (L, D) what is merged. merge: of these rows. size: (L,) weights.
    """

    def __init__(self, x: Tensor, merge: Merge, size: Tensor) -> None:
        self._x, self._size, self.shape = x.detach(), size, (len(merge), x.shape[1])
        self.device = x.device
        kept = torch.nonzero(merge.target >= 0).flatten()
        self._order = kept[torch.argsort(merge.target[kept], stable=True)]
        self._counts = torch.bincount(merge.target[kept], minlength=len(merge))
        self._first = starts(self._counts)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        """(M, D) the merged rows `index` (M,)."""
        counts = self._counts[index]
        inside = torch.arange(int(counts.sum())) - starts(counts).repeat_interleave(counts)
        members = self._order[inside + self._first[index].repeat_interleave(counts)]
        return slot_means(self._x, members, counts, self._size[members])
