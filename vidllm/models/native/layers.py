"""Small layers of the native model: how time and size are told to the decoder."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from .config import NativeConfig


class TimeProjection(nn.Linear):
    """From time features to the LLM's width; how it starts is its own (see `reset_parameters`).

    The initialiser of transformers passes over modules without parameters of their own, so this
    must be the layer and not its parent.
    """

    def __init__(self, width: int, dim: int, ends: bool) -> None:
        self.ends = ends
        super().__init__(width, dim, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Two ends: start as their mean, as large as a token. Else: start as nothing at all."""
        self.weight.zero_()
        if self.ends:
            self.weight += 1.25 * torch.cat([torch.eye(self.out_features)] * 2, dim=1)


class TimeEmbedding(nn.Module):
    """Seconds (start, end) of every token to vectors of the LLM's width."""

    def __init__(self, config: NativeConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.relative = config.time_code == "relative"
        self.project = TimeProjection(2 * dim if self.relative else 128, dim, self.relative)

    def forward(self, span: Tensor, duration: Tensor, table: Tensor) -> Tensor:
        """`span` (…, L, 2) and `duration` (…) seconds, `table` (V, D) → (…, L, D)."""
        if not self.relative:
            rates = torch.exp(torch.linspace(0, -math.log(8192.0), 32, device=span.device))
            angle = span.float()[..., None] * rates
            waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
            return cast(Tensor, self.project(waves.to(table.dtype)))
        last = self.config.time_tokens - 1
        place = (last * span / duration[..., None, None]).clamp(0, last).float()
        low = place.floor().clamp(max=last - 1)
        weight = (place - low)[..., None].to(table.dtype)
        first = self.config.time_token_start
        rows = table[first : first + self.config.time_tokens]
        low_row = low.long()
        mixed = rows[low_row] * (1 - weight) + rows[low_row + 1] * weight
        return cast(Tensor, self.project(mixed.flatten(-2)))


class VideoNorm(nn.LayerNorm):
    """Brings video tokens to the size of word embeddings, so that their time is heard beside them
    and the decoder's layers can change them."""

    size: float = 0.1

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.size)
        nn.init.zeros_(self.bias)
