"""Batches whose rows hold different numbers of tokens: packing them, and their attention masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(rows: Sequence[Tensor], left: bool = True) -> tuple[Tensor, Tensor]:
    """Indices of unequal rows as one table.

    Args:
        rows: B index tensors (n,) long. left: padding stands before the tokens, else behind.

    Returns:
        (B, W) long with 0 where there is padding, and (B, W) bool, False there.
    """
    width = max((len(row) for row in rows), default=0)
    index = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for r, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        index[r, place] = row
        valid[r, place] = True
    return index, valid


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, W) of x (B, N, ...) or (1, N, ...) → (B, W, ...)."""
    index = index.to(x.device)
    if len(x) == 1:
        return x[0, index]
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def causal_mask(
    valid: Tensor, queries: int, *, additive: bool, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """The mask of the last `queries` of K columns.

    A padding token sees itself, so that no row is empty.

    Args:
        valid: (B, K) bool, columns that hold a token. additive: as eager attention wants it; else
            bool, or None where SDPA needs no mask.

    Returns:
        (B, 1, queries, K).
    """
    columns = valid.shape[1]
    if not additive and queries in (1, columns) and bool(valid.all()):
        return None
    own = torch.arange(columns - queries, columns)[:, None]
    other = torch.arange(columns)[None]
    allowed = (((other <= own) & valid[:, None].cpu()) | (other == own))[:, None].to(device)
    if not additive:
        return allowed
    zero = torch.zeros((), dtype=dtype, device=device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)
