"""What a compressor decides (`Keep`, `Merge`, `Mix`), and how it acts on rows of any tensor.

It knows nothing of videos; use it through `vidllm.tokens`, which exports all of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vidllm.errors import WorkError

# Slots of at most this many tokens are summed member by member (see `_merge_rows`).
_ROUNDS = 64
# Numbers of the members that are summed at a time on a CPU, so that they stay in its cache.
_BLOCK = 2**17


@dataclass(frozen=True, eq=False)
class Keep:
    """Keep these tokens and drop the others.

    Attributes:
        index: (K,) long, the kept tokens, strictly ascending.
    """

    index: Tensor

    def __post_init__(self) -> None:
        index = _long(self.index, "Keep.index")
        if index.numel() == 0:
            raise WorkError("a compressor kept no token: a selection holds at least one")
        if index.numel() > 1 and not bool((index[1:] > index[:-1]).all()):
            raise WorkError("Keep.index must be strictly ascending: sort it and drop repeats")
        object.__setattr__(self, "index", index)

    def __len__(self) -> int:
        return self.index.numel()


@dataclass(frozen=True, eq=False)
class Merge:
    """Send every token to an output slot, or drop it; a slot is the mean of its tokens.

    Attributes:
        target: (L,) long, for every token the slot it goes to, or -1 when it is dropped. The
            slots are 0..K-1 and stand in this order in the output.
        representative: (K,) long, the token whose frame, cell and position a slot takes; one
            of the slot's own.
        weighting: "mean" counts every merged token once; "size" weighs it by its source tokens.
    """

    target: Tensor
    representative: Tensor
    weighting: Literal["mean", "size"] = "mean"

    def __post_init__(self) -> None:
        target = _long(self.target, "Merge.target")
        chosen = _long(self.representative, "Merge.representative")
        if chosen.numel() == 0:
            raise WorkError("a compressor kept no token: a selection holds at least one")
        if int(chosen.min()) < 0 or int(chosen.max()) >= target.numel():
            raise WorkError("Merge.representative names a token that is not there")
        if int(target.max()) >= chosen.numel() or int(target.min()) < -1:
            raise WorkError(f"Merge.target must be -1 or a slot below {chosen.numel()}")
        if not torch.equal(target[chosen], torch.arange(chosen.numel())):
            raise WorkError("a slot's representative must be one of the tokens that it merges")
        if self.weighting not in ("mean", "size"):
            raise WorkError(f"weighting must be 'mean' or 'size', not {self.weighting!r}")
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "representative", chosen)

    def __len__(self) -> int:
        return self.representative.numel()

    def in_order(self, rank: Tensor) -> Merge:
        """The same merge with its slots sorted by `rank` (L,) of their representatives."""
        order = torch.argsort(rank[self.representative], stable=True)
        new = torch.empty_like(order)
        new[order] = torch.arange(order.numel())
        target = torch.where(self.target < 0, -1, new[self.target.clamp(min=0)])
        return Merge(target, self.representative[order], self.weighting)


@dataclass(frozen=True, eq=False)
class Mix:
    """New tokens that a learned method made, and which of them carries each old one.

    Attributes:
        features: (K, D') the new tokens, differentiable, of any width.
        target: (L,) long, for every token the slot that carries it, or -1. A slot may carry none.
        representative: (K,) long, the token whose frame, cell and position a slot takes, every
            slot another; in time order, but where a method's `faithful` asks for another.
        span: (K, 2) float64, the seconds that a slot covers; None for the hull of what it
            carries (of its representative, where it carries nothing).
    """

    features: Tensor
    target: Tensor
    representative: Tensor
    span: Tensor | None = None

    def __post_init__(self) -> None:
        target = _long(self.target, "Mix.target")
        index = _long(self.representative, "Mix.representative")
        if self.features.dim() != 2 or self.features.shape[0] != index.numel() or not len(index):
            raise WorkError(
                f"Mix needs one row of features a slot, not {tuple(self.features.shape)} for "
                f"{index.numel()} slots"
            )
        if int(index.min()) < 0 or int(index.max()) >= target.numel():
            raise WorkError("Mix.representative names a token that is not there")
        if int(target.max()) >= index.numel() or int(target.min()) < -1:
            raise WorkError(f"Mix.target must be -1 or a slot below {index.numel()}")
        if self.span is not None and self.span.shape != (index.numel(), 2):
            raise WorkError(f"Mix.span must be ({index.numel()}, 2), not {tuple(self.span.shape)}")
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "representative", index)

    def __len__(self) -> int:
        return self.representative.numel()


Selection = Keep | Merge | Mix


def finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite, in one reading pass."""
    return x.numel() == 0 or bool(torch.stack(torch.aminmax(x.detach())).isfinite().all())


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows x[index] of indices on the CPU; a view where the indices follow one another."""
    count = len(index)
    if count and int(index[-1]) - int(index[0]) == count - 1:
        run = int(index[0])
        if torch.equal(index, torch.arange(run, run + count)):
            return x[run : run + count]
    return x.index_select(0, index.to(x.device))


def _long(value: Tensor, name: str) -> Tensor:
    if value.dim() != 1 or value.dtype not in (torch.int64, torch.int32):
        raise WorkError(
            f"{name} must be a flat integer tensor, not {value.dtype} of {value.dim()}D"
        )
    return value.detach().to("cpu", torch.int64)


def apply_rows(
    x: Tensor, selection: Selection, size: Tensor | None = None, *, dim: int = -2
) -> Tensor:
    """Apply a selection to the rows of any tensor, the same for all of its batch.

    Args:
        x: (..., L, D) with the tokens on axis `dim`. Floating point rows are merged,
            differentiably; bool and integer rows (masks, ids) take the representative's.
        selection: one selection for the whole batch.
        size: (L,) sizes of the tokens before the selection; only read by weighting "size".
        dim: the axis of the tokens; for (3, B, L) position ids it is -1.

    Returns:
        (..., K, D) in the dtype of `x`; means are taken in float32 at least. On the CPU the
        result is deterministic; on a GPU too while no slot merges more than 64 tokens. A `Mix`
        holds features of its own; any other rows take its representatives' here.

    Raises:
        WorkError: the selection is for another number of tokens.
    """
    dim = dim % x.dim()
    check_fits(selection, x.shape[dim])
    if not isinstance(selection, Merge) or not x.is_floating_point():
        return x.index_select(dim, chosen(selection).to(x.device))
    weight = torch.ones(x.shape[dim])
    if selection.weighting == "size":
        if size is None:
            raise WorkError("a size-weighted merge needs the sizes of its tokens")
        weight = size.detach().to("cpu", torch.float32)
    rows = x.movedim(dim, -2) if dim != x.dim() - 1 else x.unsqueeze(-1)
    merged = _merge_rows(rows, selection, weight)
    return merged.movedim(-2, dim) if dim != x.dim() - 1 else merged.squeeze(-1)


def apply_all(x: Tensor, selections: Sequence[Selection], *, dim: int = -2) -> Tensor:
    """Apply a run's selections one after the other to uncompressed rows (see `apply_rows`)."""
    size = torch.ones(x.shape[dim])
    for selection in selections:
        x = apply_rows(x, selection, size, dim=dim)
        size = merged_sizes(size, selection)
    return x


def _merge_rows(x: Tensor, merge: Merge, weight: Tensor) -> Tensor:
    kept = torch.nonzero(merge.target >= 0).flatten()
    order = kept[torch.argsort(merge.target[kept], stable=True)]
    counts = torch.bincount(merge.target[order], minlength=len(merge))
    return slot_means(x, order, counts, weight[order])


def slot_means(x: Tensor, order: Tensor, counts: Tensor, weight: Tensor) -> Tensor:
    """Weighted means (..., K, D) of the rows (..., L, D) of every slot, a row in any of them.

    Args:
        order: (M,) the rows slot by slot. counts: (K,) how many each has, at least 1. weight: (M,).
    """
    slots, device = len(counts), x.device
    slot = torch.arange(slots).repeat_interleave(counts)
    weight = torch.where(counts[slot] == 1, 1.0, weight)  # alone: come out bit-equal
    whole = torch.zeros(slots).index_add_(0, slot, weight)
    if device.type == "cpu" and x.shape[-1] and not (x.requires_grad and torch.is_grad_enabled()):
        flat = x.detach().reshape(-1, *x.shape[-2:])
        merged = x.new_empty(len(flat), slots, x.shape[-1])
        for rows, out in zip(flat, merged, strict=True):
            _sum_in_blocks(rows, order, counts, weight, whole, out)
        return merged.view(*x.shape[:-2], slots, x.shape[-1])
    exact = torch.promote_types(x.dtype, torch.float32)
    rank = torch.arange(order.numel()) - (counts.cumsum(0) - counts)[slot]
    plain = bool((weight == 1).all())

    def rows_at(which: Tensor) -> Tensor:
        picked = x.index_select(-2, order[which].to(device)).to(exact)
        return picked if plain else picked * weight[which].to(device, exact)[:, None]

    if int(counts.max()) <= _ROUNDS:
        # The first member of every slot, then the second and so on: no slot is met twice in a
        # round, so the sums do not depend on the order in which a GPU adds.
        total = rows_at(rank == 0)
        for r in range(1, int(counts.max())):
            which = rank == r
            total.index_add_(-2, slot[which].to(device), rows_at(which))
    else:
        total = x.new_zeros(*x.shape[:-2], slots, x.shape[-1], dtype=exact)
        total.index_add_(-2, slot.to(device), rows_at(rank >= 0))
    return (total / whole.to(device, exact)[:, None]).to(x.dtype)


def _sum_in_blocks(
    x: Tensor, order: Tensor, counts: Tensor, weight: Tensor, whole: Tensor, out: Tensor
) -> None:
    """The same for rows (L, D) on the CPU into `out` (K, D), in blocks of slots.

    `order` has the members slot by slot, `weight` theirs. A slot with more members than a block
    is summed in several steps.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    step = max(1, _BLOCK // x.shape[-1])
    share = None if bool((weight == 1).all()) else weight.to(exact)
    ends: list[int] = counts.cumsum(0).tolist()
    offsets = counts.cumsum(0) - counts
    every = torch.arange(min(step, len(order)))
    scale = whole.to(exact)[:, None]

    def sums(start: int, stop: int, bags: Tensor) -> Tensor:
        rows, index = x, order[start:stop]
        if x.dtype != exact or share is not None:  # in the cache
            rows, index = x.index_select(0, index).to(exact), every[: stop - start]
        if share is not None:
            rows.mul_(share[start:stop, None])
        return embedding_bag(index, rows, bags, mode="sum")

    first, start = 0, 0
    while first < len(ends):
        last = max(first + 1, bisect_right(ends, start + step))
        stop = ends[last - 1]
        bags = offsets[first:last] - start
        total = sums(start, min(stop, start + step), bags)
        for more in range(start + step, stop, step):  # one slot alone
            total += sums(more, min(stop, more + step), bags)
        if x.dtype == exact:
            torch.div(total, scale[first:last], out=out[first:last])
        else:
            out[first:last] = total.div_(scale[first:last])
        first, start = last, stop


def chosen(selection: Selection) -> Tensor:
    return selection.index if isinstance(selection, Keep) else selection.representative


def check_fits(selection: Selection, count: int) -> None:
    if not isinstance(selection, Keep):
        if selection.target.numel() != count:
            raise WorkError(f"a merge of {selection.target.numel()} tokens met {count} tokens")
    elif int(selection.index[0]) < 0 or int(selection.index[-1]) >= count:
        raise WorkError(f"a selection names a token outside 0..{count - 1}")


def merged_sizes(size: Tensor, selection: Selection) -> Tensor:
    if isinstance(selection, Keep):
        return size[selection.index]
    live = selection.target >= 0
    return size.new_zeros(len(selection)).index_add_(0, selection.target[live], size[live])
