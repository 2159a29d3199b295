"""VideoLLaMA3: 1D positions, its own choice of tokens before ours, times before every frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks.packed_row import PackedFacts
from ..hooks.vision_tower import Sight, fold_parts, packed_signals
from .family import Adapter, Clip, grid_from, grids_of
from .packed import PackedTower, PackedVideo


class VideoLlama3(PackedTower):
    """What its processor left out (`video_compression_mask`) stays out, and does not enter a tower
    in which tokens merge."""

    family = "VideoLLaMA3"
    tower_name = "vision_model"
    tower_end_name = "post_layernorm"
    attention = Adapter.attention
    stamp = r"Time\s*(\d+(?:\.\d+)?)\s*s:"

    def given(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing; but what the processor left out of the next videos is noted for the tower."""
        self._given.set({"mask": inputs.get("video_compression_mask")})
        return {}

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Seconds as the prompt writes them, where a tokenizer is there to read them."""
        grid = grid_from(inputs, sight, "grid_thw")
        if grid is None:
            return []
        self.given(inputs)
        grids = grids_of(grid, torch.as_tensor(grid_from(inputs, sight, "merge_sizes")).tolist())
        return self.grid_clips(ids, grids, present=self._present(grids))

    def _present(self, grids: list[tuple[int, int, int]]) -> list[Tensor] | None:
        """For every video the tokens of its grid that its processor left."""
        mask = self._given.get().get("mask")
        sizes = [t * h * w for t, h, w in grids]
        whole = max(1, sum(sizes))
        if mask is None or len(mask) % whole:
            return None
        every = max(1, len(mask) // whole)  # as often as rows stand in the batch
        parts = torch.as_tensor(mask).cpu().bool()[::every].split(sizes)
        return [torch.nonzero(part).flatten() for part in parts]

    def tower_videos(self, call: Mapping[str, Any]) -> list[PackedVideo]:
        """Each with patches a token of its own."""
        sides = torch.as_tensor(call["video_merge_sizes"]).tolist()
        grids = grids_of(call["video_grid_thw"], sides)
        nothing: list[Any] = [None] * len(grids)
        facts = [
            PackedFacts(m * m, present=own)
            for m, own in zip(sides, self._present(grids) or nothing, strict=True)
        ]
        return list(zip(grids, facts, strict=True))

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, which stand side by side."""
        counts = torch.as_tensor(sight.inputs["grid_thw"]).prod(-1).tolist()
        groups = torch.as_tensor(sight.inputs["merge_sizes"]).square().tolist()
        return fold_parts(packed_signals(sight), counts, groups)
