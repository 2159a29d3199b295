"""EVS: the tokens that changed most since the frame before (arXiv 2510.14624)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register
from .shared.kernels import row_cosine
from .shared.segments import before_in_cell

# The score of a token with nothing before it; any change is at most 2.
_NEW = 255.0
# A cosine of equal vectors misses 1 by a few times 1e-7 in float32.
NOISE = 1e-6


@register("evs")
@dataclass
class Evs(Scorer):
    """Keep the tokens that differ most from the same cell one frame earlier (EVS).

    The score is 1 - cosine with the frame before, the first frame stands above all, and the
    ranking runs over the whole clip, so that a still frame may lose every token. On tokens that
    are no full grid any more, a token is compared with the last earlier frame that still has its
    cell, and one without any counts as new. The count is the budget: the published rule never
    goes below one frame, but a smaller budget keeps the first tokens of the first frame here.

    Attributes:
        faithful: the published scores to the last digit. The defect: between tokens that did
            not change at all the rounding of the cosine decides (about 1e-7 up or down, other
            on another machine). By default a change below 1e-6 is none, and of those tokens the
            earlier one stays.
    """

    faithful: bool = field(
        default=False, metadata={"help": "rounding decides between unchanged tokens"}
    )

    paper = "EVS, arXiv 2510.14624"
    summary = "tokens that changed since the frame before stay"

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """(L,) 1 - cosine with the token before in the same cell; 255 without one."""
        before = before_in_cell(tokens)
        later = torch.nonzero(before >= 0).flatten()
        change = 1 - row_cosine(tokens.features, later, before[later])
        if not self.faithful:
            change = torch.where(change < NOISE, 0.0, change)
        scores = torch.full((len(tokens),), _NEW, device=change.device)
        scores[later.to(change.device)] = change
        return scores
