"""ERNIE-4.5-VL: M-RoPE, experts for pictures and for text, two frames behind the tower make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .family import Adapter, Clip, grid_from, grids_of


class Ernie45VL(Adapter):
    """2 x 2 patches of two frames make a token; what its expert is, goes with it."""

    tower_name = "vision_tower"
    mrope = True

    @property
    def merge(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.vision_config.spatial_merge_size)

    @property
    def frames(self) -> int:
        """Frames of a token."""
        return int(self.config.vision_config.temporal_merge_size)

    @property
    def attention(self) -> nn.Module:
        """Of the last block."""
        return cast(nn.Module, cast(Any, self.tower).blocks[-1].attn)

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds are not told in the prompt: it has them drawn into the frames."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        grids = [(t // self.frames, h, w) for t, h, w in grids_of(grid, self.merge)]
        return self.grid_clips(ids, grids)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, which stand side by side in each of its frames."""
        planes, videos = fold_groups(packed_signals(sight), self.merge**2), []
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
