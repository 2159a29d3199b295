"""Where cached tokens stand after others left: a decoder's rotary tables, and closing gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vidllm.compressors.shared.positions import between, contiguous, turn
from vidllm.errors import InputError

from .kv_cache import Prefill


class Rotary:
    """The rotary embedding of a decoder of transformers, 1D or sectioned M-RoPE.

    The model's own module makes the tables, so that its base, scaling and sections hold. It must
    turn the pairs (j, j + r/2), as Llama, Mistral and Qwen do.

    Args:
        llm: the language model, with or without its head.

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

    def turns(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, S, r) that turn keys from old positions to new ones (PIE)."""
        return between(self.tables(old), self.tables(new))

    def move(self, keys: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys (B, H, S, d), turned from positions old to new, as in `tables`.

        One table serves all rows and one position all entries where B or S is 1.
        """
        cos, sin = self.turns(old, new)
        return turn(keys, cos.to(keys.device), sin.to(keys.device))


@torch.inference_mode()
def close_gaps(prefill: Prefill, llm: PreTrainedModel) -> Prefill:
    """Turn the cached keys of every layer so that its entries stand at contiguous positions.

    Layers that hold different entries have different positions from then on; text that follows
    stands right behind what its layer holds (PIE, see `vidllm.compressors.shared.positions`).

    Args:
        prefill: with the `places` of its tokens; it is used up. llm: its language model.

    Raises:
        InputError: a decoder without fixed rotary tables, or positions that moved before.
    """
    if prefill.shift:
        raise InputError("positions moved before this: give contiguous to one method only")
    rotary, shift = Rotary(llm), []
    is_video = torch.zeros(prefill.length, dtype=torch.bool)
    is_video[prefill.video] = True
    whole = torch.arange(prefill.length)
    for number, layer in enumerate(cast(Any, prefill.cache).layers):
        alive = prefill.alive[number] if prefill.alive else whole
        old, new = prefill.places[..., alive], contiguous(prefill.places, alive, is_video)
        if not torch.equal(old, new):
            layer.keys = rotary.move(layer.keys, old[..., None, :], new[..., None, :])
        shift.append(prefill.next_position - 1 - int(new.max()))
    return replace(prefill, shift=shift)
