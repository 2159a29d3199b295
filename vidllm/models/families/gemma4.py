"""Gemma 4: 1D positions, sliding windows and shared keys, a clock before every frame."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..hooks.batches import cell_means
from ..hooks.vision_tower import Sight, queries_keys, received
from .family import Adapter, Clip


class Gemma4(Adapter):
    """Frames of any shape; `pooling_kernel_size` squared patches make a token."""

    tower_name = "vision_tower"
    beside = ("video_position_ids", "num_frames_per_video")
    stamp = r"(\d+):(\d+)\s*<[^<>]*>$"

    @property
    def fold(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.vision_config.pooling_kernel_size)

    def whole_grid(self) -> str:
        """Its own reason."""
        return "places the patches of padded frames in its tower by numbers"

    def clips(self, ids: Tensor, inputs: Mapping[str, Any], sight: Sight | None) -> list[Clip]:
        """Grids from the places of the patches; seconds as the prompt's clock has them."""
        found = self.given(inputs)
        if not found:
            return []
        places, counts = map(torch.as_tensor, found.values())
        sides = ((places.amax(1) + 1) // self.fold).tolist()  # (x, y) of every frame
        firsts = (counts.cumsum(0) - counts).tolist()
        grids = [(n, *reversed(sides[f])) for n, f in zip(counts.tolist(), firsts, strict=True)]
        return self.grid_clips(ids, grids)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token, of a tower that sees frames (F, N, D) with padding."""
        layer, attended, keys = cast(Any, sight.attention), [], []
        turn = sys.modules[type(layer).__module__].apply_multidimensional_rope
        cos, sin = sight.arguments["position_embeddings"]
        for n, place in enumerate(sight.arguments["position_ids"]):
            real = (place >= 0).all(-1)
            query, key = queries_keys(layer, sight.hidden[n, real])
            at = [t[n : n + 1, real].float() for t in (cos, sin)], place[None, real]
            q, k = (turn(x[None], *at[0], at[1])[0] for x in (query, key))
            seen = received(q * key.shape[-1] ** 0.5, k, sight.hidden)  # its logits are not scaled
            x, y = (place[real] // self.fold).unbind(-1)
            cell = x + (int(place[:, 0].max()) + 1) // self.fold * y
            attended.append(cell_means(seen, cell))
            keys.append(cell_means(key.mean(1), cell))
        return {"cls-attention": torch.cat(attended), "vision-keys": torch.cat(keys)}
