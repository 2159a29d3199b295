"""MustDrop's output-aware cache (arXiv 2411.10803): early layers keep what the last filter kept.

`output_aware` is the authors' bookkeeping, `MustDropCache` the method on `VideoTokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register
from .shared.positions import Positions, check_positions


def output_aware(
    selections: Sequence[Tensor], layers: Sequence[int], depth: int, untouched: int | None = None
) -> list[Tensor | None]:
    """Which cached positions every layer keeps, so that all hold what the last filter left.

    Args:
        selections: for every cut the kept indices of the sequence that met it, text included.
        layers: the layer before which each cut was, ascending. depth: layers of the decoder.
        untouched: first layers that keep everything; None for all but the one right before the
            first cut, as the authors have it (0 shrinks every layer).

    Returns:
        One entry a layer, an index into its cache, or None where nothing changes.

    Raises:
        InputError: cuts and layers that do not fit.
    """
    rising = all(a < b for a, b in pairwise(layers))
    if len(selections) != len(layers) or not layers or not rising:
        raise InputError("output_aware needs one ascending layer for every selection")
    if not 1 <= layers[0] <= layers[-1] < depth:
        raise InputError(f"cuts before layers {list(layers)} do not fit a decoder of {depth}")
    composed = list(selections)
    for k in range(len(composed) - 1, 0, -1):
        composed[k - 1] = composed[k - 1][composed[k]]
    whole = layers[0] - 1 if untouched is None else untouched
    result: list[Tensor | None] = []
    for layer in range(depth):
        cut = sum(before <= layer for before in layers)  # cuts that this layer's input has seen
        result.append(None if layer < whole or cut == len(layers) else composed[cut])
    return result


@register("mustdrop-cache")
@dataclass
class MustDropCache(Scorer):
    """Behind the prefill, let an early layer's cache keep what the last filter kept.

    The signal "prefill-survivors" (L,) tells how many cuts each cached token outlived, or just
    1 for the survivors and 0 for the rest; the highest stay, of equal ones the earlier. The
    budget is the number of survivors; a smaller or larger one is met as exactly. Which layers
    this concerns, and their indices, `output_aware` tells: the authors leave the layers before
    the first cut's alone and stop at layer 32, here any depth will do. It stands behind a prefill
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
