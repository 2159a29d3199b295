"""Temporal average pooling (STORM, arXiv 2503.04130, compression after the temporal module)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import Merge, VideoTokens

from .base import Compressor
from .registry import register
from .shared.segments import by_slot, equal_runs, merge_groups, share, starts


@register("temporal-pool")
@dataclass
class TemporalPool(Compressor):
    """Mean over consecutive frames at the same spatial slot.

    To a budget: slot n of N gets budget // N segments (the first budget % N slots one more),
    and its frames are cut into that many consecutive segments whose lengths differ by at most
    one. With `k`, STORM's window: frames 0..k-1, k..2k-1 and so on; when k does not divide T
    the last window is shorter (the paper does not say; nothing is dropped or padded here).

    On tokens that are no full grid any more (after another method) the tokens of a slot, in
    time order, take the place of its frames, and slots with more tokens get more segments. A
    budget below the number of slots merges neighbouring slots as well: each of `budget` equal
    runs of slots, in raster order, becomes one token.

    Attributes:
        k: frames a window; the count is then N * ceil(T / k).
    """

    k: int | None = field(default=None, metadata={"help": "frames a window, in place of keep"})

    paper = "STORM, arXiv 2503.04130"
    summary = "mean over consecutive frames of a spatial slot"
    uses_features = False
    fixed = ("k",)

    def fixed_budget(self, tokens: VideoTokens) -> int | None:
        """Windows of k in every slot, the last one shorter."""
        if self.k is None:
            return None
        _, counts = by_slot(tokens)
        return int(((counts + self.k - 1) // self.k).sum())

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Merge:
        """One merge that meets the budget at once."""
        order, counts = by_slot(tokens)
        slots = counts.numel()
        slot = torch.arange(slots).repeat_interleave(counts)
        rank = torch.arange(len(tokens)) - starts(counts)[slot]
        if self.k is not None:
            parts = (counts + self.k - 1) // self.k
            run = starts(parts)[slot] + rank // self.k
        elif budget >= slots:
            parts = torch.tensor(share(budget, counts.tolist()))
            run = starts(parts)[slot] + equal_runs(rank, counts[slot], parts[slot])
        else:
            run = equal_runs(slot, slots, budget)
        group = torch.empty_like(run)
        group[order] = run
        return merge_groups(tokens, group)
