"""`HeadEngine`: a system without an LLM, asked as `VideoLLM` asks every model.

It says what it can answer and refuses the rest in one line, before a video is read. Nothing is
compressed, for there is no LLM that would read fewer tokens.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.progress import Listener, Stopwatch, check
from vidllm.timecode import get_timecode
from vidllm.tokens import VideoTokens

from ..dialogue import ALONE, Dialogue
from ..engine import (
    Counts,
    Decoded,
    Engine,
    Generation,
    TowerCounter,
    uncounted,
)
from ..native.footage import ClipCheck, KnownFootage
from ..parts import ModelParts
from ..question import check_text
from .head_config import ANSWERS
from .system import HeadSystem
from .systems import load_guard, load_system

if TYPE_CHECKING:
    from vidllm.video import VideoClip

#: Frames of a clip where the system takes a rate and somebody asks for a number.
_FRAMES = 64


@dataclass(frozen=True)
class SeenClip:
    """An `EncodedClip` that a system has seen."""

    seen: Tensor
    slots: np.ndarray
    tower_flops: float | None = None
    element_size: int = 4

    @property
    def total(self) -> int:
        return len(self.slots)

    @property
    def grid(self) -> tuple[int, int, int]:
        return len(self.slots), 1, 1


@dataclass(frozen=True)
class _NoDecoder:
    """As a decoder's config: no layers, so no KV cache."""

    model_type: ClassVar[str] = "none"
    num_hidden_layers: ClassVar[int] = 0
    num_key_value_heads: ClassVar[int] = 1
    num_attention_heads: ClassVar[int] = 1
    hidden_size: ClassVar[int] = 1


@dataclass(frozen=True)
class _Said(Generation):
    """An answer that was never tokens."""

    decoded: Decoded = field(default_factory=lambda: Decoded("", (), ""))


