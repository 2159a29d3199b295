"""Qwen2.5-VL: M-RoPE, windowed vision tower, seconds told by the temporal positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..hooks.packed_row import PackedFacts
from ..hooks.vision_tower import Sight
from .family import Clip, floats_of, grid_from, grids_of
from .packed import PackedTower, windows_of


class Qwen25VL(PackedTower):
    """Two frames are one of the grid; 2 x 2 patches make a token."""

    family = "Qwen2.5-VL"
    mrope = token_types = True
    pace = "second_per_grid_ts"

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

    def row_facts(self, grid: Tensor) -> PackedFacts:
        """With the windows that tokens are in."""
        tower, unit = cast(Any, self.tower), self.merge**2
        order, ends = windows_of(self.tower, grid)
        windows, each = torch.empty_like(order), (len(ends) - 1) // int(grid[0, 0])
        windows[order] = torch.searchsorted(ends[1:], torch.arange(len(order)) * unit, right=True)
        return PackedFacts(unit, windows=windows % each, full=tuple(tower.fullatt_block_indexes))

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Back from the order of windows to that of the prompt."""
        order = torch.argsort(windows_of(self.tower, sight.inputs["grid_thw"])[0])
        planes = super().signals(sight)
        return {name: plane[order.to(plane.device)] for name, plane in planes.items()}
