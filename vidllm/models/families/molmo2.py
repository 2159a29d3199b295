"""Molmo 2: 1D positions, pictures that see each other both ways, a time before every frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..hooks.vision_tower import Sight, dense_signals
from .family import Adapter, Clip


class Molmo2(Adapter):
    """Tokens are pooled from patches that the processor names. The library does not take pictures
    beside a video."""

    tower_name = "vision_tower"
    beside = ("video_grids", "video_token_pooling")
    stamp = r"(\d+(?:\.\d+)?)\s*<[^<>]*>$"

    @property
    def attention(self) -> nn.Module:
        """Of the last layer."""
        return cast(nn.Module, cast(Any, self.tower).layers[-1].self_attn)

    def whole_grid(self) -> str:
        """Its own reason."""
        return "pools patches that its processor names, which other tokens may share"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them."""
        found = self.given(inputs)
        if not found:
            return []
        return self.grid_clips(ids, [(t, h, w) for t, h, w in found["video_grids"].tolist()])

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches that a token was pooled from."""
        index = self._given.get()["video_token_pooling"].to(sight.hidden.device)
        there, planes = (index >= 0).float(), {}
        for name, plane in dense_signals(sight, sight.hidden.shape[1]).items():
            rows = plane.flatten(0, 1)[index.clamp(min=0)]
            weight = there if rows.dim() == 2 else there[..., None]
            planes[name] = (rows * weight).sum(1) / weight.sum(1).clamp(min=1)
        return planes
