"""LITA's SlowFast tokens (arXiv 2403.19046): one a frame, and a few frames in more detail."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens
from vidllm.tokens.video_tokens import slot_means

from .base import Compressor
from .registry import register
from .shared.learned import places
from .shared.segments import equal_runs, merge_groups, present_frames, share
from .spatial_pool import cut_regions


def slow_frames(frames: int, count: int) -> Tensor:
    """(count,) evenly spaced of 0..frames-1, both ends among them; halves round to even."""
    return torch.from_numpy(np.round(np.linspace(0, frames - 1, count)).astype(np.int64))


@register("lita")
@dataclass
class Lita(Compressor):
    """A fast token a frame, and slow tokens of a few frames pooled on the grid (LITA, SlowFast).

    The paper gives F frames of N tokens F fast and N slow tokens: pool^2 frames, each pooled
    pool x pool. A smaller budget is divided in that proportion: fast tokens are then the means of
    equal runs of frames, slow frames are pooled more. A larger one adds slow frames at the
    paper's pooling, and pools less once every frame is slow.

    A frame that is both fast and slow belongs to two outputs. Its tokens are carried by the slow
    ones, save the one at which the fast token stands; without it the fast token would stand for
    none, and a later mean by size could not weigh it.

    Attributes:
        pool: side of the pooling, the paper's 2.
        faithful: all fast tokens before all slow ones, as the authors place them. By default
            they stand in time order (the defect: text positions run through the clip twice).
    """

    pool: int = field(default=2, metadata={"help": "side of the pooling of slow frames"})
    faithful: bool = field(default=False, metadata={"help": "fast tokens first, then slow ones"})

    makes_tokens = True
    paper = "LITA, arXiv 2403.19046"
    summary = "a mean a frame and a few frames in detail"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < 1:
            raise InputError(f"lita: pool must be at least 1, not {self.pool}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Fast and slow tokens at once."""
        order = torch.argsort(tokens.position, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        _, frames, counts = present_frames(tokens)
        total = len(frames)
        # total / (total + len / total) of the budget, rounded half up, and at most one a frame.
        whole = total * total + len(tokens)
        fast = max(1, min(total, budget, (2 * budget * total * total + whole) // (2 * whole)))
        slow = min(budget - fast, len(tokens) - total)
        fast = budget - slow
        runs = equal_runs(torch.arange(total), total, fast)
        number = torch.searchsorted(frames, tokens.frame)
        run = runs[number]
        detail = self._slow(tokens, order, number, counts, slow)
        free = torch.ones(len(tokens), dtype=torch.bool)
        if detail is not None:
            free[detail.representative] = False
        stands = _groups(tokens, torch.where(free, run, -1)).representative
        group, slots, carrier = run, fast, run  # every token once, those of slow frames twice
        of = torch.arange(len(tokens))
        if detail is not None:
            stands = torch.cat([stands, detail.representative])
            inside = detail.target >= 0
            carrier = torch.where(inside, detail.target + fast, run)
            group = torch.cat([run, detail.target[inside] + fast])
            of, slots = torch.cat([of, of[inside]]), budget
        found = places(tokens, order, rank[stands], carrier[order], faithful=self.faithful)
        number = torch.empty_like(found.slot)
        number[found.slot] = torch.arange(slots)
        members = torch.argsort(number[group], stable=True)
        counts = torch.bincount(number[group], minlength=slots)
        made = slot_means(tokens.features, of[members], counts, torch.ones(len(members)))
        return Mix(made, found.target, found.representative, found.span)

    def _slow(
        self, tokens: VideoTokens, order: Tensor, number: Tensor, counts: Tensor, slow: int
    ) -> Merge | None:
        """The slow tokens; every slow frame leaves at least one token for the fast one."""
        if slow == 0:
            return None
        candidates = torch.nonzero(counts > 1).flatten()
        pooled = max(1.0, len(tokens) / len(counts) / self.pool**2)
        wanted = max(min(self.pool**2, slow), int(-(-slow // pooled)))
        wanted = min(wanted, slow, len(candidates))
        picked = candidates[slow_frames(len(candidates), wanted)]
        while int((counts[picked] - 1).sum()) < slow:  # frames of unequal size
            wanted += 1
            picked = candidates[slow_frames(len(candidates), wanted)]
        sizes: list[int] = counts[picked].tolist()
        regions = share(slow, [size - 1 for size in sizes])
        cut = cut_regions(sizes, regions, tokens.grid[1], tokens.grid[2])
        members = order[torch.isin(number[order], picked)]
        group = torch.full((len(tokens),), -1)
        group[members] = cut
        return _groups(tokens, group)


def _groups(tokens: VideoTokens, group: Tensor) -> Merge:
    """`merge_groups` where group -1 is left out."""
    out = group < 0
    if not bool(out.any()):
        return merge_groups(tokens, group)
    merged = merge_groups(tokens, torch.where(out, int(group.max()) + 1, group))
    extra = int(merged.target[out][0])
    target = merged.target - (merged.target > extra).long()
    stands = merged.representative
    stands = stands[torch.arange(len(stands)) != extra]
    return Merge(torch.where(out, -1, target), stands)
