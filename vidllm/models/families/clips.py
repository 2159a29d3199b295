"""A clip through a hub model's vision tower, remembered for the next question about it."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from ..engine import TowerCounter, uncounted, weights_state
from ..hooks.layers import carries_state
from ..hooks.prefill import Prefix
from ..hooks.session import Session
from ..hooks.vision_tower import Sight
from .family import Adapter
from .own_processor import OwnProcessor
from .pixel_files import complete
from .pixels import pixels_of
from .scripts import Placed, beside, place

#: The model's arguments that only its tower reads.
PIXELS = ("pixel_values", "pixel_values_videos", "pixel_attention_mask")


@dataclass
class HubClip:
    """An `EncodedClip` of the hub's models.

    Attributes:
        clip: whose it is. placed: its places in a prompt. length: seconds of the sampled range.
        pixels: arguments of the model. output: what the vision tower made of them, or None;
        sights: what was watched while it did. weights: the state of the model's weights then.
        inside: the method that merged inside the tower, "" for none; tower_flops: what the tower
            did then, or None.
    """

    clip: weakref.ref[VideoClip]
    placed: Placed
    length: float
    pixels: dict[str, Any]
    element_size: int
    output: Any = None
    sights: list[Sight] = field(default_factory=list)
    weights: int = 0
    inside: str = ""
    tower_flops: float | None = None
    prefix: tuple[str, Prefix] | None = None

    @property
    def total(self) -> int:
        return sum(self.placed.counts)

    def drop_pixels(self) -> None:
        """Let go what only the tower reads."""
        for name in PIXELS:
            self.pixels.pop(name, None)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.placed.grid

    @property
    def slots(self) -> list[float]:
        return self.placed.slots

    def share(self, session: Session, system: str = "") -> AbstractContextManager[Prefix | None]:
        """Read the video's tokens into the decoder once for all questions, where that can be.

        It can where the method leaves the same of the video for every question. The keys and
        values stay as long as the clip, for the method and the system prompt of the last time.
        """
        method = session.method
        if self.output is None or method.query_aware or method.inside_decoder():
            return nullcontext()
        if carries_state(session.layers) or not session.views.plain:
            return nullcontext()
        before = f"{method!r} {system}"
        if self.prefix is None or self.prefix[0] != before:
            self.prefix = before, Prefix()
        return session.sharing(self.prefix[1])

    def serves(self, signals: Sequence[str], weights: int, inside: str) -> bool:
        """Whether it went through the tower so, with these weights, watched for these signals."""
        if self.output is None or (self.weights, self.inside) != (weights, inside):
            return False
        return bool(inside) or not signals or any(sight.hidden.numel() for sight in self.sights)


class HubClipMemory:
    """From clips to what the model's prompt needs; the last clip is remembered while it lives.

    Of a clip two things are kept: what the tower makes of it as it is, and what it made with the
    last method that merges inside it.

    Args:
        model: of transformers. adapter: of it. marks: see `scripts.marks_of`. options: of
            `pixels.video_pixels`. processor: the family's own instead, where it makes the pixels.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        marks: Mapping[str, str],
        options: Mapping[str, Any],
        processor: OwnProcessor | None = None,
    ) -> None:
        self.model, self.adapter = model, adapter
        self.kind, self.marks = str(adapter.config.model_type), dict(marks)
        self.processor = processor
        self.options = complete(self.kind, options) if processor is None else {}
        self._kept: list[HubClip] = []
        self._counts: dict[tuple[int, int, int], int] = {}

    def last(self, clip: VideoClip) -> HubClip | None:
        """What is remembered of this very clip."""
        return next((known for known in self._kept if known.clip() is clip), None)

    def open(self, clip: VideoClip) -> HubClip:
        """Pixels and places of a clip."""
        found = self.last(clip)
        if found is None:
            found = self._prepared(clip)
            self._kept = [found]
        return found

    def encode(
        self, clip: VideoClip, session: Session, count_tower: TowerCounter = uncounted
    ) -> HubClip:
        """A clip through the vision tower, unless it went through it in the same way before."""
        mixing = () if session.temporal is None else (session.temporal,)
        video, weights = self.open(clip), weights_state(self.model, *mixing)
        inside = "" if session.merger is None else _merging(session.method, video.grid)
        end = clip.duration if clip.end is None else min(clip.end, clip.duration)
        # What a method is told of time: not what the prompt rounds it to, but the clip's own.
        session.adapter.tell_seconds((video.slots, end))
        for known in self._kept:
            if known.clip() is clip and known.serves(session.wants, weights, inside):
                session.sights.extend(known.sights)
                return known
        video = video if video.output is None else self._prepared(clip)
        encoder = self.encoder()
        if encoder is None:
            self._to_device(video)
            return video  # as transformers before it: the model encodes with every prompt
        if inside:
            with count_tower(self.model) as counted:
                self.see(video, encoder)
            video.tower_flops = counted.flops
        else:
            self.see(video, encoder)
            video.tower_flops = None
        video.sights, video.weights, video.inside = list(session.sights), weights, inside
        wait(self.model)
        others = (s for s in self._kept if s.clip() is clip and bool(s.inside) != bool(inside))
        self._kept = [*(s for s in others if s.output is not None), video]
        return video

    def encoder(self) -> Callable[..., Any] | None:
        """What makes the tower's output by itself, where the model takes such an output back."""
        model = self.model
        found = getattr(model.base_model, f"get_{self.adapter.modality}_features", None)
        takes = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
        return found if takes else None

    def see(self, video: HubClip, encoder: Callable[..., Any]) -> None:
        """A clip's pixels through the tower; they are let go then."""
        self._to_device(video)
        names = inspect.signature(encoder).parameters
        arguments = {name: value for name, value in video.pixels.items() if name in names}
        self.adapter.given(video.pixels)
        video.output = encoder(**arguments, return_dict=True)
        video.drop_pixels()

    def put(self, clip: VideoClip, output: Any, pixels: Mapping[str, Any] | None = None) -> HubClip:
        """Remember a clip whose tower output is known; of its frames only the number counts.

        Args:
            output: as the tower would give it. pixels: the model's arguments for so many frames,
                made already, without the pixels; None to let the family's own processor write the
                clip's times, for which frames are of the video's size.
        """
        video = self._prepared(clip, pixels)
        video.drop_pixels()
        self._to_device(video)
        video.output, video.weights = output, weights_state(self.model)
        # What the tower would have been called with, as far as families find their videos by it.
        told = {name.removeprefix("video_"): value for name, value in video.pixels.items()}
        told["pixel_values"] = output.last_hidden_state
        video.sights = [Sight(told, output=output)]
        self._kept = [video]
        return video

    def put_back(self, video: HubClip) -> None:
        """Remember a clip again that was `put`."""
        self._kept = [video]

    def _to_device(self, video: HubClip) -> None:
        model = self.model
        video.pixels = {
            name: value.to(device_of(model), model.dtype if value.is_floating_point() else None)
            for name, value in video.pixels.items()
        }

    def arguments(self, video: HubClip, session: Session, ids: Tensor) -> dict[str, Any]:
        """Arguments of the model for a prompt (1, L) about an encoded clip."""
        made = {**video.pixels, **beside(self.adapter, video.placed, ids, video.length)}
        if self.processor is not None:
            made |= self.processor.beside(ids)
        if video.output is not None:
            made["mm_encoder_outputs"] = {session.adapter.modality: copy.copy(video.output)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **made}

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens of a clip whose pixels the family's own processor makes."""
        processor = cast(OwnProcessor, self.processor)
        if self.adapter.token_types:  # Qwen's, which say it by sizes
            return processor.count(height, width, frames)
        size = (height, width, frames)
        if size not in self._counts:
            seconds = [float(n) for n in range(frames)]
            blank = np.zeros((frames, height, width, 3), dtype=np.uint8)
            made = processor.video(blank, seconds, **self.adapter.processor_options)
            placed = place(self.adapter, self.marks, made.pixels, seconds, frames, made.text)
            self._counts[size] = sum(placed.counts)
        return self._counts[size]

    def _prepared(self, clip: VideoClip, made_before: Mapping[str, Any] | None = None) -> HubClip:
        seconds, written = clip.seconds.tolist(), ""
        pixels: dict[str, Any]
        if made_before is not None:
            pixels = dict(made_before)
        elif self.processor is None:
            frames = torch.from_numpy(clip.frames.copy())
            pixels = dict(pixels_of(self.kind, frames, self.options))
        else:
            made = self.processor.video(clip.frames, seconds, **self.adapter.processor_options)
            pixels, written = dict(made.pixels), made.text
        placed = place(self.adapter, self.marks, pixels, seconds, clip.duration, written)
        end = clip.duration if clip.end is None else min(clip.end, clip.duration)
        size = next(self.adapter.decoder.parameters()).element_size()
        return HubClip(weakref.ref(clip, self._gone), placed, end - clip.start, pixels, size)

    def _gone(self, _clip: object) -> None:
        self._kept = [known for known in self._kept if known.clip() is not None]


def _merging(method: Compressor, grid: tuple[int, int, int]) -> str:
    """A method by all its options where it merges inside the tower of such a clip, else ""."""
    slots = [float(t) for t in range(grid[0])]
    part, _ = tower_part(method, VideoTokens.blank(grid, slots, float(grid[0])))
    return "" if part is None else repr(method)


def device_of(model: Any) -> torch.device:
    """Where a model takes its inputs; of weights that wait elsewhere, where they are used."""
    if model.device.type != "meta":
        return cast(torch.device, model.device)
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((place for place in places if place is not None), "cpu"))


def wait(model: Any) -> None:
    """Until the device is done, so that the clock tells the truth."""
    if device_of(model).type == "cuda":
        torch.cuda.synchronize(device_of(model))
