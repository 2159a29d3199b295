"""MustDrop's output-aware cache (arXiv 2411.10803): early layers keep what the last filter kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register
from .shared.positions import Positions, check_positions


@register("mustdrop-cache")
@dataclass
class MustDropCache(Scorer):
    """Behind the prefill, let an early layer's cache keep what the last filter kept.

    The signal "prefill-survivors" (L,) tells how many cuts each cached token outlived, or just
    1 for the survivors and 0 for the rest; the highest stay, of equal ones the earlier. The
    budget is the number of survivors; a smaller or larger one is met as exactly. The
    authors leave the layers before the first cut's alone and stop at layer 32, here any depth
    will do. It stands behind a prefill
    method ("mustdrop-filter,mustdrop-cache") and has no share of its own.

    Attributes:
        untouched: first layers whose cache stays whole; None for all but the one right before
            the first cut, as the authors have it (0 shrinks every layer).
        positions: "original" leaves every entry where it was; "contiguous" turns the keys of
            every layer so that its entries stand at 0, 1, 2 and so on (PIE, see `positions`).
    """

    untouched: int | None = field(
        default=None, metadata={"help": "first layers whose cache stays whole"}
    )
    positions: Positions = field(
        default="original", metadata={"help": "original, or contiguous by turning the keys (PIE)"}
    )

    stage = "cache"
    follows = True
    needs = ("prefill-survivors",)
    paper = "MustDrop, arXiv 2411.10803"
    summary = "early layers' caches keep what the last filter kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.name, self.positions)

    def first_layer(self, counts: Sequence[int]) -> int:
        """The first layer that loses tokens, from the video tokens that every layer holds."""
        whole = sum(count == counts[0] for count in counts)
        return min(whole - 1, len(counts)) if self.untouched is None else self.untouched

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """How long a token lasted."""
        return self.signal(tokens, "prefill-survivors")
