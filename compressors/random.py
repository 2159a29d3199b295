"""A seeded random subset: the baseline that tells luck from merit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .registry import register


@register("random")
@dataclass
class Random(Compressor):
    """Keep a random subset in time order; the same seed and length give the same subset.

    Attributes:
        seed: of a generator of its own; the global random state is left alone.
    """

    seed: int = field(default=0, metadata={"help": "seed of the draw"})

    summary = "a seeded random subset stays"
    uses_features = False

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Draw `budget` tokens without replacement."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(tokens), generator=generator)[:budget]
        return Keep(drawn.sort().values)
