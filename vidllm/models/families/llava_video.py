"""LLaVA-NeXT-Video: 1D positions, square frames, a tower with a CLS token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..hooks.vision_tower import Sight
from .family import Clip
from .square_frames import SquareFrames


class LlavaNextVideo(SquareFrames):
    """Frames of 24 x 24 patches become 12 x 12 tokens, and nothing stands behind a video."""

    beside = ("pixel_values_videos",)

    @property
    def cells(self) -> int:
        """Tokens along a side of a frame."""
        return self.side // int(self.config.spatial_pool_stride)

    @property
    def size(self) -> int:
        """Tokens of a frame."""
        return self.cells**2

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds are not told: frames count as seconds."""
        made = (inputs.get("mm_encoder_outputs") or {}).get("video")
        if found := self.given(inputs):
            return self.frames(ids, *found["pixel_values_videos"].shape[:2])
        return [] if made is None else self.frames(ids, *self.shape(made.pooler_output))

    def shape(self, features: Tensor) -> tuple[int, int]:
        """Videos, and frames of each, that the projector gave (V, T * N, D) of."""
        return len(features), features.shape[1] // self.size

    def frames(self, ids: Tensor, videos: int, frames: int) -> list[Clip]:
        return self.grid_clips(ids, [(frames, self.cells, self.cells)] * videos)

    def pooled(self, planes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means of squares."""
        found, stride = {}, self.side // self.cells
        for name, plane in planes.items():
            wide = plane.reshape(len(plane), self.side**2, -1).mT
            small = F.avg_pool2d(wide.unflatten(2, (self.side, self.side)), stride)
            found[name] = small.movedim(1, -1).flatten(0, 2).reshape(-1, *plane.shape[2:])
        return found
