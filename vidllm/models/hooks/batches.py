"""Batches whose rows hold different numbers of tokens: packing them, and their attention masks.

SDPA takes a bool mask, eager attention an additive one, FlashAttention the columns that hold a
token (B, K), FlexAttention a block mask. The library keeps a function for each in its public
`AttentionMaskInterface`; here it is called for what a layer holds, so that any attention which is
registered there is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface


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


def cell_means(rows: Tensor, cell: Tensor) -> Tensor:
    """Means of rows (N, ...) with the same cell (N,), in the order of cells."""
    count = torch.bincount(cell).to(rows)
    total = rows.new_zeros(len(count), *rows.shape[1:]).index_add(0, cell, rows)
    return total / count.view(-1, *[1] * (rows.dim() - 1))


def layer_mask(attention: str, valid: Tensor, queries: int, states: Tensor) -> Any:
    """The mask of the last `queries` of K columns of a layer; None where it needs none.

    Args:
        attention: name of the attention. valid: (B, K) bool, columns that hold a token.
        states: of the layer, for their dtype and device.
    """
    columns, device = valid.shape[1], states.device
    return AttentionMaskInterface()[attention](
        batch_size=len(valid),
        q_length=queries,
        kv_length=columns,
        q_offset=columns - queries,
        attention_mask=valid.to(device, torch.bool),
        dtype=states.dtype,
        device=device,
    )