class HeadEngine(Engine):
    """A system without an LLM, ready to be asked.

    Args:
        system: with its weights.
        guard: a tower and the footage that it knows, for a system that stands on no model.
    """

    model: HeadSystem
    family = "vidllm head"
    writes_times = False

    def __init__(
        self, system: HeadSystem, guard: tuple[nn.Module, KnownFootage] | None = None
    ) -> None:
        self.model, self.config = system.eval(), system.config
        self.tokenizer = system.tokenizer  # type: ignore[assignment]  # of a system without words none
        self.compressor = build("none")
        self.code = get_timecode("text")
        self._tower: nn.Module | None = None
        self.footage = None
        if guard is not None:
            self._tower, self.footage = guard
        elif system.config.start:
            self._tower, self.footage = system.frozen.model.vision, system.frozen.footage
        self._last: tuple[weakref.ref[VideoClip], SeenClip] | None = None
        self._checked = ClipCheck(self.footage)

    @classmethod
    def load(
        cls,
        folder: str,
        attn: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        seed: int = 0,
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        tokens: int | None = None,
    ) -> HeadEngine:
        """From a folder.

        Raises:
            InputError: a compressor, a share or a number of tokens is asked for.
            WorkError: weights that cannot be loaded.
        """
        system = load_system(folder)
        guard = load_guard(system.config)
        made = cls(system, guard)
        if isinstance(compressors, str):
            compressors = build(compressors, keep=1.0)
        if compressors is not None:
            made.check_serves(compressors)
        if (keep is not None and keep != 1) or tokens is not None:
            raise InputError(f"{system.config.recipe} {_NOTHING}: leave out --keep and --tokens")
        place = torch.device("cpu") if device is None else device
        system.to(place)
        if system._frozen[0] is not None:
            nn.Module.to(system.frozen.model, device=place)
        if guard is not None:
            guard[0].to(place)
        return made

    @property
    def worked_on(self) -> nn.Module:
        return self.model

    @property
    def parts(self) -> ModelParts:
        return ModelParts(recipe=self.model.config.recipe)

    @property
    def usual_frames(self) -> int:
        return self.model.config.frames or _FRAMES

    @property
    def usual_fps(self) -> float | None:
        return self.model.config.fps or None

    @property
    def decoder_config(self) -> Any:
        return _NoDecoder()

    def twin(self) -> HeadEngine:
        other = copy.copy(self)
        other._last = None
        return other

    def count(self, height: int, width: int, frames: int) -> int:
        """One feature a frame."""
        return frames

    def words(self, task: str, query: str = "") -> str:
        """The query itself; the system refuses it where it tells no times."""
        if task == "caption":
            raise InputError(f"{self.model.config.recipe} describes nothing: {self._tells()}")
        if self.model.course != "alignment":
            raise InputError(f"{self.model.config.recipe} tells no times: {self._tells()}")
        return query

    def _tells(self) -> str:
        how = {
            "alignment": "vidllm ground",
            "choice": "vidllm ask",
            "recognition": "vidllm ask … 'what happens?'",
        }
        return f"it {ANSWERS[self.model.course]} ({how[self.model.course]})"

    def knows(self, clip: VideoClip) -> bool:
        """By the tower of the frozen model, or of the guard; without both there is no claim."""
        return self.footage is None or self._checked.knows(clip, self._tower)

    def check_serves(self, method: Compressor) -> None:
        if method.name != "none":
            raise InputError(f"{self.model.config.recipe} {_NOTHING}: leave out {method.name}")

    def check_questions(self, questions: Sequence[str], answer: int | None) -> None:
        for question in questions:
            check_text(question)
            if not question.strip():
                raise InputError("the question is empty: ask something")
            self.model.check(question)

    def check_dialogue(self, dialogue: Dialogue) -> None:
        if dialogue.texts or dialogue.temperature:
            raise InputError(
                f"{self.model.config.recipe} has no LLM: leave out system, history and temperature"
            )

    @contextmanager
    def at_work(self, method: Compressor, listener: Listener | None = None) -> Iterator[Compressor]:
        self.check_serves(method)
        check(listener)
        yield method

    def check_room(
        self,
        clip: VideoClip,
        questions: Sequence[str],
        answer: int | None,
        times: bool = False,
        dialogue: Dialogue = ALONE,
    ) -> int:
        return len(clip)

    def encode(
        self, clip: VideoClip, work: Compressor, count_tower: TowerCounter = uncounted
    ) -> SeenClip:
        if self._last is None or self._last[0]() is not clip:
            self._last = weakref.ref(clip), SeenClip(self.model.see(clip), clip.seconds)
        return self._last[1]

    def generate(
        self,
        clip: VideoClip,
        video: SeenClip,
        questions: Sequence[str],
        work: Compressor,
        watch: Stopwatch,
        answer: int,
        times: bool = False,
        dialogue: Dialogue = ALONE,
    ) -> list[Generation]:
        check(watch.listener)
        with watch.stage("head"):
            said = self.model.answer(video.seen, clip, questions)
        total = video.total
        counts = Counts(total, total, (), ())
        shared = dict.fromkeys(watch.seconds, len(said))
        nothing = torch.empty(0)
        return [
            _Said(
                [], (), nothing, None, total, 0.0, counts, 0, 0, 0, dict(watch.seconds), shared, one
            )
            for one in said
        ]

    def decode(
        self, said: Generation, question: str, clip: VideoClip, times: bool = False
    ) -> Decoded:
        assert isinstance(said, _Said)  # made by `generate`
        return said.decoded

    def preview(
        self, clip: VideoClip, video: Any, question: str, work: Any, times: bool = False
    ) -> VideoTokens:
        """Every feature, one a frame: nothing is left out."""
        return VideoTokens.from_grid(
            torch.zeros(len(clip), 1, 1, 1), clip.seconds.tolist(), clip.duration
        )

    def prompt_text(
        self, clip: VideoClip, question: str, times: bool = False, dialogue: Dialogue = ALONE
    ) -> str:
        return f"<features {len(clip)}>{question}"


_NOTHING = "has no LLM that could read fewer tokens"
