"""What every time code promises: spans, parsed answers, and the base class of the codes.

Use it through `vidllm.timecode`, which exports all of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from vidllm.errors import InputError

from .captions import sentences
from .reply import answer_part


class Span(NamedTuple):
    """A stretch of a video in seconds, with a score where a method gives one."""

    start: float
    end: float
    score: float = 1.0

    def iou(self, other: Span) -> float:
        """Intersection over true union; 0 where the union is empty."""
        shared = max(0.0, min(self.end, other.end) - max(self.start, other.start))
        union = (self.end - self.start) + (other.end - other.start) - shared
        return shared / union if union > 0 else 0.0


class Found(NamedTuple):
    """A span and the piece of the answer, [begin, end), that says it."""

    span: Span
    begin: int
    end: int


@dataclass(frozen=True)
class Parsed:
    """What an answer says about time.

    Attributes:
        spans: every span, in the order of the answer; what `failure` says when there is none.
        text: the answer with its times written for people, as "from 12.3 s to 15.0 s".
        failed: True when the answer held no span.
    """

    spans: tuple[Span, ...]
    text: str
    failed: bool


class TimeCode(ABC):
    """Base of the time codes.

    Attributes:
        special_tokens: what the tokenizer must know as single tokens.
        failure: what an answer without a span means: "whole" (the whole video, LITA) or "miss".
    """

    name: ClassVar[str]
    failure: ClassVar[Literal["whole", "miss"]] = "miss"
    special_tokens: tuple[str, ...] = ()

    @abstractmethod
    def encode(self, seconds: float, duration: float) -> str:
        """Write a time of a video that lasts `duration` seconds."""

    @abstractmethod
    def decode(self, code: str, duration: float) -> float:
        """Seconds of one written time; InputError when `code` is none."""

    @abstractmethod
    def find(self, answer: str, duration: float) -> list[Found]:
        """Every span of an answer with its place, clamped to the video, ends in order."""

    def readable(self, answer: str, duration: float) -> str:
        """The answer with its times written for people."""
        return answer.strip()

    def stamps(self, seconds: Iterable[float], duration: float) -> list[str]:
        """One prompt part a frame: its time."""
        return [self.encode(float(t), duration) for t in seconds]

    def parse(self, answer: str, duration: float) -> Parsed:
        """Read an answer; one without a span comes back with `failed` set, never an error.

        Raises:
            InputError: a duration that is negative or not finite.
        """
        spans = tuple(found.span for found in self.find(answer, check_duration(duration)))
        text = self.readable(answer, duration)
        if spans:
            return Parsed(spans, text, failed=False)
        whole = (Span(0.0, float(duration)),) if self.failure == "whole" else ()
        return Parsed(whole, text, failed=True)

    def captions(self, answer: str, duration: float) -> list[tuple[Span, str]]:
        """Dense captions: every span with its sentence; spans without words are left out.

        The sentence follows its span ("<t1> <t9> text", "1.0 - 9.5 seconds, text"), or precedes
        it when the answer ends with a span and begins with words ("text from <t1> to <t9>"), or
        when every line does.
        """
        found = self.find(answer, check_duration(duration))
        begin, end, _ = answer_part(answer)
        words = sentences(answer, [(item.begin, item.end) for item in found], begin, end)
        return [
            (item.span, self.readable(text, duration))
            for item, text in zip(found, words, strict=True)
            if text
        ]


def check_duration(duration: float) -> float:
    """The duration as a float; InputError when it is negative or not finite."""
    if not math.isfinite(duration) or duration < 0:
        raise InputError(f"a video's duration must be finite seconds from 0 on, not {duration}")
    return float(duration)


def clamped_span(first: float, last: float, duration: float) -> Span:
    """The span of two times in either order, held in [0, duration]."""
    start, end = sorted(min(max(t, 0.0), duration) for t in (first, last))
    return Span(start, end)
