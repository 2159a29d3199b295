"""What is known of a prompt while it goes through a hub model, and of its cache afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.tokens import VideoTokens

from ..families.family import Clip
from .pruning import BatchPruner
from .tower_signals import Sight

if TYPE_CHECKING:
    from .batch_cache_choice import Choice
    from .prefix import Prefix


@dataclass
class Report:
    """What became of the last prompts.

    Attributes:
        rows: for every decoder layer and row of the batch the indices (n,) of the full prompt
            that the layer read. prompt: tokens of the full prompts, without padding.
        held: the same of what the layer's cache holds behind the prefill.
        full, kept: video tokens of all prompts before, and those that the last layer read.
        cached: for every layer the video tokens in its cache.
        seconds: what choosing took. reused: tokens of every prompt that the cache held before.
    """

    rows: list[list[Tensor]]
    held: list[list[Tensor]]
    prompt: list[int]
    full: int
    kept: int
    cached: list[int]
    seconds: float
    choice: Choice | None = None
    reused: int = 0

    def choose(self, choice: Choice) -> None:
        """A method will choose at every decode step: account for what a step reads."""
        self.choice, self.kept = choice, sum(choice.budgets)
        parked = 0 if choice.method.offload else self.cached[-1]
        for number in range(choice.first, choice.depth):
            self.cached[number] = self.kept + parked


@dataclass
class Past:
    """What a cache holds that was made from a compressed prompt.

    Attributes:
        valid: for every layer (B, n) bool, entries that are no padding.
        seen: columns of the full attention mask so far. next: the positions that come next,
            (B, 1), or (P, B, 1) for M-RoPE. choice: of what a decode step reads, if any.
    """

    valid: list[Tensor]
    seen: int
    next: Tensor
    choice: Choice | None = None


@dataclass
class Call:
    """One call of the model on a fresh prompt; `ids`, `real` and `text` are (B, L) on the CPU."""

    clips: list[Clip]
    ids: Tensor
    real: Tensor
    text: Tensor
    left: bool
    rows: list[Tensor]
    sight: Sight | None
    after: list[VideoTokens] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    late: list[tuple[Compressor, int]] = field(default_factory=list)
    pruner: BatchPruner | None = None
    position: Tensor | None = None
    valid: Tensor | None = None
    seconds: float = 0.0
    reused: Prefix | None = None


def bare(tokens: VideoTokens, signals: bool = False) -> VideoTokens:
    """The books: features, DeepStack's planes and, but for `signals`, what the tower told would
    be held for the whole of the decoder."""
    told = {n: p for n, p in tokens.signals.items() if signals and not n.startswith("deepstack-")}
    return replace(tokens, features=tokens.features[:, :0].clone(), signals=told)


def numbered(pruner: BatchPruner) -> list[list[Tensor]]:
    """The pruner's columns as numbers among each row's tokens."""
    order = pruner.valid.cumsum(1) - 1
    return [[order[r, c] for r, c in enumerate(layer)] for layer in pruner.history]


def count_videos(clips: list[Clip], rows: list[Tensor]) -> int:
    return sum(int(torch.isin(clip.where, rows[clip.row]).sum()) for clip in clips)
