"""Answers from an index of a hub model: the whole video coarsely, then closely where the answer is.

A look is a clip put together of stored features, as many frames as the model takes, spread evenly
over a stretch of the video; prompt, seconds and positions are those of these frames. The first look
is the whole video. Where its answer names a time, the next one is around that, denser by as much as
it is shorter, until a look shows every frame that the index holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.models.answer import Answer, Receipt
from vidllm.models.cost.flops import kv_bytes_per_token
from vidllm.models.engine import USUAL_ANSWER, Decoded, Generation, one_at_a_time
from vidllm.models.families.clips import HubClip
from vidllm.models.families.engine import HubEngine
from vidllm.models.families.frame_features import NO_FEATURES, FrameFeatures, FrameGroups
from vidllm.models.hooks.session import Session
from vidllm.progress import Stopwatch
from vidllm.timecode import Span
from vidllm.timecode.clock import clock
from vidllm.video import VideoClip

from .answering import KEPT_BYTES, IndexContents, stretch_of
from .encoders import frames_in
from .marks import method_of
from .windows import LEVELS, on_screen

LOOKS = 5  # that a question takes at most, behind the first one and the parts
_PARTS = 4  # of a video whose first look names no time
_SHORTER = 0.8  # a closer look is at most so long, in shares of the one before
NO_SIGNALS = (
    "{} works with the vision tower, whose signals an index does not hold: index with a compressor "
    "of the stage tokens, such as temporal-pool"
)


def check_method(engine: HubEngine, method: Compressor) -> None:
    """See that a method can compress clips of stored features.

    Raises:
        InputError: it cannot, or the library takes no features back.
    """
    if engine.memory.encoder() is None:
        raise InputError(NO_FEATURES.format(engine.family))
    session = Session(engine.adapter, method)
    if session.wants or session.merger is not None:
        raise InputError(NO_SIGNALS.format(method.name))


@dataclass(frozen=True)
class Look:
    """A clip of an index.

    Attributes:
        start, end: seconds of the stretch. step: from one group of frames to the next.
        whole: it shows every frame of the stretch.
    """

    start: float
    end: float
    step: float
    whole: bool
    clip: VideoClip
    video: HubClip


@dataclass(frozen=True)
class Said:
    """What a look answers."""

    look: Look
    made: Decoded
    generation: Generation

    @property
    def spans(self) -> list[Span]:
        """Those that it shows something of, the surest first."""
        look = self.look
        shown = [s for s in self.made.spans if s.end >= look.start and s.start <= look.end]
        return sorted(shown, key=lambda span: -span.score)

    @property
    def best(self) -> Span | None:
        """The surest one."""
        return next(iter(self.spans), None)

    @property
    def sure(self) -> float:
        """Mean probability of the answer's tokens."""
        scores = list(self.generation.scores)
        return math.exp(sum(scores) / len(scores)) if scores else 0.0


