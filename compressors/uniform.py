"""Evenly spaced tokens: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .registry import register


@register("uniform")
@dataclass
class Uniform(Compressor):
    """Keep the tokens in the middle of `budget` equal parts of the sequence.

    Blind to the grid: where the spacing is a multiple of the grid's width it keeps the same
    columns of every frame.
    """

    summary = "evenly spaced tokens stay"
    uses_features = False

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Token floor((i + 1/2) L / budget) for every i."""
        index = (2 * torch.arange(budget) + 1) * len(tokens) // (2 * budget)
        return Keep(index)
