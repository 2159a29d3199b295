"""A decoder's rotary tables, for positions that differ from layer to layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vidllm.compressors.shared.positions import between, turn
from vidllm.errors import InputError


class Rotary:
    """The rotary embedding of a decoder of transformers, 1D or sectioned M-RoPE.

    The model's own module makes the tables, so that its base, scaling and sections hold. It must
    turn the pairs (j, j + r/2), as Llama, Mistral and Qwen do.

    Args:
        llm: the language model.

    Raises:
        InputError: a decoder without rotary tables, or one whose tables change with the length.
    """

    def __init__(self, llm: PreTrainedModel) -> None:
        self.module: Any = getattr(llm.base_model, "rotary_emb", None)
        if self.module is None or getattr(self.module, "rope_type", "") in ("dynamic", "longrope"):
            raise InputError(
                "this decoder has no fixed rotary embedding, so keys cannot be turned to other "
                "positions: leave out positions=contiguous"
            )
        self.device = llm.device

    def tables(self, position: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, r) of positions (B, S), or (3, B, S) for M-RoPE.

        Text of M-RoPE may come as (B, S), the same on all axes.
        """
        like = torch.empty(0, dtype=dtype, device=self.device)
        return cast(tuple[Tensor, Tensor], self.module(like, position.to(self.device)))

    def move(self, keys: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys (B, H, S, d), turned from positions old to new, as in `tables` (PIE).

        One table serves all rows and one position all entries where B or S is 1.
        """
        cos, sin = between(self.tables(old), self.tables(new))
        return turn(keys, cos.to(keys.device), sin.to(keys.device))