class LookReader:
    """Asks clips of an index of a hub model.

    Args:
        index: the index. engine: the model that made it; whatever compressor it has, clips are
            compressed as the index says.

    Raises:
        InputError: the index's compressor cannot be made.
    """

    def __init__(self, index: IndexContents, engine: HubEngine) -> None:
        facts = index.facts
        self.index, self.method = index, method_of(facts["compressor"], engine)
        check_method(engine, self.method)
        self.features = FrameFeatures(engine, FrameGroups(**facts["clip"]))
        self.engine, self.shape = self.features.engine, self.features.shape
        seconds, row = index.frames()
        self.seconds = seconds.reshape(-1, self.shape.step)  # of the frames of every group
        self.frames = frames_in(seconds, self.shape.step)
        self.row = row[:: self.shape.step].long()
        self.tokens = index.tensor("tokens")
        self.pace = self.shape.step / facts["fps"]
        self._first: Look | None = None
        self._account = _Account()

    @property
    def worked_on(self) -> nn.Module:
        """The model, which one thread asks at a time."""
        return self.engine.worked_on

    @one_at_a_time
    def ground(self, prompt: str) -> Answer:
        """A prompt that asks for a time."""
        notes = self._begin(prompt)
        said = self._located(prompt, self._times(), notes)
        return self._answer(said, notes, timed=True)

    @one_at_a_time
    def ask(self, question: str) -> Answer:
        """Any question; see `VideoIndex.ask`."""
        notes = self._begin(question)
        said = self._say(self.first(), question, False)
        if said.best is not None and not self._times():  # times that the model was told
            said = self._closely(question, False, said, notes)
        elif not said.look.whole:
            where = self._located(self.engine.words("ground", question), self._times(), notes)
            if where.best is not None and where.look is not said.look:
                close = self._say(where.look, question, False)
                notes.append("the surer of the answers to both looks is given")
                said = close if close.sure > said.sure else said
        return self._answer(said, notes)

    @one_at_a_time
    def caption(self, start: float | None, end: float | None) -> Answer:
        """Captions of a stretch, in pieces that show every frame or of two minutes."""
        begin, stop = stretch_of(self.index, start, end)
        prompt, times = self.engine.words("caption"), self._times()
        notes = self._begin(prompt)
        length = max(LEVELS[0], self.shape.groups * self.pace)
        count = max(1, round((stop - begin) / length))
        edges = np.linspace(begin, stop, count + 1)
        made = []
        for low, high in pairwise(edges.tolist()):
            made.append(self._say(self.look(low, high, widen=False), prompt, times).made)
        pieces = "1 piece" if count == 1 else f"{count} pieces"
        notes.append(f"looked at {pieces} of {edges[1] - edges[0]:.0f} s")
        spans = [span for part in made for span in part.spans if begin <= span.start <= stop]
        notes += dict.fromkeys(note for part in made for note in part.notes)
        text = "\n".join(part.text for part in made)
        return Answer(
            text, tuple(spans), self._account.receipt(self), "\n".join(part.raw for part in made),
            notes=(*self.index.notes, *notes),
        )  # fmt: skip

    def first(self) -> Look:
        """The whole video; what the decoder holds of it stays for the next question."""
        if self._first is None:
            self._first = self.look(0.0, self.index.duration)
        return self._first

    def look(self, start: float, end: float, *, widen: bool = True) -> Look:
        """A clip of a stretch; wider where that has too few frames to fill it, or some twice."""
        most, first = self.shape.groups, self.seconds[:, 0]
        low = int(np.searchsorted(first, start - 1e-6))
        high = int(np.searchsorted(first, end + 1e-6))
        if widen and high - low < most <= len(first):  # the frames around its middle
            low = min(max(0, (low + high - most) // 2), len(first) - most)
            high = low + most
            start, end = min(start, float(first[low])), max(end, float(first[high - 1]))
        step = (end - start) / most
        if high - low == most:
            chosen, told, pace = np.arange(low, high), first[low:high], None
        else:
            moments = start + (np.arange(most) + 0.5) * step
            chosen, told = on_screen(first, moments, self.pace, self.index.facts["lost"])
            pace = max(1e-3, float(told[-1] - told[0]) / max(1, most - 1))
        seconds = np.where((told == first[chosen])[:, None], self.seconds[chosen], told[:, None])
        seconds = np.maximum.accumulate(seconds.reshape(-1))[: self.shape.frames]
        facts = self.index.facts
        every = start <= 0 and end >= facts["duration"] - 1e-6
        clip, video = self.features.clip(
            self.tokens[self.row[torch.from_numpy(chosen)]].to(torch.float32),
            seconds,
            facts["duration"],
            0.0 if every else start,
            None if every else end,
            pace,
        )
        return Look(start, end, step, high - low <= most, clip, video)

    def fits(self, look: Look, statement: str) -> float:
        """How probable the model holds "yes" when it is asked whether a thing happens in a clip."""
        question = f"Does this happen in the video: {statement}? Answer yes or no."
        said = self._say(look, question, False, 1).generation
        odds = [float(said.first[list(ids)].exp().sum()) for ids in self._yes_no()]
        return odds[0] / max(sum(odds), 1e-12)

    def located(self, prompt: str) -> tuple[Look, Sequence[Span]]:
        """The closest look for a prompt that asks for a time, and the spans that it names."""
        notes = self._begin(prompt)
        said = self._located(prompt, self._times(), notes)
        return said.look, said.spans

    def forget(self) -> None:
        """Let what the decoder holds of the video go."""
        self._first = None

    def _begin(self, prompt: str) -> list[str]:
        """A new account, and no notes yet; refuses what is no prompt, before anything runs."""
        self.engine.check_questions([prompt], None)
        self._account = _Account()
        return []

    def _times(self) -> bool:
        return bool(self.engine.timed({}).get("times", False))

    def _yes_no(self) -> tuple[set[int], set[int]]:
        def firsts(word: str) -> set[int]:
            texts = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
            made: Any = [self.engine.tokenizer(t, add_special_tokens=False) for t in texts]
            return {ids["input_ids"][0] for ids in made if ids["input_ids"]}

        yes, no = firsts("yes"), firsts("no")
        return yes - no, no - yes

    def _located(self, prompt: str, times: bool, notes: list[str]) -> Said:
        """The first look, or where that names no time its parts, then closer ones."""
        said = self._say(self.first(), prompt, times)
        if said.best is None and not said.look.whole:
            edges = np.linspace(0.0, self.index.duration, _PARTS + 1).tolist()
            parts = [
                self._say(self.look(low, high), prompt, times) for low, high in pairwise(edges)
            ]
            notes.append(f"it names no time for the whole: looked at {_PARTS} parts of it")
            named = [part for part in parts if part.best is not None]
            said = max(named, key=lambda part: part.spans[0].score, default=said)
        return self._closely(prompt, times, said, notes)

    def _closely(self, prompt: str, times: bool, said: Said, notes: list[str]) -> Said:
        """Look after look around what the one before names."""
        for _ in range(LOOKS):
            near = self._nearer(said)
            if near is None:
                break
            closer = self._say(near, prompt, times)
            notes.append(f"then closely at {clock(near.start)}–{clock(near.end)}")
            if closer.best is None:
                notes.append("that names no time: the one before counts")
                break
            said = closer
        return said

    def _nearer(self, said: Said) -> Look | None:
        """The stretch around a span, by as much as lies between two frames of the look."""
        look, best = said.look, said.best
        if best is None or look.whole:
            return None
        start = max(0.0, best.start - look.step)
        end = min(self.index.duration, best.end + look.step)
        near = self.look(start, end)
        if near.end - near.start > _SHORTER * (look.end - look.start) and not near.whole:
            return None
        return near

    def _say(self, look: Look, question: str, times: bool, most: int = USUAL_ANSWER) -> Said:
        self.features.remember(look.video)
        with self.engine.at_work(self.method) as work:
            self.engine.check_room(look.clip, [question], None, times)
            video = self.engine.encode(look.clip, work)
            watch = Stopwatch()
            [made] = self.engine.generate(look.clip, video, [question], work, watch, most, times)
        if look.video.prefix is not None and look.video.prefix[1].bytes > KEPT_BYTES:
            look.video.prefix = None
        self._account.add(made)
        return Said(look, self.engine.decode(made, question, look.clip, times), made)

    def _answer(self, said: Said, notes: list[str], timed: bool = False) -> Answer:
        made, first = said.made, self.first()
        looked = f"looked at the whole in {self.shape.frames} of {self.frames} frames"
        told = [] if first.whole else [looked, *notes]
        spans = tuple(said.spans)
        failed = timed and not spans
        told += ["the answer names no time"] if failed else []
        notes = [*self.index.notes, *self.method.notes(), *told, *made.notes]
        return Answer(made.text, spans, self._account.receipt(self), made.raw, failed, tuple(notes))


class _Account:
    """Tokens and seconds of all looks of a question."""

    def __init__(self) -> None:
        self.kept, self.seconds = 0, dict[str, float]()

    def add(self, made: Generation) -> None:
        """A look."""
        self.kept += made.kept
        for name, value in made.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def receipt(self, reader: LookReader) -> Receipt:
        """Against reading every frame of the index."""
        full = len(reader.seconds) * reader.shape.rows * reader.shape.columns
        size = kv_bytes_per_token(reader.engine.decoder_config, reader.first().video.element_size)
        sizes = full * size / 1e6, self.kept * size / 1e6
        method, model = reader.method.name, reader.engine.name
        return Receipt(
            reader.frames, full, self.kept, *sizes, self.seconds, method=method, model=model
        )
