"""LLaVA-OneVision: 1D positions, pooled frames, a newline token behind every video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..hooks.vision_tower import Sight
from .family import Clip
from .square_frames import SquareFrames


class LlavaOnevision(SquareFrames):
    """Frames of 27 x 27 patches become 14 x 14 tokens; the newline is never touched."""

    family = "LLaVA-OneVision"

    @property
    def cells(self) -> int:
        """Tokens along a side of a frame."""
        return math.ceil(self.side / 2)

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

    def pooled(self, planes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Between patches."""
        found = {}
        for name, plane in planes.items():
            wide = plane.unflatten(1, (self.side, self.side))
            wide = wide[:, None] if wide.dim() == 3 else wide.movedim(-1, 1)
            size = [self.cells, self.cells]
            small = F.interpolate(wide, size=size, mode="bilinear").movedim(1, -1)
            found[name] = small.flatten(0, 2) if plane.dim() == 3 else small.flatten()
        return found
