"""Bipartite soft matching: rows of one half join their most similar row of the other half.

The arithmetic that token-merging compressors and vision towers share (ToMe, arXiv 2210.09461;
TempMe, arXiv 2409.01156), with TempMe's merge and schedule. Floor 1: torch and errors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vidllm.errors import InputError

# Similarities held at once; a larger matrix is gone through in blocks of sources.
_BLOCK = 2**24


class Pairs(NamedTuple):
    """What a matching decided, as indices into N.

    Attributes:
        kept: (B, S - r) sources that stay, by falling score.
        merged: (B, r) sources that merge, by falling score.
        into: (B, r) the destination of each of them.
    """

    kept: Tensor
    merged: Tensor
    into: Tensor


@torch.no_grad()
def match(
    metric: Tensor | Callable[[Tensor], Tensor],
    r: int,
    source: Tensor,
    destination: Tensor,
    padding: Tensor | None = None,
) -> Pairs:
    """Match every source with its best destination by cosine, and merge the r best pairs.

    Equal scores: the earlier destination, the earlier source. A row of zeros scores 0 (the
    authors of ToMe and TempMe divide by the bare norm and spread NaN).

    Args:
        metric: (B, N, D) what is compared, or what gives some rows (B, M, D) of it.
        r: merges wanted, at most len(source) happen.
        source, destination: (S,) and (E,) indices into N, without a common one.
        padding: (B, N) bool, rows that stand for nothing: as sources they merge first, as
            destinations they are the last choice, so that what they hold decides nothing.
    """
    if isinstance(metric, Tensor):
        source, destination = source.to(metric.device), destination.to(metric.device)
    r = max(0, min(r, source.numel())) if destination.numel() else 0
    if r == 0 and isinstance(metric, Tensor):
        none = source.new_empty(metric.shape[0], 0)
        return Pairs(source.expand(metric.shape[0], -1), none, none)
    to = _unit(metric, destination).transpose(1, 2)
    room = to.shape[0] * max(destination.numel(), 16 * to.shape[1])
    best, choice = [], []
    for some in source.split(max(1, _BLOCK // max(1, room))):
        scores = _unit(metric, some) @ to
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, destination], -2.0)
            scores = scores.masked_fill(padding[:, some, None], 2.0)
        high, where = scores.max(dim=-1)
        best.append(high)
        choice.append(where)
    order = torch.cat(best, 1).argsort(dim=-1, descending=True, stable=True)
    merged = order[:, :r]
    into = destination[torch.cat(choice, 1).gather(1, merged)]
    return Pairs(source[order[:, r:]], source[merged], into)


def _unit(metric: Tensor | Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
    """Rows (B, M, D) of length 1, in float32 at least."""
    rows = _rows(metric, index) if isinstance(metric, Tensor) else metric(index)
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norm = exact.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(exact.dtype).tiny)
    return exact / norm if exact is rows else exact.div_(norm)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[:, index] of (B, N, D); a view where the indices on a CPU are evenly spaced."""
    if len(index) > 1 and not x.is_cuda:
        first, step = int(index[0]), int(index[1] - index[0])
        if step > 0 and torch.equal(index, torch.arange(first, first + len(index) * step, step)):
            return x[:, first : first + len(index) * step : step]
    return x[:, index]


def owners(stays: Tensor, pairs: Pairs) -> Tensor:
    """The output row (B, N) of every input row, where the rows `stays` (B, K) make the output."""
    count = stays.shape[1] + pairs.merged.shape[1]
    owner = stays.new_zeros(stays.shape[0], count)
    owner.scatter_(1, stays, torch.arange(stays.shape[1], device=stays.device).expand_as(stays))
    return owner.scatter(1, pairs.merged, owner.gather(1, pairs.into))


