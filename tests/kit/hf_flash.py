"""FlashAttention without a GPU: its two functions by plain products, behind the library's own code.

The library prepares masks, takes padding out, finds packed sequences and calls `flash_attn_func` or
`flash_attn_varlen_func` of the package flash-attn; only these two stand here, by their documented
meaning: (B, S, H, d) or packed (N, H, d), causal from the last key backwards, no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import modeling_flash_attention_utils as library
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

NAME = "flash_by_hand"
#: How often each of the two was called.
CALLS = {"whole": 0, "packed": 0}


def _one(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """(S, H, d) of queries (S, H, d), keys and values (K, H_kv, d)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k).float() * (scale or q.shape[-1] ** -0.5)
    if causal:
        late = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)).logical_not()
        logits = logits.masked_fill(late, -torch.inf)
    return torch.einsum("hqk,khd->qhd", torch.softmax(logits, dim=-1).to(v.dtype), v)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """As flash-attn's."""
    assert window_size == (-1, -1) and not dropout_p and not softcap
    CALLS["whole"] += 1
    return torch.stack([_one(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """As flash-attn's."""
    assert window_size == (-1, -1) and not dropout_p and not softcap
    CALLS["packed"] += 1
    out = torch.zeros_like(q)
    bounds = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    for (a, b), (c, d) in bounds:
        assert b - a <= int(max_seqlen_q) and d - c <= int(max_seqlen_k)
        out[a:b] = _one(q[a:b], k[c:d], v[c:d], softmax_scale, causal)
    return out


@contextmanager
def flash_by_hand() -> Iterator[str]:
    """The name of an attention: the library's FlashAttention on the two functions here."""

    def found(*_: Any, **__: Any) -> tuple[Any, ...]:
        pads = (library._pad_input, library._unpad_input)
        return (flash_attn_func, flash_attn_varlen_func, None, *pads)

    AttentionInterface.register(NAME, flash_attention_forward)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_lazy_imports", found)
        patch.setattr(library, "_loaded_implementation", None)
        yield NAME
