"""PyramidDrop (arXiv 2410.17247): video tokens leave in three cuts, deeper layers see fewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register
from .shared.positions import Policy


def staged_points(
    name: str, depth: int, layers: Sequence[float], keep: float
) -> list[tuple[int, float]]:
    """Cuts before these layers (rounded, each at least 1, none twice), each leaving the same
    share of what it finds, so that the last leaves `keep`.
    """
    if depth < 2:
        raise InputError(f"{name}: a decoder of one layer has no layer to prune before")
    cuts = sorted({min(max(int(layer + 0.5), 1), depth - 1) for layer in layers})
    last = len(cuts)
    return [(cut, keep if i == last else keep ** (i / last)) for i, cut in enumerate(cuts, 1)]


@register("pyramiddrop")
@dataclass
class PyramidDrop(Scorer):
    """Three cuts, at quarters of the depth; each keeps what the last prompt token looks at.

    A keep of 1/8 is the authors' 1/2, 1/4, 1/8; other shares fall in equal proportions. The
    authors run the query and key projections of the layer behind the cut on its input, and so
    does the model's driver here. Every budget is met
    exactly where they take int(m * share), and of equal tokens the earlier stays. Sequences
    are not cut to the tokenizer's limit and grouped-query models work, unlike in the port.

    Attributes:
        faithful: the authors' positions: survivors are counted from 0 again in later layers,
            while decoding goes on from the full length. By default they keep their positions.
    """

    faithful: bool = field(
        default=False, metadata={"help": "the authors' positions: count survivors from 0"}
    )

    stage = "prefill"
    needs = ("decoder-attention",)
    own_layer = True
    paper = "PyramidDrop, arXiv 2410.17247"
    summary = "three cuts by the last prompt token's attention, at quarters of the decoder"

    @property
    def positions(self) -> Policy:
        """What happens to positions after a cut."""
        return "compact" if self.faithful else "keep"

    def points(self, depth: int) -> list[tuple[int, float]]:
        """Before a quarter, a half and three quarters of the layers."""
        return staged_points(self.name, depth, [depth * q / 4 for q in (1, 2, 3)], self.keep)

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """The last row of the layer behind the cut, mean over heads."""
        return self.signal(tokens, "decoder-attention")
