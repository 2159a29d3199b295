"""Families whose vision tower packs frames of any shape in one row, each a segment of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..hooks.packed_row import PackedFacts
from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .family import Adapter, grids_of

#: The grid (T, H, W) of a video's tokens, and what its row in the tower is.
PackedVideo = tuple[tuple[int, int, int], PackedFacts]


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

    def tower_videos(self, call: Mapping[str, Any]) -> list[PackedVideo]:
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


def windows_of(tower: Any, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Of a tower that attends in windows (Qwen2.5's): its order of the tokens of `grid` (V, 3), and
    (W + 1,) patches before every window; on the CPU."""
    grid = grid.cpu()
    if hasattr(tower, "get_window_index"):  # transformers 5.0
        order, ends = tower.get_window_index(grid)
        return torch.as_tensor(order), torch.as_tensor(ends).unique_consecutive()
    from transformers.vision_utils import get_vision_window_index

    sizes = {
        name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")
    }
    return get_vision_window_index(grid, **sizes)
