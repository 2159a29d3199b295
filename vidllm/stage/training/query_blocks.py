"""Attention for training on a CPU: by plain products, one block of queries after the other.

The way back of torch's fused kernel is slow on a CPU, and whole products compute the half that a
causal mask hides. A block of queries meets the keys up to its last one alone, and its scores stay
in the cache between products and softmax. Measured on one thread, forward and backward of a layer
in bfloat16: 73 ms where the fused kernel took 184 (1,224 tokens) and 13 where it took 33 (456).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

#: As transformers know it, for `set_attn_implementation`.
QUERY_BLOCKS = "vidllm-query-blocks"
#: Queries of a block: 256 was fastest of 32 to 512, at 328 to 1,224 tokens.
BLOCK = 256


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Attention (B, H, L, d) of queries (B, H, L, d) to keys and values (B, h, S, d).

    Args:
        mask: (B or 1, H or 1, L, S), added to the scores; its least finite number hides.
        causal: no query sees a key behind its own place. A `mask` must say so too: here it only
            means that those products are not made.
        dropout: share of the weights that are dropped.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    left = []
    for first in range(0, length, BLOCK):
        last = min(length, first + BLOCK)
        seen = before + last if causal else key.shape[2]
        scores = (query[:, :, first:last] * scale) @ key[:, :, :seen].mT
        if mask is not None:
            # The least float32 is an infinity in bfloat16, and a row of these would have no sum.
            part = mask[:, :, first:last, :seen].to(scores.dtype)
            scores = scores + part.clamp(min=torch.finfo(scores.dtype).min)
        elif causal:
            hidden = torch.ones(last - first, seen, dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(hidden.triu(before + first + 1), -torch.inf)
        weights = F.dropout(scores.softmax(-1), dropout) if dropout else scores.softmax(-1)
        left.append(weights @ value[:, :, :seen])
    return torch.cat(left, dim=2) if len(left) > 1 else left[0]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """`attend` as an attention of transformers, (B, H, L, d) to (B, L, H, d)."""
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    out = attend(query, key, value, attention_mask, scale=scaling, causal=causal, dropout=dropout)
    return out.transpose(1, 2), None


AttentionInterface.register(QUERY_BLOCKS, _attention)
AttentionMaskInterface.register(QUERY_BLOCKS, eager_mask)
