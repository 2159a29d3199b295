"""Video tokens with their places and seconds, and the one place where they merge or drop."""

from __future__ import annotations

from .budget import budget_of, cut_counts, split_budget
from .token_map import TokenMap
from .video_tokens import Keep, Merge, Mix, Selection, VideoTokens, apply_all, apply_rows

__all__ = [
    "Keep",
    "Merge",
    "Mix",
    "Selection",
    "TokenMap",
    "VideoTokens",
    "apply_all",
    "apply_rows",
    "budget_of",
    "cut_counts",
    "split_budget",
]
