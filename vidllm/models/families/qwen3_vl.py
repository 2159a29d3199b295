"""Qwen3-VL and Qwen3.5: interleaved M-RoPE, times written before every frame.

Qwen3-VL has DeepStack; Qwen3.5 has none, and layers of linear attention between those of full
attention. Both have forms with a mixture of experts. None of this shows here: the hooks find it in
what the decoder is given, and in its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .family import Adapter, Clip, floats_of, grid_from, grids_of


class Qwen3VL(Adapter):
    """Two frames are one of the grid; 2 x 2 patches make a token."""

    family = "Qwen3-VL"
    tower_name = "visual"
    mrope = token_types = True
    stamp: ClassVar[str | None] = r"<\s*(\d+(?:\.\d+)?)\s*seconds\s*>"

    @property
    def attention(self) -> nn.Module:
        """Of the last block."""
        return cast(nn.Module, cast(Any, self.tower).blocks[-1].attn)

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them, or by the
        pace that the model is told."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        merge = int(self.config.vision_config.spatial_merge_size)
        step = floats_of(inputs.get(self.pace)) if self.pace else None
        return self.grid_clips(ids, grids_of(grid, merge), step=step)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, which stand side by side."""
        merge = int(self.config.vision_config.spatial_merge_size)
        return fold_groups(packed_signals(sight), merge**2)
