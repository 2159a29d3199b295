"""Sampling frames after the temporal encoder (STORM, arXiv 2503.04130, at test time)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import Keep, VideoTokens

from .base import Compressor
from .registry import register
from .shared.segments import present_frames, starts


@register("frame-sample")
@dataclass
class FrameSample(Compressor):
    """Keep whole frames and drop the frames between them.

    To a budget: the frames in the middle of equal parts of the clip, as many as it takes; the
    last one is kept in part, evenly over its tokens, so that the count is exact. With `stride`,
    STORM's rule: frames 0, s, 2s of those that still have tokens (after temporal pooling these
    are the pooled slots).

    Attributes:
        stride: keep every stride-th frame; the count is what those frames hold.
    """

    stride: int | None = field(default=None, metadata={"help": "every n-th frame, not keep"})

    paper = "STORM, arXiv 2503.04130"
    summary = "whole frames stay, evenly spaced"
    uses_features = False
    fixed = ("stride",)

    def fixed_budget(self, tokens: VideoTokens) -> int | None:
        """Tokens of every stride-th frame."""
        if self.stride is None:
            return None
        return int(present_frames(tokens)[2][:: self.stride].sum())

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Keep:
        """One keep list that meets the budget at once."""
        order, frames, counts = present_frames(tokens)
        total = frames.numel()
        if self.stride is not None:
            picked = torch.arange(0, total, self.stride)
        else:
            wanted = -(-budget * total // len(tokens))
            picked = _spread(wanted, total)
            while int(counts[picked].sum()) < budget:  # frames of unequal size
                wanted += 1
                picked = _spread(wanted, total)
        first, left, index = starts(counts), budget, []
        for frame in picked.tolist():
            size = int(counts[frame])
            take = min(size, left)
            if take:
                index.append(order[first[frame] + _spread(take, size)])
            left -= take
        return Keep(torch.cat(index).sort().values)


def _spread(count: int, total: int) -> Tensor:
    """The middles of `count` equal parts of 0..total-1."""
    return (2 * torch.arange(count) + 1) * total // (2 * count)
