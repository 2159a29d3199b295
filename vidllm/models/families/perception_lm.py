"""PerceptionLM: 1D positions, square frames; its tower is one of timm and tells no signals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..hooks.pruning import DECODER_SIGNALS
from ..hooks.vision_tower import Sight
from .family import Adapter, Clip


class PerceptionLM(Adapter):
    """Frames of 32 x 32 patches become 16 x 16 tokens."""

    tower_name = "vision_tower"

    @property
    def provides(self) -> tuple[str, ...]:
        """Nothing of the tower."""
        return DECODER_SIGNALS

    @property
    def attention(self) -> nn.Module:
        """Of no layer, as none is watched."""
        return self.tower

    def whole_grid(self) -> str:
        """The layers are timm's."""
        return "has a tower of timm, whose layers are not known here"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds are not told: frames count as seconds. How many tokens a frame has, the prompt
        tells: pixels stand there as often as rows do."""
        pixels = inputs.get("pixel_values_videos")
        if pixels is None:
            return []
        videos, frames = pixels.shape[:2]
        side = math.isqrt(int((ids == self.video_token).sum()) // max(1, videos * frames))
        return self.grid_clips(ids, [(frames, side, side)] * videos)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """None."""
        return {}
