"""Families whose vision tower packs frames of any shape in one row, each a segment of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..hooks.packed_row import PackedFacts
from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .family import Adapter, grids_of


class PackedTower(Adapter):
    """Base of these families: `merge` x `merge` patches, which stand side by side, make a token."""

    tower_name = "visual"
    merging = "packed"
    tower_end_name: ClassVar[str] = "merger"
    """The last part of the tower that sees every token alone; behind it the row is whole again."""

    @property
    def attention(self) -> nn.Module:
        """Of the last block."""
        return cast(nn.Module, cast(Any, self.tower).blocks[-1].attn)

    @property
    def tower_end(self) -> nn.Module:
        """See `tower_end_name`."""
        return cast(nn.Module, getattr(self.tower, self.tower_end_name))

    def whole_grid(self) -> str:
        """Empty: the projector looks at the patches of one token only."""
        return ""

    def tower_videos(
        self, call: Mapping[str, Any]
    ) -> list[tuple[tuple[int, int, int], PackedFacts]]:
        """The videos of a call of `get_video_features`, in order: grids of tokens, and the row.

        Args:
            call: its arguments, by name.
        """
        grids = torch.as_tensor(call["video_grid_thw"])
        facts = [self.row_facts(grid[None]) for grid in grids]
        return list(zip(grids_of(grids, self.merge), facts, strict=True))

    def row_facts(self, _grid: Tensor) -> PackedFacts:
        """Of the row of one video, whose grid of patches is (1, 3)."""
        return PackedFacts(self.merge**2)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches of a token."""
        return fold_groups(packed_signals(sight), self.merge**2)
