"""The times in an answer, for those who show it: pieces of text, captions in rows, a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vidllm.models.answer import Answer
from vidllm.timecode import Span, TextTime, named_times


class Piece(NamedTuple):
    """A piece of a text, and the second that it names; None where it names none."""

    text: str
    seconds: float | None = None


def pieces(text: str, duration: float) -> list[Piece]:
    """An answer cut at its times; joined again it is the same text.

    Clocks ("0:12"), numbers with a unit ("12.3 s") and the ends of ranges ("from 3 to 5") count;
    other numbers do not. Times behind the end of the video are not cut out.

    Args:
        duration: of the video, in seconds.
    """
    cut: list[Piece] = []
    last = 0
    for time in named_times(text):
        if time.seconds > duration + 0.5:
            continue
        if time.begin > last:
            cut.append(Piece(text[last : time.begin]))
        cut.append(Piece(text[time.begin : time.end], min(time.seconds, duration)))
        last = time.end
    if last < len(text):
        cut.append(Piece(text[last:]))
    return cut


def captioned(answer: Answer, duration: float) -> list[tuple[Span, str]]:
    """Dense captions: the spans of an answer with their sentences, in order of time.

    Spans are the answer's own, with their scores, where its text rounds one of them.
    """
    rows = []
    for span, words in TextTime().captions(answer.text, duration):
        near = [s for s in answer.spans if max(abs(s[0] - span[0]), abs(s[1] - span[1])) < 0.1]
        rows.append((near[0] if near else span, words))
    return sorted(rows, key=lambda row: row[0][:2])


def curve(spans: Sequence[Span], seconds: np.ndarray) -> np.ndarray:
    """(T,) how well every second fits: the highest score of the spans that hold it, else 0."""
    values = np.zeros(len(seconds))
    for span in spans:
        inside = (seconds >= span.start) & (seconds <= span.end)
        values[inside] = np.maximum(values[inside], span.score)
    return values


def spans_of(answer: Answer) -> list[Span]:
    """The spans of an answer that did not fail."""
    return [] if answer.failed else list(answer.spans)


def timed_answer(answer: Answer) -> Answer:
    """The answer to a question for a time: without one it failed."""
    if answer.spans:
        return answer
    return replace(answer, failed=True, notes=(*answer.notes, "the answer names no time"))
