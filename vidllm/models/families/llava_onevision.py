"""LLaVA-OneVision: 1D positions, pooled frames, a newline token behind every video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks.vision_tower import Sight, dense_signals
from .family import Adapter, Clip


class LlavaOnevision(Adapter):
    """Frames of 27 x 27 patches become 14 x 14 tokens; the newline is never touched."""

    family = "LLaVA-OneVision"
    tower_name = "vision_tower"
    merging = "pooled"

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def attention(self) -> nn.Module:
        """Of the last layer; of the last but one where the tower has a CLS token."""
        layers = [m for m in self.tower.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
        layers = [m for m in layers if hasattr(m, "num_heads")]
        # An attention pooling head has fused projections, so it is not among them.
        cls = self.config.vision_feature_select_strategy == "default"
        return layers[max(-2 if cls else -1, -len(layers))]

    @property
    def cells(self) -> int:
        """Tokens along a side of a frame."""
        return math.ceil(self.side / 2)

    def whole_grid(self) -> str:
        """Empty but for checkpoints that read their tower in another way."""
        layer = self.config.vision_feature_layer
        if layer != -1:
            return f"reads layer {layer} of its tower, not the last"
        full = self.config.vision_feature_select_strategy == "full"
        return "" if full else "leaves out the CLS token of its tower"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds are not told: frames count as seconds."""
        side = self.cells
        pixels = inputs.get("pixel_values_videos")
        if pixels is not None:
            count, frames = pixels.shape[:2]
        elif (made := (inputs.get("mm_encoder_outputs") or {}).get("video")) is not None:
            frames = (made.pooler_output.shape[1] - 1) // side**2
            count = len(made.pooler_output)
            if sight is not None:
                count = len(sight.inputs["pixel_values"]) // frames
        else:
            return []
        grids = [(int(frames), side, side)] * int(count)
        return self.grid_clips(ids, grids, extra=1)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Pooled as the features are."""
        return self.pooled(dense_signals(sight, self.side**2))

    def pooled(self, planes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of patches (F, side², ...) to tokens (F * cells², ...)."""
        found = {}
        for name, plane in planes.items():
            wide = plane.unflatten(1, (self.side, self.side))
            wide = wide[:, None] if wide.dim() == 3 else wide.movedim(-1, 1)
            size = [self.cells, self.cells]
            small = F.interpolate(wide, size=size, mode="bilinear").movedim(1, -1)
            found[name] = small.flatten(0, 2) if plane.dim() == 3 else small.flatten()
        return found
