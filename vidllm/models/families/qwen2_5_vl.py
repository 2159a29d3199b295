"""Qwen2.5-VL: M-RoPE, windowed vision tower, seconds told by the temporal positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .family import Adapter, Clip, floats_of, grid_from, grids_of


class Qwen25VL(Adapter):
    """Two frames are one of the grid; 2 x 2 patches make a token."""

    family = "Qwen2.5-VL"
    tower_name = "visual"
    mrope = token_types = True
    pace = "second_per_grid_ts"

    @property
    def merge(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.vision_config.spatial_merge_size)

    @property
    def attention(self) -> nn.Module:
        """Of the last block that attends to whole frames."""
        tower = cast(Any, self.tower)
        return cast(nn.Module, tower.blocks[max(tower.fullatt_block_indexes)].attn)

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds by the pace that the model is told."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        grids = grids_of(grid, self.merge)
        return self.grid_clips(ids, grids, step=floats_of(inputs.get(self.pace)))

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Back from the order of windows to that of the prompt."""
        planes = fold_groups(packed_signals(sight), self.merge**2)
        order = torch.argsort(self._windows(sight.inputs["grid_thw"]))
        return {name: plane[order.to(plane.device)] for name, plane in planes.items()}

    def _windows(self, grid: Tensor) -> Tensor:
        tower = cast(Any, self.tower)
        if hasattr(tower, "get_window_index"):  # transformers 5.0
            return torch.as_tensor(tower.get_window_index(grid)[0])
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(
            grid,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return index
