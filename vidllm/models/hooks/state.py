"""What is known of a prompt while it goes through a hub model, and of its cache afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from ..families.family import Clip
from .cache import CacheChoice
from .layers import Views, attends
from .pruning import Pruner, VideoRun, bare
from .vision_tower import Sight


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
        valid: (B, W) bool, where the last layer's tokens stand. text: (B, L) bool, text of the
            full prompts; both on the CPU, empty where there was no video.
        caching: layers whose cache has an entry a token; 0 for all.
    """

    rows: list[list[Tensor]]
    held: list[list[Tensor]]
    prompt: list[int]
    full: int
    kept: int
    cached: list[int]
    seconds: float
    choice: CacheChoice | None = None
    reused: int = 0
    caching: int = 0
    valid: Tensor = field(default_factory=lambda: torch.empty(0))
    text: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def mean_cached(self) -> float:
        """Video tokens in the cache of a layer, in the mean over those that hold any."""
        return sum(self.cached) / (self.caching or len(self.cached))

    def choose(self, choice: CacheChoice) -> None:
        """A method will choose at every decode step: account for what a step reads."""
        self.choice, self.kept = choice, sum(choice.budgets)
        parked = 0 if choice.method.offload else self.cached[-1]
        for number in range(choice.first, choice.depth):
            self.cached[number] = self.kept + parked


@dataclass
class Call:
    """One call of the model on a fresh prompt; `ids`, `real` and `text` are (B, L) on the CPU.

    Attributes:
        after: what is left of every video. places: where in its row's prompt. late: methods inside
            the decoder with every video's budget. reused: tokens that a prefix held before.
        labels: (B, L) that the model will take its loss of, to be cut in place; or None.
    """

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
    pruner: Pruner | None = None
    position: Tensor | None = None
    valid: Tensor | None = None
    seconds: float = 0.0
    reused: int = 0
    labels: Tensor | None = None

    def prune(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        planes: Sequence[Tensor],
        places: Sequence[Tensor],
        late: Sequence[tuple[Compressor, int]],
        attention: str,
        views: Views,
    ) -> Pruner:
        """The method between the layers of a decoder, for these prompts.

        Args:
            norm: of the decoder. planes: (B, W, D) embeddings, and DeepStack's. places: as
                `places`. late: as `late`. attention: the name of the decoder's.
        """
        runs = []
        for clip, after, place, (_, budget) in zip(
            self.clips, self.after, places, late, strict=True
        ):
            at = torch.searchsorted(self.rows[clip.row], place)
            runs.append(VideoRun(clip.row, bare(after, signals=True), at, budget))
        self.pruner = Pruner(
            layers,
            norm,
            late[0][0],
            runs,
            self.real if self.valid is None else self.valid,
            text=[words[row] for words, row in zip(self.text, self.rows, strict=True)],
            planes=planes[1:],
            left=self.left,
            attention=attention,
            views=views,
        )
        return self.pruner

    def report(
        self,
        rows: list[list[Tensor]],
        held: list[list[Tensor]],
        layers: Sequence[nn.Module],
        seconds: float,
        valid: Tensor,
    ) -> Report:
        """The account of these prompts; arguments as for `Report`, and the decoder's layers."""
        runs = self.after if self.pruner is None else [run.tokens for run in self.pruner.runs]
        return Report(
            rows,
            held,
            [int(row.sum()) for row in self.real],
            sum(len(clip.where) for clip in self.clips),
            sum(len(tokens) for tokens in runs),
            cached_videos(self.clips, held, layers),
            seconds,
            reused=self.reused,
            caching=sum(map(attends, layers)),
            valid=valid,
            text=self.text,
        )

    def cached_videos(self, valid: Tensor) -> list[tuple[int, Tensor]]:
        """For every video its row and the columns (V,) of what is left of it in the cache.

        Args:
            valid: (B, W) bool, entries of the cache that are no padding.
        """
        found = []
        for clip, place in zip(self.clips, self.places, strict=True):
            columns = torch.nonzero(valid[clip.row]).flatten()
            found.append((clip.row, columns[torch.searchsorted(self.rows[clip.row], place)]))
        return found

    def choose(self, cache: Any, valid: list[Tensor]) -> CacheChoice:
        """A method that chooses at every decode step, for this cache."""
        method = self.late[0][0]
        firsts = {int(clip.slots[0]) for clip in self.clips}
        if len(firsts) < len(self.clips):
            raise InputError(
                f"{method.name} chooses for every answer alone: one answer a prompt, without beams"
            )
        choice = CacheChoice(method, *(budget for _, budget in self.late))
        choice.begin(cache, valid, [], self.cached_videos(valid[0]), left=self.left)
        return choice


def numbered(pruner: Pruner) -> list[list[Tensor]]:
    """The pruner's columns as numbers among each row's tokens."""
    order = pruner.valid.cumsum(1) - 1
    return [[order[r, c] for r, c in enumerate(layer)] for layer in pruner.history]


def cached_videos(
    clips: list[Clip], held: list[list[Tensor]], layers: Sequence[nn.Module]
) -> list[int]:
    """Video tokens in every layer's cache; 0 for layers whose cache has no entry a token."""
    counts = []
    for rows, layer in zip(held, layers, strict=True):
        own = sum(int(torch.isin(clip.where, rows[clip.row]).sum()) for clip in clips)
        counts.append(own if attends(layer) else 0)
    return counts
