"""From clips to their video tokens; the last clip is remembered."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from vidllm.compressors import Compressor
from vidllm.encoders.vision import to_pixels
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from ..engine import TowerCounter, uncounted, weights_state
from .model import NativeVideoLLM, window

_PART = 32  # frames that are resized at once


@dataclass(frozen=True)
class NativeClip:
    """An `EncodedClip` of the project's own models.

    Attributes:
        tokens: before compression. rest: what is left for the method at work to do with them.
    """

    tokens: VideoTokens
    rest: Compressor
    slots: np.ndarray
    tower_flops: float | None = None

    @property
    def total(self) -> int:
        return self.tokens.total

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.tokens.grid

    @property
    def element_size(self) -> int:
        return self.tokens.features.element_size()


@dataclass
class _Remembered:
    """What a clip became; `inside` is what merged in the tower, with its budget, or None, and
    `flops` what the tower did then."""

    clip: weakref.ref[VideoClip]
    weights: int
    inside: tuple[Compressor, int | None] | None
    signals: bool
    tokens: VideoTokens
    flops: float | None


@dataclass
class ClipMemory:
    """From clips to their tokens; the last clip is remembered for as long as it lives.

    Of a clip two things are kept: what it became as it is, and with what the last method made of
    it that merges inside the vision tower. What another method or other weights made is never
    taken, nor tokens without the signals that a method reads.
    """

    model: NativeVideoLLM
    kept: list[_Remembered] = field(default_factory=list)

    def encode(
        self,
        clip: VideoClip,
        methods: Sequence[Compressor],
        inside: Compressor | None = None,
        count_tower: TowerCounter = uncounted,
    ) -> tuple[VideoTokens, Compressor | None]:
        """Video tokens of a clip, with the signals that `methods` read as far as the tower has
        them.

        Args:
            inside: a method whose first part may merge inside the vision tower.
            count_tower: counts the tower's FLOPs where it does.

        Returns:
            The tokens, and what is left of `inside` to do with them: where nothing merged in the
            tower, all of it.
        """
        model, merge = self.model, None
        if inside is not None:
            merge, inside = model.tower_part(inside, len(clip))
            methods = (inside, *methods)
        reads = tuple({name for method in methods for name in (*method.needs, *method.uses)})
        signals = bool(set(reads) & set(model.vision.provides))
        weights = weights_state(model.vision, model.projector, model.temporal)
        for known in self.kept:
            if (
                known.clip() is clip
                and known.weights == weights
                and known.inside == merge
                and (known.signals or not signals)
            ):
                tokens = known.tokens
                if known.signals and not signals:  # as a fresh call would give them
                    tokens = replace(tokens, signals={})
                return tokens, inside
        start, duration = window(model.config, clip)
        size = model.vision.image_size
        # In parts: as float32, frames are many times their bytes.
        frames = torch.from_numpy(clip.frames.copy()).split(_PART)
        pixels = torch.cat([to_pixels(part.to(model.device), size) for part in frames])
        # The method may be changed after this call: what is compared later is how it was.
        how = copy.deepcopy(merge)
        times = clip.seconds - start
        if merge is None:
            flops, tokens = None, model.encode(pixels, times, duration, reads)
        else:
            with count_tower(model.vision, model.projector) as counted:
                tokens = model.encode(pixels, times, duration, reads, merge)
            flops = counted.flops
        made = _Remembered(weakref.ref(clip, self._gone), weights, how, signals, tokens, flops)
        same = [s for s in self.kept if s.clip() is clip and (s.inside is None) != (merge is None)]
        self.kept = [*same, made]
        return tokens, inside

    def flops(self, tokens: VideoTokens) -> float | None:
        """FLOPs of the vision tower that made these tokens, where it merged some on the way."""
        return next((s.flops for s in self.kept if s.tokens.source is tokens.source), None)

    def _gone(self, _clip: object) -> None:
        self.kept = [known for known in self.kept if known.clip() is not None]
