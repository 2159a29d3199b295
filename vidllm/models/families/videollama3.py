"""VideoLLaMA3: 1D positions, its own choice of tokens before ours, times before every frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..hooks.vision_tower import Sight, packed_signals
from .family import Adapter, Clip, grid_from, grids_of


class VideoLlama3(Adapter):
    """What its processor left out (`video_compression_mask`) stays out."""

    family = "VideoLLaMA3"
    tower_name = "vision_model"
    stamp = r"Time\s*(\d+(?:\.\d+)?)\s*s:"

    @property
    def attention(self) -> nn.Module:
        """Of the last layer."""
        return cast(nn.Module, cast(Any, self.tower).encoder.layers[-1].self_attn)

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        sides = torch.as_tensor(grid_from(inputs, sight, "merge_sizes")).tolist()
        grids = grids_of(grid, sides)
        mask, present = inputs.get("video_compression_mask"), None
        if mask is not None:
            sizes = [t * h * w for t, h, w in grids]
            every = max(1, len(mask) // sum(sizes))  # as often as rows stand in the batch
            parts = torch.as_tensor(mask).cpu().bool()[::every].split(sizes)
            present = [torch.nonzero(part).flatten() for part in parts]
        return self.grid_clips(ids, grids, present=present)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, which stand side by side."""
        tower, planes = sight.inputs, packed_signals(sight)
        counts = torch.as_tensor(tower["grid_thw"]).prod(-1).tolist()
        sides = torch.as_tensor(tower["merge_sizes"]).tolist()
        return {
            name: torch.cat(
                [
                    part.unflatten(0, (-1, side * side)).mean(1)
                    for part, side in zip(plane.split(counts), sides, strict=True)
                ]
            )
            for name, plane in planes.items()
        }
