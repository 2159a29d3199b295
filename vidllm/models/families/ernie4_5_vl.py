"""ERNIE-4.5-VL: M-RoPE, experts for pictures and for text, two frames behind the tower make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks.packed_row import PackedFacts
from ..hooks.vision_tower import Sight
from .family import Clip, grid_from, grids_of
from .packed import PackedTower


class Ernie45VL(PackedTower):
    """2 x 2 patches of two frames make a token; what its expert is, goes with it."""

    tower_name = "vision_tower"
    tower_end_name = "ln"
    mrope = True

    @property
    def frames(self) -> int:
        """Frames of a token."""
        return int(self.config.vision_config.temporal_merge_size)

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds are not told in the prompt: it has them drawn into the frames."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        return self.grid_clips(ids, self._grids(grid))

    def _grids(self, grid: Any) -> list[tuple[int, int, int]]:
        return [(t // self.frames, h, w) for t, h, w in grids_of(grid, self.merge)]

    def tower_videos(
        self, call: Mapping[str, Any]
    ) -> list[tuple[tuple[int, int, int], PackedFacts]]:
        """Frames are segments of their own; the patches of a token merge as one in both."""
        facts = PackedFacts(self.frames * self.merge**2, frames=self.frames)
        return [(grid, facts) for grid in self._grids(call["video_grid_thw"])]

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, which stand side by side in each of its frames."""
        planes, videos = super().signals(sight), []
        sizes = [(t, h * w) for t, h, w in grids_of(sight.inputs["grid_thw"], self.merge)]
        for plane in planes.values():
            parts = plane.split([t * n for t, n in sizes])
            videos.append(
                torch.cat(
                    [
                        part.unflatten(0, (t // self.frames, self.frames, n)).mean(1).flatten(0, 1)
                        for part, (t, n) in zip(parts, sizes, strict=True)
                    ]
                )
            )
        return dict(zip(planes, videos, strict=True))
