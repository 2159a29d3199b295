"""From a sampled clip to its video tokens: the time line, the pixels, and the vision tower."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from vidllm.compressors import Compressor
from vidllm.cost.spending import weighed
from vidllm.encoders.vision import to_pixels
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

_PART = 32  # frames that are resized at once


def window(config: NativeConfig, clip: VideoClip) -> tuple[float, float]:
    """Origin and length of the time line that the model is told, in seconds.

    Relative time tokens are spread over the range that was looked at, so that a minute out of
    an hour is told as finely as a minute; absolute codes stay in the whole video's seconds.
    """
    if config.time_code != "relative":
        return 0.0, clip.duration
    end = clip.duration if clip.end is None else min(clip.end, clip.duration)
    return clip.start, max(end - clip.start, 1e-3)


def slot_seconds(tokens: VideoTokens) -> np.ndarray:
    """The middle of what every slot of uncompressed tokens covers, (S,) seconds."""
    middle = tokens.span.double().mean(1).view(tokens.grid[0], -1)[:, 0]
    return middle.numpy()


def wanted_by(methods: Sequence[Compressor]) -> tuple[str, ...]:
    """The signals that methods read."""
    return tuple({want for method in methods for want in (*method.needs, *method.uses)})


def weights_state(*modules: torch.nn.Module) -> int:
    """A number that changes when weights do: other tensors, or others written into them."""
    weights = [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]
    return hash(tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights))


@dataclass
class _Seen:
    """What a clip became; `inside` is what merged in the tower, with its budget, or None, and
    `flops` what the tower did then."""

    clip: weakref.ref[VideoClip]
    weights: int
    inside: tuple[Compressor, int | None] | None
    signals: bool
    tokens: VideoTokens
    flops: float | None


@dataclass
class Memory:
    """From clips to their tokens; the last clip is remembered for as long as it lives.

    Of a clip two things are kept: what it became as it is, and with what the last method made of
    it that merges inside the vision tower. What another method or other weights made is never
    taken, nor tokens without the signals that a method reads.
    """

    model: NativeVideoLLM
    kept: list[_Seen] = field(default_factory=list)

    def see(
        self,
        clip: VideoClip,
        methods: Sequence[Compressor],
        inside: Compressor | None = None,
    ) -> tuple[VideoTokens, Compressor | None]:
        """Video tokens of a clip, with the signals that `methods` read as far as the tower has
        them.

        Args:
            inside: a method whose first part may merge inside the vision tower.

        Returns:
            The tokens, and what is left of `inside` to do with them: where nothing merged in the
            tower, all of it.
        """
        model, merge = self.model, None
        if inside is not None:
            merge, inside = model.tower_part(inside, len(clip))
            methods = (inside, *methods)
        wants = wanted_by(methods)
        signals = bool(set(wants) & set(model.vision.provides))
        weights = weights_state(model.vision, model.projector, model.temporal)
        for seen in self.kept:
            if (
                seen.clip() is clip
                and seen.weights == weights
                and seen.inside == merge
                and (seen.signals or not signals)
            ):
                tokens = seen.tokens
                if seen.signals and not signals:  # as a fresh call would give them
                    tokens = replace(tokens, signals={})
                return tokens, inside
        start, duration = window(model.config, clip)
        size = model.vision.image_size
        # In parts: as float32, frames are many times their bytes.
        frames = torch.from_numpy(clip.frames.copy()).split(_PART)
        pixels = torch.cat([to_pixels(part.to(model.device), size) for part in frames])
        # The method may be changed after this call: what is compared later is how it was.
        how = copy.deepcopy(merge)
        with weighed(*([] if merge is None else [model.vision, model.projector])) as weight:
            tokens = model.encode(pixels, clip.seconds - start, duration, wants, merge)
        flops = None if merge is None else weight.flops
        made = _Seen(weakref.ref(clip, self._gone), weights, how, signals, tokens, flops)
        same = [s for s in self.kept if s.clip() is clip and (s.inside is None) != (merge is None)]
        self.kept = [*same, made]
        return tokens, inside

    def flops(self, tokens: VideoTokens) -> float | None:
        """FLOPs of the vision tower that made these tokens, where it merged some on the way."""
        return next((s.flops for s in self.kept if s.tokens.source is tokens.source), None)

    def _gone(self, _clip: object) -> None:
        self.kept = [seen for seen in self.kept if seen.clip() is not None]