def weighted(x: Tensor, size: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Size-weighted means of the rows that share an owner, and their summed sizes.

    Args:
        x: (B, N, C). size: (B, N, 1), a row of size 0 adds nothing. owner: (B, N) output row.
        count: output rows K.

    Returns:
        (B, K, C) in the dtype of `x`, summed in float32 at least, and (B, K, 1).
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    weight = size.to(exact)
    index = owner[..., None]
    whole = weight.new_zeros(x.shape[0], count, 1).scatter_add(1, index, weight)
    total = weight.new_zeros(x.shape[0], count, x.shape[2])
    total = total.scatter_add(1, index.expand_as(x), x.to(exact) * weight)
    mean = total / whole.clamp(min=torch.finfo(exact).tiny)
    return mean.to(x.dtype), whole.to(size.dtype)


def check_shapes(x: Tensor, metric: Tensor, size: Tensor | None) -> None:
    """Refuse tensors that do not belong together.

    Raises:
        InputError: not x (B, N, C), metric (B, N, D) and size (B, N, 1).
    """
    if x.dim() != 3 or metric.dim() != 3 or x.shape[:2] != metric.shape[:2]:
        raise InputError(
            f"x and metric must be (B, N, C) and (B, N, D), not {tuple(x.shape)} and "
            f"{tuple(metric.shape)}"
        )
    if size is not None and size.shape != (*x.shape[:2], 1):
        raise InputError(f"size must be {(*x.shape[:2], 1)}, not {tuple(size.shape)}")


def merge(
    x: Tensor,
    metric: Tensor,
    size: Tensor | None = None,
    protected: int = 0,
    r: int = 0,
    *,
    padded: bool = False,
) -> tuple[Tensor, Tensor]:
    """TempMe's merge: even rows join odd ones, size-weighted, behind protected rows.

    Of the rows that are not protected, those at even places of the whole sequence are sources,
    the others destinations: positions 0, 2, .. behind an even number of protected rows, else
    1, 3, ... Only they are compared.

    Args:
        x: (B, N, C) tokens. metric: (B, N, D) features to compare.
        size: (B, N, 1) source tokens behind each row; None for ones.
        protected: rows at the front (CLS tokens) that never merge.
        r: rows to remove, at most (N - protected) // 2 happen.
        padded: rows of size 0 stand for nothing: what they hold decides nothing (see `match`).

    Returns:
        (B, N - r, C) and (B, N - r, 1): the protected rows, the sources that stay in their
        order, the destinations in theirs.

    Raises:
        InputError: shapes that do not fit, or more rows protected than there are.
    """
    check_shapes(x, metric, size)
    count = x.shape[1]
    if not 0 <= protected <= count:
        raise InputError(f"{protected} of {count} rows cannot be protected")
    sizes = torch.ones_like(x[..., :1]) if size is None else size
    r = min(r, (count - protected) // 2)
    if r <= 0:
        return x, sizes
    every = torch.arange(count, device=x.device)
    source = every[protected + protected % 2 :: 2]
    destination = every[protected + 1 - protected % 2 :: 2]
    padding = sizes[..., 0] == 0 if padded else None
    pairs = match(metric, r, source, destination, padding)
    rows = x.shape[0]
    front, back = every[:protected].expand(rows, -1), destination.expand(rows, -1)
    stays = torch.cat([front, pairs.kept.sort(dim=1).values, back], dim=1)
    return weighted(x, sizes, owners(stays, pairs), stays.shape[1])


class Step(NamedTuple):
    """One layer of TempMe's schedule, with the counts after it.

    Attributes:
        layer: number of the layer, from 0. frames: clips that the rows of a video stand for.
        cls_num: CLS tokens a row. tokens: tokens a row, CLS included.
        r0: tokens merged across clips where the layer joins clips, else inside a row.
        r1: tokens merged inside a row where the layer joins clips, else -1.
    """

    layer: int
    frames: int
    cls_num: int
    tokens: int
    r0: int
    r1: int


def schedule(
    tokens: int,
    frames: int = 12,
    layers: int = 12,
    merge_layers: Sequence[int] = (8, 9, 10),
    merge_frames: Sequence[int] = (2, 2, 3),
    proportions: tuple[float, float] = (0.3, 0.1),
    tome_r: int = 2,
) -> list[Step]:
    """How many tokens TempMe merges at every layer (its defaults are the paper's for CLIP).

    Before the first of `merge_layers` a layer removes `tome_r` tokens of every frame. A layer of
    `merge_layers` joins M neighbouring clips, merges across them, r0 = min((tok - c) M // 2,
    floor(tok M p0)), and inside the joined row after attention, r1 = min(((tok - c) M - r0) // 2,
    floor((tok M - r0) p1)); later layers merge min((tok - c) // 2, floor(tok p1)). Here tok and
    c are the tokens and CLS tokens of a row before the layer.

    Args:
        tokens: tokens of a frame, CLS included. frames: frames of a video; the authors need the
            product of `merge_frames`, a multiple ends with several rows here.

    Raises:
        InputError: frames that do not divide into clips, or lists that do not fit.
    """
    if len(merge_layers) != len(merge_frames) or sorted(set(merge_layers)) != list(merge_layers):
        raise InputError("merge_layers must ascend, with one number of frames in merge_frames each")
    if tokens < 1 or frames < 1 or any(m < 1 for m in merge_frames):
        raise InputError("tokens, frames and merge_frames must be at least 1")
    joins = dict(zip(merge_layers, merge_frames, strict=True))
    first = min(merge_layers, default=layers)
    across, inside = proportions
    steps, cls_num = [], 1
    for layer in range(layers):
        m = joins.get(layer, 1)
        if frames % m:
            raise InputError(
                f"{frames} clips cannot be joined by {m} at layer {layer}: sample a multiple of "
                "the product of merge_frames"
            )
        frames, cls_num, tokens = frames // m, cls_num * m, tokens * m
        patches = tokens - cls_num
        if m > 1:
            r0 = min(patches // 2, int(tokens * across))
            r1 = min((patches - r0) // 2, int((tokens - r0) * inside))
        else:
            wanted = tome_r if layer < first else int(tokens * inside)
            r0, r1 = min(patches // 2, wanted), -1
        tokens -= r0 + max(r1, 0)
        steps.append(Step(layer, frames, cls_num, tokens, r0, r1))
    return steps
