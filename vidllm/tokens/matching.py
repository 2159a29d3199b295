"""Bipartite soft matching: rows of one half join their most similar row of the other half.

The arithmetic that token-merging compressors and vision towers share (ToMe, arXiv 2210.09461;
TempMe, arXiv 2409.01156).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

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
