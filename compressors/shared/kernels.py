"""Arithmetic on all rows of a clip, in float32 whatever their dtype, block by block.

A full-size temporary costs far more than what is computed with it, so that nothing here makes one:
rows are read, and cast, as many at a time as stay in the cache. On a GPU, where blocks cost, one
block is everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vidllm.tokens.video_tokens import take

# Numbers of a block, 512 KiB in float32: two of them stay in a core's own cache.
_BLOCK = 2**17
# Of the summed squared lengths of two rows, the square of a distance that counts as none.
_EQUAL = 4e-6
#: The least norm that rows are divided by, so that rows of zeros stay zeros.
TINY = torch.finfo(torch.float32).tiny


class Lazy(Protocol):
    """Rows (N, D) that are made when they are asked for."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def rows(self, index: Tensor) -> Tensor:
        """(M, D) rows `index` (M,)."""
        ...


def step_of(x: Tensor | Lazy) -> int:
    """How many rows of (N, D) are one block."""
    whole = x.device.type == "cuda"
    return max(1, len(x) if whole else _BLOCK // max(1, x.shape[-1]))


def blocks(
    x: Tensor | Lazy, index: Tensor | None = None, step: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows x[index] of (N, D), or all, a block at a time: where they belong, and the rows.

    They are views where the indices follow one another, else copies; in the dtype of `x`.
    """
    count = len(x) if index is None else len(index)
    step = step_of(x) if step is None else max(1, step)
    if not isinstance(x, Tensor):
        every = torch.arange(count) if index is None else index
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield slice(start, stop), x.rows(every[start:stop])
        return
    x = x.detach()
    if index is not None and x.is_cuda:
        x, index = x.index_select(0, index.to(x.device)), None
    number = [] if index is None else index.tolist()
    breaks = [] if index is None else [0, *(index.diff() != 1).cumsum(0).tolist()]
    for start in range(0, count, step):
        stop = min(start + step, count)
        if index is None:
            yield slice(start, stop), x[start:stop]
        elif breaks[start] == breaks[stop - 1]:
            yield slice(start, stop), x[number[start] : number[start] + stop - start]
        else:
            yield slice(start, stop), x.index_select(0, index[start:stop])


def batches(items: Sequence[int], numbers: int, whole: bool) -> Iterator[Sequence[int]]:
    """Items of so many numbers each, as many at a time as stay in the cache, or `whole`."""
    step = len(items) if whole else max(1, 2 * _BLOCK // max(1, numbers))
    return (items[first : first + step] for first in range(0, len(items), step))


def unit_into(out: Tensor, rows: Tensor, floor: float) -> Tensor:
    """A block's rows of length 1 into float32 `out`; a norm counts as `floor` at least."""
    if rows.dtype != torch.float32:
        rows = out.copy_(rows)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.div(rows, norm.clamp_(min=floor), out=out)


def row_cosine(x: Tensor | Lazy, left: Tensor, right: Tensor, floor: float = 1e-8) -> Tensor:
    """(M,) cosine of row left[m] with row right[m] of (N, D); 0 where a row is zero.

    It is quickest where both lists mostly count up by one.
    """
    result = torch.empty(len(left), device=x.device)
    one, two = torch.empty(2, min(step_of(x), max(1, len(left))), x.shape[1], device=x.device)
    for (where, a), (_, b) in zip(blocks(x, left), blocks(x, right), strict=True):
        product = unit_into(one[: len(a)], a, floor)
        product.mul_(unit_into(two[: len(b)], b, floor))
        torch.sum(product, dim=1, out=result[where])
    return result


def row_distance(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(M,) Euclidean distance of row left[m] from row right[m] of (N, D)."""
    result = torch.empty(len(left), device=x.device)
    one, two = torch.empty(2, min(step_of(x), max(1, len(left))), x.shape[1], device=x.device)
    for (where, a), (_, b) in zip(blocks(x, left), blocks(x, right), strict=True):
        away = torch.sub(one[: len(a)].copy_(a), b, out=two[: len(a)])
        torch.linalg.vector_norm(away, dim=1, out=result[where])
    return result


def mean(x: Tensor, index: Tensor) -> Tensor:
    """(D,) mean of the rows x[index] in float32, cast some columns at a time."""
    rows = take(x.detach(), index)
    if rows.dtype == torch.float32 or rows.is_cuda:
        return rows.float().mean(dim=0)
    columns = rows.split(max(64, _BLOCK // max(1, len(rows))), dim=1)
    return torch.cat([some.float().mean(dim=0) for some in columns])


def cosines(x: Tensor, anchors: Tensor, floor: float) -> Iterator[tuple[slice, Tensor]]:
    """Of a block of (N, D) rows after the other the cosines (n, A) with unit rows (A, D)."""
    step = 4 * step_of(x)
    scratch = torch.empty(min(step, max(1, len(x))), x.shape[1], device=x.device)
    for where, rows in blocks(x, step=step):
        yield where, unit_into(scratch[: len(rows)], rows, floor) @ anchors.T


def placed(x: Tensor, stay: Tensor, made: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Rows (K, D) of the tokens that `stay` (K,), with new features in the place of some.

    Args:
        made: of tokens that stay (A,) the new rows (A, D), in several parts.
    """
    number = torch.full((len(x),), -1)
    number[stay] = torch.arange(len(stay))
    result = x.index_select(0, stay.to(x.device))
    for tokens, rows in made:
        result.index_copy_(0, number[tokens].to(x.device), rows.to(x.dtype))
    return result


def variance(x: Tensor) -> Tensor:
    """(D,) float64 population variance of the columns of (N, D), about the first row.

    A mean far from 0 costs no digits, as the first row is taken off before anything is squared.
    """
    total, squares = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
    start = x[0].detach().float()
    scratch = torch.empty(min(len(x), step_of(x)), x.shape[1], device=x.device)
    for _, rows in blocks(x):
        away = torch.sub(rows, start, out=scratch[: len(rows)])
        total += away.sum(dim=0)
        squares += away.square_().sum(dim=0)
    return (squares - total.square() / len(x)) / len(x)


def distances(x: Tensor) -> Tensor:
    """(N, N) Euclidean distances of (N, D) rows, by a product of the rows about their mean.

    Equal rows are exactly at 0. So are rows whose distance is below 0.002 of their lengths about
    the mean, where a product in float32 tells nothing.
    """
    rows = x.detach().float()
    rows = rows - rows.mean(dim=0)
    product = rows @ rows.T
    length = product.diagonal()
    both = length[:, None] + length
    square = torch.sub(both, product, alpha=2)
    return square.masked_fill_(square < _EQUAL * both, 0.0).sqrt_()
