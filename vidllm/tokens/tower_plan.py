"""What a compressor that merges inside a vision tower tells the tower: where, and how.

Compressors plan and encoders run, and neither may import the other; this is what they share.
Floor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from .video_tokens import Merge, Selection, VideoTokens


class TowerShape(NamedTuple):
    """What a method has to know of a tower and a clip to spread its merges over the layers.

    Attributes:
        layers: encoder layers. special: tokens before the patches of a frame (CLS, registers).
        frames: frames of the clip. tokens: tokens of a frame; where a projector folds a square
            of cells into one token, the cells of a square are one token here as well.
        clips: equally long clips that go through the tower together, as in training: `frames`
            and every budget are then those of all, and frames of two clips never join.
    """

    layers: int
    special: int
    frames: int
    tokens: int
    clips: int = 1


@dataclass(frozen=True)
class TowerStep:
    """One merge inside a tower.

    Attributes:
        layer: the encoder layer, from 0. place: before that layer, or behind its attention and
            before its MLP.
        decide: selections, one after the other, for the tokens of the clip as they are there:
            hidden states as features, and behind an attention its keys as "vision-keys". None
            where there is nothing to do.
        rows: (T,) long, not falling: from here on the frames with one number attend to each
            other, as one row; None to leave the rows as they are.
    """

    layer: int
    place: Literal["before", "attention"]
    decide: Callable[[VideoTokens], Sequence[Selection]]
    rows: Tensor | None = None


class Reducer(Protocol):
    """A compressor, as far as a tower calls it; one with `tower_steps` is a `TowerMethod`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals that it cannot do without."""

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """Compress to an exact number of tokens."""


class TowerMethod(Reducer, Protocol):
    """A compressor that acts between the layers of a tower."""

    @property
    def proportional(self) -> bool:
        """Whether attention counts a token as those behind it (log size on the logits)."""

    def tower_budget(self, clip: VideoTokens) -> int | None:
        """How many tokens of a clip (without features) its options leave.

        None where they say so only when they see what the tower makes of the clip.
        """

    def tower_steps(self, shape: TowerShape, budget: int | None) -> Sequence[TowerStep]:
        """The merges in the order in which a clip meets them.

        They leave `budget` tokens or more, at least one a frame; None: what the method's own
        options leave. What is then still too many is merged behind the tower.
        """


class TowerTokens(NamedTuple):
    """What a tower that merged inside gives of a clip.

    Attributes:
        features: (K, C) tokens; C is fold² times the tower's width, a square's cells in raster
            order.
        selection: the merge of the clip's original T * N tokens into these, in their order.
        signals: "cls-attention" (K,) and "vision-keys" (K, d) where they were asked for.
    """

    features: Tensor
    selection: Merge
    signals: dict[str, Tensor]
