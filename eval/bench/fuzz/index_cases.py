"""Damaged indexes of long videos, most of them with checksums made anew."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidllm.longvideo.index import VideoIndex
from vidllm.longvideo.store import IndexFile, write_file
from vidllm.models.answer import Answer

from .byte_damage import ANYWHERE
from .json_damage import damage_json
from .media_cases import Clip, write_clip
from .outcomes import ANSWER, CHANGED, NOTED, WHOLE, Case

_ASKED = "when does the red star spin?"
_SPECIAL = (-1, 2**31 - 1, -(2**31), 2**20, 0, 1)


class IndexTarget:
    """One index and the model that made it, loaded once; see `outcomes.Target`."""

    memory: ClassVar[int] = 2**28
    seconds: ClassVar[float] = 20.0
    cases: ClassVar[int | None] = None

    def __init__(self, folder: Path) -> None:
        from vidllm.ask.video_llm import VideoLLM

        self._llm = VideoLLM.from_pretrained(device="cpu")
        video, self._whole = folder / "video.mp4", folder / "video.vidx"
        if not video.exists():
            write_clip(video, Clip("mp4"), frames=300)
        self._llm.index(video, self._whole, anyway=True)
        held = IndexFile(self._whole)
        self._facts = json.dumps(held.facts)
        self._tensors = {name: held[name].clone() for name in held.names()}
        self._right = self._answers(VideoIndex.load(self._whole, self._llm))
        self._notes = VideoIndex.load(self._whole, self._llm).notes

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        """See `outcomes.Target.case`."""
        path = place / "video.vidx"
        facts, tensors = json.loads(self._facts), dict(self._tensors)
        plausible, told = False, ""
        kind = ("facts", "facts", "tensor", "tensor", "bytes")[number % 5]
        if kind == "facts":
            done = damage_json(facts, draw)
            mutation, plausible, told = done.name, done.plausible, done.told
            self._write(path, facts, tensors)
        elif kind == "tensor":
            name = draw.choice(list(tensors))
            mutation = draw.choice(list(_DAMAGE))
            changed = _DAMAGE[mutation](tensors[name], draw)
            if changed is None:
                del tensors[name]
            else:
                tensors[name] = changed
            plausible, told = mutation in ("possible number", "reversed rows"), name
            self._write(path, facts, tensors)
        else:
            data = bytearray(self._whole.read_bytes())
            mutation = draw.choice(list(ANYWHERE))
            ANYWHERE[mutation](data, draw, bytes(data))
            path.write_bytes(data)
        return Case(f"{kind}: {mutation}", lambda: self._read(path, plausible, told))

    def _write(self, path: Path, facts: Any, tensors: dict[str, Tensor]) -> None:
        shapes = {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
        write_file(path, shapes, facts, list(tensors.items()))

    def _read(self, path: Path, plausible: bool, told: str) -> tuple[str, str]:
        index = VideoIndex.load(path, self._llm)
        answers = self._answers(index)
        new = [note for note in index.notes if note not in self._notes]
        if answers == self._right:
            return (NOTED, "; ".join(new)) if new else (WHOLE, told)
        if new:
            return NOTED, "; ".join(new)
        return (ANSWER if plausible else CHANGED), f"{told}: {answers}"

    def _answers(self, index: VideoIndex) -> tuple[Any, ...]:
        def told(answer: Answer) -> Any:
            return answer.text, answer.spans, answer.notes

        thumbs = [(second, len(data)) for second, data in index.thumbnails()]
        return (
            told(index.ground_answer(_ASKED)),
            told(index.caption(2.0, 6.0)),
            index.duration,
            thumbs,
            repr(index),
        )


def _at(tensor: Tensor, draw: random.Random, value: float) -> Tensor:
    changed = tensor.clone()
    if changed.numel():
        changed.view(-1)[draw.randrange(changed.numel())] = value
    return changed


def _impossible(tensor: Tensor, draw: random.Random) -> Tensor:
    if tensor.is_floating_point():
        return _at(tensor, draw, draw.choice((math.nan, math.inf, -math.inf)))
    low, high = torch.iinfo(tensor.dtype).min, torch.iinfo(tensor.dtype).max
    return _at(tensor, draw, min(high, max(low, draw.choice(_SPECIAL[:4]))))


def _possible(tensor: Tensor, draw: random.Random) -> Tensor:
    return _at(tensor, draw, draw.choice((0, 1)))


def _reversed(tensor: Tensor, _: random.Random) -> Tensor:
    return tensor.flip(0)


def _shorter(tensor: Tensor, draw: random.Random) -> Tensor:
    return tensor[: draw.randrange(max(1, len(tensor)))].contiguous()


def _longer(tensor: Tensor, _: random.Random) -> Tensor:
    return torch.cat([tensor, tensor[-1:]])


def _other_type(tensor: Tensor, draw: random.Random) -> Tensor:
    kinds = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8)
    return tensor.to(draw.choice([kind for kind in kinds if kind != tensor.dtype]))


def _flat(tensor: Tensor, _: random.Random) -> Tensor:
    return tensor.reshape(-1) if tensor.dim() > 1 else tensor[:, None].contiguous()


def _dropped(_tensor: Tensor, _: random.Random) -> None:
    return None


_DAMAGE: dict[str, Callable[[Tensor, random.Random], Tensor | None]] = {
    "impossible number": _impossible,
    "possible number": _possible,
    "reversed rows": _reversed,
    "fewer rows": _shorter,
    "more rows": _longer,
    "other type": _other_type,
    "other shape": _flat,
    "dropped": _dropped,
}
