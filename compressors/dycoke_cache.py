"""DyCoke while answering (arXiv 2411.15024): which video entries of the KV cache a step reads.

`choose` is the choice at one decode step; `DyCokeCache` is the method that a model's driver runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .base import Scorer
from .registry import register
from .shared.positions import Positions, check_positions


@dataclass(frozen=True, eq=False)
class CacheState:
    """What a decode step leaves for the next one; start every answer with None instead.

    Attributes:
        attention: (image_len,) this step's attention to the video, mean over heads.
        similarity: its cosine with the step before, 0 at the first.
        chosen: (k,) places in the video chosen last, ascending; None before any choice.
    """

    attention: Tensor
    similarity: float
    chosen: Tensor | None


def choose(
    attention: Tensor, count: int, state: CacheState | None = None, threshold: float = 0.9
) -> tuple[bool, CacheState]:
    """One decode step: choose anew where the attention to the video has moved.

    Args:
        attention: (image_len,) attention to the video, mean over heads. count: entries chosen;
            of equal ones the earlier. state: of the step before. threshold: the attention has
            moved where its cosine with the step before is below.

    Returns:
        Whether a new choice was made, and the state with the choice that holds now.

    Raises:
        InputError: attention that is not finite, or to another video than before.
    """
    now = attention.detach().float()
    if not bool(torch.isfinite(now).all()):
        raise InputError("dycoke: the attention to the video holds NaN or infinite values")
    chosen: Tensor | None = None
    similarity = 0.0
    if state is not None:
        if state.attention.shape != now.shape:
            raise InputError("dycoke: the video changed between decode steps: start with None")
        chosen = state.chosen
        similarity = float(cosine_similarity(now, state.attention, dim=0))
    moved = similarity < threshold
    if moved:
        chosen = now.argsort(descending=True, stable=True)[:count].sort().values
    return moved, CacheState(now, similarity, chosen)


@register("dycoke-cache")
@dataclass
class DyCokeCache(Scorer):
    """At every step of an answer, read the video entries that the step attends to (DyCoke, DP).

    The question reads the whole video. From the first token of the answer on, the attention of
    layer `layer` - 1, which keeps the whole cache, decides which entries the layers from `layer`
    on read: those of the highest attention, mean over heads, exactly the budget; text is never
    touched. The others are parked, not lost: where the attention to the video has moved (cosine
    with the step before below `threshold`), the choice is made anew from all of them. Every
    answer, and every question of a batch, has its own choice and starts without one.

    The published code gathers the chosen entries at every such step and reads the full cache at
    the steps between, which saves nothing there; it also starts an answer with the attention of
    the one before. Here the choice stands until the attention moves.

    With "dycoke" before it ("dycoke,dycoke-cache") the published method is complete.

    Attributes:
        layer: the decoder layer (from 0) from which on entries are parked; the last one where a
            model has fewer.
        threshold: cosine of the attention with the step before, below which it has moved; above
            1 every step chooses anew.
        positions: "original" leaves every entry where it was; "contiguous" turns the keys so
            that what a layer reads stands at 0, 1, 2 and so on (PIE, see `positions`).
        offload: parked entries wait in main memory, so that an accelerator holds no more than
            the budget of them; otherwise they stay where the model is, and take their place.
        faithful: full cache at the steps between; one question at a time.
    """

    layer: int = field(default=3, metadata={"help": "decoder layer from which on entries leave"})
    threshold: float = field(
        default=0.9, metadata={"help": "cosine of the attention below which it has moved"}
    )
    positions: Positions = field(
        default="original", metadata={"help": "original, or contiguous by turning the keys (PIE)"}
    )
    offload: bool = field(default=True, metadata={"help": "park entries in main memory"})
    faithful: bool = field(
        default=False, metadata={"help": "the authors' full cache where attention has not moved"}
    )

    stage = "cache"
    needs = ("decoder-attention",)
    paper = "DyCoke, arXiv 2411.15024"
    summary = "each step of an answer reads what it attends to, the rest is parked and may return"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positions(self.name, self.positions)
        if self.layer < 1 or not self.threshold > 0:
            raise InputError(
                f"dycoke-cache: layer must be at least 1 and threshold above 0, not {self.layer} "
                f"and {self.threshold}"
            )
        if self.faithful and self.positions != "original":
            raise InputError("dycoke-cache: faithful goes with positions=original")

    @property
    def shares_prefix(self) -> bool:
        """True when several questions can be answered side by side after one prefill."""
        return not self.faithful

    def points(self, depth: int) -> list[tuple[int, float]]:
        """One, at `layer`.

        Raises:
            InputError: a decoder of one layer, where no layer comes before another.
        """
        if depth < 2:
            raise InputError("dycoke-cache: a decoder of one layer has no layer that chooses")
        return [(min(self.layer, depth - 1), self.keep)]

    def step(
        self, attention: Tensor, budget: int, state: CacheState | None = None
    ) -> tuple[Tensor | None, CacheState]:
        """The video entries (k,) that a step reads, or None for all; the state for the next.

        Args:
            attention: (V,) of this step to the video, mean over heads. budget: exact number.
            state: of the step before, None at the first step of an answer.
        """
        moved, state = choose(attention, budget, state, self.threshold)
        return (state.chosen if moved or not self.faithful else None), state

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """The attention of one step, mean over heads."""
        return self.signal(tokens, "decoder-attention")
