"""Video tokens with their places and seconds, and the one place where they merge or drop.

A compressor only decides: it returns a `Keep`, a `Merge`, or for new tokens a `Mix`.
`VideoTokens.apply` carries that decision out on features, signals, frames, cells, seconds, sizes,
positions and provenance, and `apply_rows` on any other plane of one row a token, differentiably.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vidllm.errors import InputError, WorkError

# Slots of at most this many tokens are summed member by member (see `slot_means`).
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
        shape = tuple(self.features.shape)
        if len(shape) != 2 or shape[0] != len(index) or not len(index):
            raise WorkError(f"Mix needs one row of features a slot, not {shape} for {len(index)}")
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
    first, last = (int(index[0]), int(index[-1])) if len(index) else (0, -2)
    if last - first == len(index) - 1 and torch.equal(index, torch.arange(first, last + 1)):
        return x[first : last + 1]
    return x.index_select(0, index.to(x.device))


def _long(value: Tensor, name: str) -> Tensor:
    kind = f"{value.dtype} of {value.dim()}D" if isinstance(value, Tensor) else type(value).__name__
    if kind not in ("torch.int64 of 1D", "torch.int32 of 1D"):
        raise WorkError(f"{name} must be a tensor of flat integers, not {kind}")
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
    kept = torch.nonzero(selection.target >= 0).flatten()
    order = kept[torch.argsort(selection.target[kept], stable=True)]
    counts = torch.bincount(selection.target[order], minlength=len(selection))
    merged = slot_means(rows, order, counts, weight[order])
    return merged.movedim(-2, dim) if dim != x.dim() - 1 else merged.squeeze(-1)


def apply_all(x: Tensor, selections: Sequence[Selection], *, dim: int = -2) -> Tensor:
    """Apply a run's selections one after the other to uncompressed rows (see `apply_rows`)."""
    size = torch.ones(x.shape[dim])
    for selection in selections:
        x = apply_rows(x, selection, size, dim=dim)
        size = merged_sizes(size, selection)
    return x


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
        with torch.no_grad():
            for number, rows in enumerate(flat):
                _sum_in_blocks(rows, order, counts, weight, whole, merged[number])
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


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """The tokens of one clip.

    Only `features` may be on an accelerator; the other tensors are small and stay on the CPU,
    so that planning needs no synchronisation.

    Attributes:
        features: (L, D) floating point.
        frame: (L,) long, index of the clip's frame that a token stands for.
        cell: (L, 2) long, row and column in the token grid; -1 where there is none.
        span: (L, 2) float64, the seconds that a token covers, [start, end].
        size: (L,) float32, source tokens that were merged into it (1 for an original).
        position: (L,) long, index in the uncompressed sequence; a merged token has the
            position of its representative.
        source: (S,) long, for every ORIGINAL token the index of the token that carries it
            now, or -1 when it was dropped.
        grid: (T, H, W), the original grid; S = T * H * W.
        signals: what a model tells of its tokens beside their features, name to (L,) or
            (L, ...), as "cls-attention" or "vision-keys"; merged and dropped as the features.
    """

    features: Tensor
    frame: Tensor
    cell: Tensor
    span: Tensor
    size: Tensor
    position: Tensor
    source: Tensor
    grid: tuple[int, int, int]
    signals: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_grid(
        cls,
        features: Tensor,
        seconds: Sequence[float] | Tensor,
        duration: float,
        *,
        start: float = 0.0,
    ) -> VideoTokens:
        """One token a grid cell, in time order and raster order inside a frame.

        A token of frame i covers the time from the midpoint to the frame before to the
        midpoint to the frame after; the first frame starts at `start`, the last ends at
        `duration` (or at its own time, where a container's duration falls short of it).

        Args:
            features: (T, H, W, D) floating point.
            seconds: (T,) presentation time of every frame, in seconds, not falling.
            duration: end of the sampled range in seconds.
            start: begin of the sampled range in seconds.

        Raises:
            InputError: shapes or times that do not fit.
        """
        if features.dim() != 4 or 0 in features.shape[:3] or not features.is_floating_point():
            raise InputError(
                f"video features must be floating point (T, H, W, D), not {features.dtype} "
                f"{tuple(features.shape)}"
            )
        frames, rows, columns = features.shape[:3]
        times = torch.as_tensor(seconds).detach().to("cpu", torch.float64)
        if times.shape != (frames,):
            raise InputError(f"{frames} frames need {frames} times, not {tuple(times.shape)}")
        if not bool(torch.isfinite(times).all()) or bool((times.diff() < 0).any()):
            raise InputError("frame times must be finite seconds that do not fall")
        middle = (times[1:] + times[:-1]) / 2
        first = times.new_tensor([min(float(start), float(times[0]))])
        last = times.new_tensor([max(float(duration), float(times[-1]))])
        edges = torch.cat([first, middle, last])
        cells = rows * columns
        raster = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(cells, 2)
        every = torch.arange(frames * cells)
        return cls(
            features=features.reshape(frames * cells, features.shape[3]),
            frame=torch.arange(frames).repeat_interleave(cells),
            cell=raster.repeat(frames, 1),
            span=torch.stack([edges[:-1], edges[1:]], dim=1).repeat_interleave(cells, dim=0),
            size=torch.ones(frames * cells),
            position=every,
            source=every.clone(),
            grid=(frames, rows, columns),
        )

    @classmethod
    def blank(
        cls,
        grid: tuple[int, int, int],
        seconds: Sequence[float] | Tensor,
        duration: float,
        *,
        start: float = 0.0,
    ) -> VideoTokens:
        """Tokens of width 0: enough for compressors that plan without features, as for a batch."""
        return cls.from_grid(torch.zeros(*grid, 0), seconds, duration, start=start)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def total(self) -> int:
        """Original tokens S."""
        return self.source.numel()

    @property
    def keep(self) -> float:
        """The measured share of tokens kept, len / total."""
        return len(self) / self.total

    def per_frame(self) -> Tensor:
        """(T,) long: tokens that stand for every frame now."""
        return torch.bincount(self.frame, minlength=self.grid[0])

    def with_features(self, features: Tensor) -> VideoTokens:
        """The same tokens with other features (L, D')."""
        if features.dim() != 2 or features.shape[0] != len(self):
            raise InputError(
                f"{len(self)} tokens need features ({len(self)}, D), not {tuple(features.shape)}"
            )
        return replace(self, features=features)

    def with_signals(self, **signals: Tensor) -> VideoTokens:
        """The same tokens with more signals (L, ...); underscores in a name become hyphens."""
        named = {name.replace("_", "-"): plane for name, plane in signals.items()}
        for name, plane in named.items():
            if plane.shape[:1] != (len(self),):
                raise InputError(f"signal {name!r} needs {len(self)} rows, not {plane.shape[:1]}")
        return replace(self, signals={**self.signals, **named})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> VideoTokens:
        """Move or cast the features; the rest stays on the CPU."""
        return replace(self, features=self.features.to(device=device, dtype=dtype))

    @overload
    def apply(self, selection: Selection) -> VideoTokens: ...
    @overload
    def apply(
        self, selection: Selection, extras: Mapping[str, Tensor]
    ) -> tuple[VideoTokens, dict[str, Tensor]]: ...
    def apply(
        self, selection: Selection, extras: Mapping[str, Tensor] | None = None
    ) -> VideoTokens | tuple[VideoTokens, dict[str, Tensor]]:
        """Carry out a selection.

        Args:
            selection: what to keep or merge.
            extras: further planes with a row a token, (L, ...); floating point planes merge as
                the features do, others (ids, masks) take their representative's row.

        Returns:
            The new tokens; with `extras` a pair of tokens and new extras.

        Raises:
            WorkError: the selection does not fit these tokens.
        """
        count = len(self)
        index = chosen(selection)
        check_fits(selection, count)
        if isinstance(selection, Keep):
            slot = torch.full((count,), -1)
            slot[index] = torch.arange(len(selection))
            span = self.span[index]
        else:
            slot = selection.target
            span = _hull(self.span, slot, index)
        if isinstance(selection, Mix):
            features = selection.features
            span = span if selection.span is None else selection.span.double()
        else:
            features = apply_rows(self.features, selection, self.size)
        tokens = VideoTokens(
            features=features,
            frame=self.frame[index],
            cell=self.cell[index],
            span=span,
            size=merged_sizes(self.size, selection),
            position=self.position[index],
            source=torch.where(self.source < 0, -1, slot[self.source.clamp(min=0)]),
            grid=self.grid,
            signals={k: self._plane(k, v, selection) for k, v in self.signals.items()},
        )
        if extras is None:
            return tokens
        return tokens, {k: self._plane(k, v, selection) for k, v in extras.items()}

    def _plane(self, name: str, plane: Tensor, selection: Selection) -> Tensor:
        if plane.shape[:1] != (len(self),):
            raise InputError(f"extra {name!r} needs {len(self)} rows, not {tuple(plane.shape)}")
        rows = apply_rows(plane.reshape(len(self), -1), selection, self.size)
        return rows.view(len(selection), *plane.shape[1:])


def _hull(span: Tensor, target: Tensor, representative: Tensor) -> Tensor:
    """Seconds from the first to the last of what every slot carries, or its representative's."""
    live = target >= 0
    slots = representative.numel()
    low = span.new_full((slots,), float("inf"))
    high = span.new_full((slots,), float("-inf"))
    low = low.scatter_reduce(0, target[live], span[live, 0], "amin")
    high = high.scatter_reduce(0, target[live], span[live, 1], "amax")
    hull = torch.stack([low, high], dim=1)
    return torch.where(low.isinf()[:, None], span[representative], hull)
