"""STORM's token reduction as one method (arXiv 2503.04130, section 3.3 and table 2).

Temporal pooling, spatial pooling and frame sampling are methods of their own (`temporal-pool`,
`spatial-pool`, `frame-sample`); this is how the paper puts them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidllm.tokens import Merge, Selection, VideoTokens

from .base import Compressor
from .frame_sample import FrameSample
from .registry import register
from .spatial_pool import SpatialPool
from .temporal_pool import TemporalPool

#: The paper's temporal window; what must go beyond it is sampled away.
WINDOW = 4


@register("storm")
@dataclass
class Storm(Compressor):
    """Mean over windows of frames, then over cells, then every s-th frame slot.

    To a budget: temporal pooling down to a quarter of the clip's original tokens (the paper's
    factor 4), and below that frame sampling as the paper does at test time, so that 12.5 % is its
    "T.Pool x4 + T.Sampling x2". With `temporal`, `spatial` or `sample` exactly these are done, in
    this order. Where a window does not divide T the last one is shorter: the paper does not say
    (T mod k), and nothing is dropped or padded here.

    Attributes:
        temporal: frames a window (k). spatial: side of the square of cells (p = side²).
        sample: every s-th frame slot stays.
    """

    temporal: int | None = field(default=None, metadata={"help": "frames a window"})
    spatial: int | None = field(default=None, metadata={"help": "side of a square of cells"})
    sample: int | None = field(default=None, metadata={"help": "every s-th frame slot stays"})

    paper = "STORM, arXiv 2503.04130"
    summary = "mean over 4 frames of a slot, beyond that every second slot"
    same_as = "`temporal-pool`, bit by bit, where 25 % or more is kept"
    uses_features = False
    fixed = ("temporal", "spatial", "sample")

    def _steps(self) -> list[Compressor]:
        steps: list[Compressor] = []
        if self.temporal is not None:
            steps.append(TemporalPool(k=self.temporal))
        if self.spatial is not None:
            steps.append(SpatialPool(window=self.spatial))
        if self.sample is not None:
            steps.append(FrameSample(stride=self.sample))
        return steps

    def fixed_budget(self, tokens: VideoTokens) -> int | None:
        """What the fixed steps leave, one after the other."""
        steps = self._steps()
        if not steps:
            return None
        blank = replace(tokens, features=tokens.features[:, :0], signals={})
        for step in steps:
            blank = step(blank)
        return len(blank)

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """As `Compressor.run`; fixed steps follow one another."""
        steps = self._steps()
        if not steps:
            return super().run(tokens, budget, query)
        self.goal(tokens, budget)  # refuses a budget beside them
        rounds: list[Selection] = []
        for step in steps:
            tokens, more = step.run(tokens)
            rounds += more
        return tokens, rounds

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Pool down to a quarter of the original clip, then sample."""
        pooled = max(budget, math.ceil(tokens.total / WINDOW))
        if len(tokens) <= pooled:
            return FrameSample().plan(tokens, budget)
        merged = TemporalPool().plan(tokens, pooled)
        if pooled == budget:
            return merged
        blank = replace(tokens, features=tokens.features[:, :0], signals={}).apply(merged)
        kept = FrameSample().plan(blank, budget).index
        slot = torch.full((len(merged) + 1,), -1)
        slot[kept] = torch.arange(len(kept))
        return Merge(slot[merged.target], merged.representative[kept])
