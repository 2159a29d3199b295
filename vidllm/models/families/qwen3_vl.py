"""Qwen3-VL and Qwen3.5: interleaved M-RoPE, times written before every frame.

Qwen3-VL has DeepStack; Qwen3.5 has none, and layers of linear attention between those of full
attention. Both have forms with a mixture of experts. None of this shows here: the hooks find it in
what the decoder is given, and in its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..hooks.vision_tower import Sight
from .family import Clip, floats_of, grid_from, grids_of
from .packed import PackedTower


class Qwen3VL(PackedTower):
    """Two frames are one of the grid; 2 x 2 patches make a token."""

    family = "Qwen3-VL"
    mrope = token_types = True
    stamp: ClassVar[str | None] = r"<\s*(\d+(?:\.\d+)?)\s*seconds\s*>"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them, or by the
        pace that the model is told."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        step = floats_of(inputs.get(self.pace)) if self.pace else None
        return self.grid_clips(ids, grids_of(grid, self.merge), step=step)
