"""The KV cache behind a prefill: which of the prompt's tokens every decoder layer still holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass
class Prefill:
    """The start of one prompt in the KV cache, for the questions that come behind it.

    Attributes:
        cache: holds P positions, in deep layers fewer where tokens were pruned on the way.
        length: P.
        next_position: where the text goes on, counted in the uncompressed sequence.
        alive: for every decoder layer the positions 0..P-1 that its cache holds, (A,) long;
            empty when all layers hold all of them.
        video: the positions 0..P-1 of video tokens.
        kept: the video tokens that are left after pruning on the way; None without.
        places: (P,) where each of them stands for the rotary embedding, or (3, P) for M-RoPE.
        shift: for every decoder layer how far the positions of what comes next have moved back;
            empty when they have not.
    """

    cache: DynamicCache
    length: int
    next_position: int
    alive: list[Tensor] = field(default_factory=list)
    video: Tensor = field(default_factory=_none)
    kept: VideoTokens | None = None
    places: Tensor = field(default_factory=_none)
    shift: list[int] = field(default_factory=list)

    def without_last(self) -> Prefill:
        """The same but for its last position, whose logits are to be computed."""
        for layer in cast(Any, self.cache).layers:
            layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]
        alive = [row[row < self.length - 1] for row in self.alive]
        return replace(
            self,
            length=self.length - 1,
            next_position=self.next_position - 1,
            alive=alive,
            places=self.places[..., : self.length - 1],
        )

    def video_per_layer(self) -> list[int]:
        """Video tokens in the cache of every layer; empty when nothing was pruned on the way."""
        return [int(torch.isin(self.video, alive).sum()) for alive in self.alive]


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model of transformers."""
    return cast(nn.ModuleList, llm.base_model.layers)


def check_entries(cache: Any, name: str) -> None:
    """Refuse caches whose entries are not those of the whole prompt, one a token.

    Args:
        name: of the method that takes entries out.

    Raises:
        InputError: a layer with a sliding window, or of another kind than the default.
    """
    layers = list(getattr(cache, "layers", ()))
    if any(getattr(layer, "is_sliding", False) for layer in layers):
        raise InputError(
            f"{name} needs a decoder that attends to the whole prompt in every layer: this one "
            "has sliding windows"
        )
    if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
        raise InputError(f"{name} needs the default dynamic cache")
