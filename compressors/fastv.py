"""FastV (arXiv 2403.06764): after two decoder layers, what the last prompt token looks at stays."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register


@register("fastv")
@dataclass
class FastV(Scorer):
    """Keep the video tokens that the last prompt token attends to most, from layer `layer` on.

    The question is read through that token; no query is needed. A clip is planned alone, so
    that rows of a batch may have any lengths (the authors read row 0 only), and of equal
    tokens the earlier stays. The last token favours late frames; nothing is done against it.

    Attributes:
        layer: the decoder layer (from 0) before which tokens leave; the last one where a model
            has fewer.
    """

    layer: int = field(default=2, metadata={"help": "decoder layer before which tokens leave"})

    stage = "prefill"
    needs = ("decoder-attention",)
    paper = "FastV, arXiv 2403.06764"
    summary = "what the last prompt token looks at stays, from the third decoder layer on"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise InputError(f"fastv: layer must be at least 1, not {self.layer}")

    def points(self, depth: int) -> list[tuple[int, float]]:
        """One cut, before `layer`.

        Raises:
            InputError: a decoder of one layer, where no layer comes before another.
        """
        if depth < 2:
            raise InputError("fastv: a decoder of one layer has no layer to prune before")
        return [(min(self.layer, depth - 1), self.keep)]

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """The last row of the layer before, mean over heads."""
        return self.signal(tokens, "decoder-attention")
