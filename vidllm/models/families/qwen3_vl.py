"""Qwen3-VL: interleaved M-RoPE, DeepStack, times written before every frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .family import Adapter, Clip, grid_from, grids_of


class Qwen3VL(Adapter):
    """Two frames are one of the grid; 2 x 2 patches make a token."""

    family = "Qwen3-VL"
    tower_name = "visual"
    stamp = r"<\s*(\d+(?:\.\d+)?)\s*seconds\s*>"

    @property
    def attention(self) -> nn.Module:
        """Of the last block."""
        return cast(nn.Module, cast(Any, self.tower).blocks[-1].attn)

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        merge = int(self.config.vision_config.spatial_merge_size)
        return self.grid_clips(ids, grids_of(grid, merge))

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, which stand side by side."""
        merge = int(self.config.vision_config.spatial_merge_size)
        return fold_groups(packed_signals(sight), merge**2)
