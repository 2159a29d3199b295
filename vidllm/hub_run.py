"""A clip through a hub model's vision tower, and a prompt through the model, timed by stages."""

from __future__ import annotations

import copy
import inspect
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from .compressing import Compression
from .cost import Stopwatch
from .models.hf import Adapter
from .models.hf.pixels import video_pixels
from .models.hf.prompting import beside, place
from .models.hf.scripts import Placed
from .models.hf.towers import Sight
from .video import VideoClip


@dataclass
class Seen:
    """A clip as a model sees it.

    Attributes:
        clip: whose it is. placed: its places in a prompt. length: seconds of the sampled range.
        pixels: arguments of the model. output: what the vision tower made of them, or None;
        sights: what was watched while it did.
    """

    clip: weakref.ref[VideoClip]
    placed: Placed
    length: float
    pixels: dict[str, Any]
    output: Any = None
    sights: list[Sight] = field(default_factory=list)


class Eyes:
    """From clips to what the model's prompt needs; the last clip is remembered.

    Args:
        model: of transformers. adapter: of it. marks: see `prompting.marks_of`. options: of
            `video_pixels`.
    """

    def __init__(
        self, model: Any, adapter: Adapter, marks: Mapping[str, str], options: Mapping[str, Any]
    ) -> None:
        self.model, self.adapter = model, adapter
        self.marks, self.options = dict(marks), dict(options)
        self._seen: Seen | None = None

    def last(self, clip: VideoClip) -> Seen | None:
        """What is remembered of this very clip."""
        seen = self._seen
        return seen if seen is not None and seen.clip() is clip else None

    def open(self, clip: VideoClip) -> Seen:
        """Pixels and places of a clip."""
        seen = self.last(clip)
        if seen is None:
            frames = torch.from_numpy(clip.frames.copy())
            kind = str(self.adapter.config.model_type)
            pixels: dict[str, Any] = dict(video_pixels(kind, frames, self.options))
            placed = place(self.adapter, self.marks, pixels, clip.seconds.tolist(), clip.duration)
            length = _end(clip) - clip.start
            self._seen = seen = Seen(weakref.ref(clip), placed, length, pixels)
        return seen

    def see(self, clip: VideoClip, c: Compression) -> Seen:
        """A clip through the vision tower, unless it went through it before."""
        seen, session = self.open(clip), c._session
        seconds, end = seen.placed.slots, _end(clip)
        # What a method is told of time: not what the prompt rounds it to, but the clip's own.
        setattr(session.adapter, "_seconds", lambda *_: (seconds, end))  # noqa: B010
        if seen.output is not None:
            session.sights.extend(seen.sights)
            return seen
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
        seen.output = encoder(**told, return_dict=True)
        seen.sights = list(session.sights)
        for name in ("pixel_values", "pixel_values_videos", "pixel_attention_mask"):
            seen.pixels.pop(name, None)
        wait(model)
        return seen


def generate(
    eyes: Eyes,
    c: Compression,
    seen: Seen,
    ids: Tensor,
    watch: Stopwatch,
    tokenizer: Any,
    max_new_tokens: int,
) -> list[int]:
    """A greedy answer to a prompt (1, L).

    The seconds of compressing, of the prefill (the model's first call without it) and of the rest
    go to `watch` as "compress", "prefill" and "generate".
    """
    model = eyes.model
    told = {**seen.pixels, **beside(eyes.adapter, seen.placed, ids, seen.length)}
    if seen.output is not None:
        told["mm_encoder_outputs"] = {c._session.adapter.modality: copy.copy(seen.output)}
    stop = model.generation_config.eos_token_id
    stop = tokenizer.eos_token_id if stop is None else stop
    pad = tokenizer.pad_token_id
    pad = (stop[0] if isinstance(stop, list) else stop) if pad is None else pad
    with _first_call(model) as ended:
        began = time.perf_counter()
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **told,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=stop,
            pad_token_id=pad,
        )
        wait(model)
        done = time.perf_counter()
    report = c._session.report
    chosen = 0.0 if report is None else report.seconds
    prefilled = ended[0] if ended else done
    watch.add("compress", chosen)
    watch.add("prefill", max(0.0, prefilled - began - chosen))
    watch.add("generate", done - prefilled)
    return cast(list[int], out[0, ids.shape[1] :].tolist())


def wait(model: Any) -> None:
    """Until the device is done, so that the clock tells the truth."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@contextmanager
def _first_call(model: Any) -> Iterator[list[float]]:
    """When the model's first call ends: the prefill."""
    ended: list[float] = []

    def hook(*_: Any) -> None:
        if not ended:
            wait(model)
            ended.append(time.perf_counter())

    handle = model.register_forward_hook(hook)
    try:
        yield ended
    finally:
        handle.remove()


def _end(clip: VideoClip) -> float:
    return clip.duration if clip.end is None else min(clip.end, clip.duration)
