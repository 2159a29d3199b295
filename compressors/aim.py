"""AIM's merging before the LLM (arXiv 2412.03248): bipartite matching inside every frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Selection, VideoTokens
from vidllm.tokens import matching as bipartite

from .base import Compressor
from .registry import register
from .shared.segments import (
    equal_runs,
    halve_frames,
    halvings,
    merge_groups,
    merge_parts,
    present_frames,
)


def match(metric: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Match the even tokens (sources) with the odd ones (destinations) by cosine.

    Args:
        metric: (B, N, D) features to compare. r: merges wanted, at most N // 2 happen.

    Returns:
        kept (B, ceil(N/2) - r) sources that stay, in descending order of their best score;
        merged (B, r) sources; into (B, r) their destinations. All are indices into N. Equal
        scores: the earlier destination, the earlier source.
    """
    count = metric.shape[1]
    even, odd = torch.arange(0, count, 2), torch.arange(1, count, 2)
    pairs = bipartite.match(metric, min(r, count // 2), even, odd)
    return pairs.kept, pairs.merged, pairs.into


@register("aim")
@dataclass
class Aim(Compressor):
    """Merge similar tokens of a frame in rounds, each at most halving it (AIM, video merge).

    Every frame gets its share of the budget (the first ones one more); a round removes
    min(N // 2, N - share) tokens of a frame, so that a quarter is the authors' two rounds. A
    budget below the number of frames first merges every frame to one token and then the frames'
    tokens in `budget` equal runs of neighbours, which the authors' code cannot do.

    Attributes:
        weighting: "mean" as the authors (a merged token counts once in the next round), or
            "size" (it counts as the tokens that it stands for).
        faithful: the authors' order inside a frame: sources that stayed by falling score, then
            destinations. By default tokens stand in time and raster order (the defect: text
            positions then run against the picture wherever a frame is not exactly halved).
    """

    weighting: Literal["mean", "size"] = field(
        default="mean", metadata={"help": "count a merged token once, or by its size"}
    )
    faithful: bool = field(default=False, metadata={"help": "the authors' order of tokens"})

    paper = "AIM, arXiv 2412.03248"
    summary = "similar tokens of a frame merge, in rounds"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("mean", "size"):
            raise InputError(f"aim: weighting must be 'mean' or 'size', not {self.weighting!r}")

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """As `Compressor.run`; frames go through all of their rounds one after the other."""
        frames = len(present_frames(tokens)[1])
        goal = max(self.goal(tokens, budget), frames)
        if goal >= len(tokens):
            return super().run(tokens, budget, query)
        self.check(tokens)
        merged, rounds = halve_frames(tokens, goal, self._halve)
        after, more = super().run(merged, self.goal(tokens, budget), query)
        return after, rounds + more

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round over all frames."""
        order, _, counts = present_frames(tokens)
        if len(counts) < len(tokens):
            goal, sizes = max(budget, len(counts)), counts.tolist()
            parts, turn = order.split(sizes), halvings(sizes, goal)[:1]
            return merge_parts(tokens, parts, turn, self._halve)[1][0]
        runs = equal_runs(torch.arange(len(tokens)), len(tokens), budget)
        group = torch.empty_like(runs)
        group[order] = runs
        merged = merge_groups(tokens, group)
        return Merge(merged.target, merged.representative, self.weighting)

    def _halve(self, x: Tensor, left: int, position: Tensor) -> Merge:
        """One round on a frame (n, D)."""
        count = len(x)
        kept, merged, into = (v[0].cpu() for v in match(x[None], count - left))
        stays = torch.cat([kept, torch.arange(1, count, 2)])
        slot = torch.empty(count, dtype=torch.long)
        slot[stays] = torch.arange(len(stays))
        slot[merged] = slot[into]
        result = Merge(slot, stays, self.weighting)
        return result if self.faithful else result.in_order(position)
