"""A clip through a hub model's vision tower, remembered for the next question about it."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.cost.spending import weighed
from vidllm.models.families import Adapter
from vidllm.models.families.pixels import video_pixels
from vidllm.models.families.prompting import beside, place
from vidllm.models.families.scripts import Placed
from vidllm.models.hooks.tower_signals import Sight
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from .compression import Compression, Prefix
from .encode import weights_state


@dataclass
class Seen:
    """A clip as a model sees it.

    Attributes:
        clip: whose it is. placed: its places in a prompt. length: seconds of the sampled range.
        pixels: arguments of the model. output: what the vision tower made of them, or None;
        sights: what was watched while it did. weights: the state of the model's weights then.
        inside: the method that merged inside the tower, "" for none; flops: what the tower did
            then, or None.
    """

    clip: weakref.ref[VideoClip]
    placed: Placed
    length: float
    pixels: dict[str, Any]
    output: Any = None
    sights: list[Sight] = field(default_factory=list)
    weights: int = 0
    inside: str = ""
    flops: float | None = None
    prefix: tuple[str, Prefix] | None = None

    def share(self, c: Compression) -> AbstractContextManager[Prefix | None]:
        """Read the video's tokens into the decoder once for all questions, where that can be.

        It can where the method leaves the same of the video for every question. The keys and
        values stay as long as the clip, for the method that was used last.
        """
        method = c.method
        if self.output is None or method.query_aware or method.inside_decoder():
            return nullcontext()
        if self.prefix is None or self.prefix[0] != repr(method):
            self.prefix = repr(method), Prefix()
        return c.reuse(self.prefix[1])

    def serves(self, wants: Sequence[str], weights: int, inside: str) -> bool:
        """Whether it went through the tower so, with these weights, watched for what is wanted."""
        if self.output is None or (self.weights, self.inside) != (weights, inside):
            return False
        return bool(inside) or not wants or any(sight.hidden.numel() for sight in self.sights)


class Eyes:
    """From clips to what the model's prompt needs; the last clip is remembered while it lives.

    Of a clip two things are kept: what the tower makes of it as it is, and what it made with the
    last method that merges inside it.

    Args:
        model: of transformers. adapter: of it. marks: see `prompting.marks_of`. options: of
            `video_pixels`.
    """

    def __init__(
        self, model: Any, adapter: Adapter, marks: Mapping[str, str], options: Mapping[str, Any]
    ) -> None:
        self.model, self.adapter = model, adapter
        self.marks, self.options = dict(marks), dict(options)
        self._seen: list[Seen] = []

    def last(self, clip: VideoClip) -> Seen | None:
        """What is remembered of this very clip."""
        return next((seen for seen in self._seen if seen.clip() is clip), None)

    def open(self, clip: VideoClip) -> Seen:
        """Pixels and places of a clip."""
        seen = self.last(clip)
        if seen is None:
            seen = self._prepared(clip)
            self._seen = [seen]
        return seen

    def see(self, clip: VideoClip, c: Compression) -> Seen:
        """A clip through the vision tower, unless it went through it in the same way before."""
        seen, session, weights = self.open(clip), c._session, weights_state(self.model)
        inside = _merging(session.method, seen.placed.grid)
        end = clip.duration if clip.end is None else min(clip.end, clip.duration)
        # What a method is told of time: not what the prompt rounds it to, but the clip's own.
        session.adapter.tell_seconds((seen.placed.slots, end))
        for known in self._seen:
            if known.clip() is clip and known.serves(session.wants, weights, inside):
                session.sights.extend(known.sights)
                return known
        seen = seen if seen.output is None else self._prepared(clip)
        model = self.model
        seen.pixels = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in seen.pixels.items()
        }
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            return seen  # transformers before it: the model encodes with every prompt
        encoder = getattr(model.base_model, f"get_{session.adapter.modality}_features")
        names = inspect.signature(encoder).parameters
        told = {name: value for name, value in seen.pixels.items() if name in names}
        with weighed(*([model] if inside else [])) as weight:
            seen.output = encoder(**told, return_dict=True)
        seen.sights, seen.weights = list(session.sights), weights
        seen.inside, seen.flops = inside, weight.flops if inside else None
        for name in ("pixel_values", "pixel_values_videos", "pixel_attention_mask"):
            seen.pixels.pop(name, None)
        wait(model)
        others = (s for s in self._seen if s.clip() is clip and bool(s.inside) != bool(inside))
        self._seen = [*(s for s in others if s.output is not None), seen]
        return seen

    def told(self, seen: Seen, c: Compression, ids: Tensor) -> dict[str, Any]:
        """Arguments of the model for a prompt (1, L) about a clip that was seen."""
        told = {**seen.pixels, **beside(self.adapter, seen.placed, ids, seen.length)}
        if seen.output is not None:
            told["mm_encoder_outputs"] = {c._session.adapter.modality: copy.copy(seen.output)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **told}

    def _prepared(self, clip: VideoClip) -> Seen:
        frames = torch.from_numpy(clip.frames.copy())
        kind = str(self.adapter.config.model_type)
        pixels: dict[str, Any] = dict(video_pixels(kind, frames, self.options))
        placed = place(self.adapter, self.marks, pixels, clip.seconds.tolist(), clip.duration)
        end = clip.duration if clip.end is None else min(clip.end, clip.duration)
        return Seen(weakref.ref(clip, self._gone), placed, end - clip.start, pixels)

    def _gone(self, _clip: object) -> None:
        self._seen = [seen for seen in self._seen if seen.clip() is not None]


def _merging(method: Compressor, grid: tuple[int, int, int]) -> str:
    """A method by all its options where it merges inside the tower of such a clip, else ""."""
    slots = [float(t) for t in range(grid[0])]
    part, _ = tower_part(method, VideoTokens.blank(grid, slots, float(grid[0])))
    return "" if part is None else repr(method)


def wait(model: Any) -> None:
    """Until the device is done, so that the clock tells the truth."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
