"""Saliency in what a model says: times with scores, as a curve over the clips of a video.

Models answer in lists ("the 82, 84, 86 seconds. Their saliency scores are 1.3, 1.7, 2.3"), in
lines ("82 - 86 seconds, score 4.5"), or with times alone, which then all weigh 1. A clip that is
not named is 0. Official: TimeSuite's script (also TimeChat's), from its behaviour. VTG-LLM's own
script is another one, which is not here: it splits the text at commas and lines and wants two times
at least.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from vidllm.timecode import find_ranges, find_times, plain

from .base import Item, Response
from .spans_text import all_spans, length

_SCORE_WORD = re.compile(r"\b(?:saliency|salient|scores?|ratings?|importance)\b", re.IGNORECASE)
_SCORE = re.compile(r"(?<![\d.:])(\d+(?:\.\d+)?)(?!\d|[.:]\d)(?: ?/ ?\d+(?:\.\d+)?| out of \d+)?")
_COMMA = re.compile(r"(?<![\d,])(\d),(\d)(?![\d,])")
# What says how scores are given, no time: "on a scale from 1 to 5", "(1-5)".
_SCALE = re.compile(
    r"\b(?:scale|ranges?|ranging|rated?|go|run) (?:of|from) \d+ ?(?:to|-) ?\d+"
    r"|(?:(?<=score )|(?<=scores ))\((?:from )?\d+ ?(?:to|-) ?\d+\)",
    re.IGNORECASE,
)
_TOKENS = re.compile(r"<(?:t\d+|TIME_\w+)>")
_MARKER = re.compile(r"(?m)^ ?(?:\d{1,3}[.)]|[-*•]) ")


class Marked(NamedTuple):
    """A named time or stretch, in seconds, with its score."""

    start: float
    end: float
    score: float


def curve(
    item: Item, response: Response, clips: int, clip_seconds: float = 2.0
) -> list[float] | None:
    """One score a clip: the highest of what names it, 0 where nothing does.

    A stretch names every clip that it overlaps, a time the clip that it lies in. An answer in the
    model's own time tokens says spans, which all weigh 1.

    Args:
        clips: how many there are, each `clip_seconds` long, from 0 on.

    Returns:
        None where no time can be read, or all lie behind the last clip.
    """
    if response.error is not None:
        return None
    own = response.spans and _TOKENS.search(response.raw)
    spans = [Marked(*span, 1.0) for span in all_spans(item, response)]
    marked = spans if own else read_highlights(response.text) or spans
    scores: list[float | None] = [None] * clips
    seconds = length(item, response)
    for start, end, score in marked:
        if start > (clips * clip_seconds if seconds is None else seconds):
            continue
        first = min(int(start / clip_seconds), clips - 1)
        last = max(first + 1, math.ceil(end / clip_seconds))
        for k in range(first, min(last, clips)):
            held = scores[k]
            scores[k] = score if held is None else max(score, held)
    if all(score is None for score in scores):
        return None
    return [0.0 if score is None else score for score in scores]


def read_highlights(text: str) -> list[Marked]:
    """The times of a text with their scores, in the order of the text.

    Lines that each hold both times and a score are read by themselves; else all times before the
    word "score" go with the scores behind it, one by one. A time without a score of its own has
    the lowest that was given, or 1 where there is none.
    """
    said = _SCALE.sub(" ", _MARKER.sub("", plain(text).text))
    lines = [line for line in re.split(r"[\n;}]", said) if line.strip()]
    each = [line for line in lines if _SCORE_WORD.search(line) and _times(line)]
    if len(each) > 1:
        return [Marked(*time, score) for line in each for time, score in _line(line)]
    return [Marked(*time, score) for time, score in _line(" ".join(lines))]


def _line(text: str) -> list[tuple[tuple[float, float], float]]:
    """Times and scores of one list; the scores may stand before the times."""
    word = _SCORE_WORD.search(text)
    if word is None:
        return [(time, 1.0) for time in _times(text)]
    before, behind = text[: word.start()], text[word.end() :]
    times = _times(before)
    if not re.search(r"\d\.\d", behind):
        behind = _COMMA.sub(r"\1.\2", behind)  # decimal commas
    scores = [float(number) for number in _SCORE.findall(behind)]
    if not times and scores:  # "score 4.5 at 82 - 86 seconds"
        times, scores = _times(_SCORE.sub(" ", behind, count=1)), scores[:1]
    rest = min(scores, default=1.0)
    if len(scores) == 1:
        scores *= len(times)
    return list(zip(times, scores + [rest] * (len(times) - len(scores)), strict=False))


def _times(text: str) -> list[tuple[float, float]]:
    """Ranges and lone times, in order of place."""
    ranges = find_ranges(text, loose=False)
    found = [(r.begin, r.first, r.last) for r in ranges]
    passed = 0
    for time in find_times(text):
        while passed < len(ranges) and ranges[passed].end <= time.begin:
            passed += 1
        if passed == len(ranges) or time.begin < ranges[passed].begin:
            found.append((time.begin, time.seconds, time.seconds))
    return [(min(a, b), max(a, b)) for _, a, b in sorted(found)]


def official_curve(text: str, duration: float, clips: int) -> list[float] | None:
    """One score a clip as TimeSuite's script gives it; None where it reads no time.

    The text must have "second" and "score". If both stand there fewer than three times, numbers
    before the first "score" of a line are times and "d.d" numbers behind it scores; else each line
    gives its last "d.d" as score and its last number above 10 as time, so that earlier times are
    lost. Missing scores are 0. A time t falls into clip max(0, int((t − 1) / 2)), and a clip has
    the mean of its scores. "th" is cut out of the text first.
    """
    said = text.replace("th", " ")
    seconds, words = said.count("second"), said.count("score")
    if not seconds or not words:
        return None
    times, scores = (_listed if seconds < 3 and words < 3 else _by_line)(said)
    if len(times) > 1:  # the script leaves a single time without a score out
        scores = (scores + [0.0] * len(times))[: len(times)]
    found: list[list[float]] = [[] for _ in range(clips)]
    for time, score in zip(times, scores, strict=False):
        place = max(0, int((time - 1) / 2))
        if time <= duration and place < clips:
            found[place].append(score)
    if not times:
        return None
    return [sum(values) / len(values) if values else 0.0 for values in found]


def _listed(text: str) -> tuple[list[float], list[float]]:
    times: list[float] = []
    scores: list[float] = []
    for line in text.split("\n"):
        if "second" not in line and "score" not in line:
            continue
        told = re.search(r"There are (\d+) highlight moments", line)
        most = int(told[1]) if told else 100
        line = line.replace(told[0], "") if told else line
        before, *behind = line.split("score")
        numbers = re.findall(r"[-+]?\d*\.\d+|\d+", before)
        times += [float(n) for n in numbers[:most]]
        numbers = re.findall(r"\b\d\.\d\b", behind[0] if behind else line)
        scores += [float(n) for n in numbers[:most]]
    return times, scores


def _by_line(text: str) -> tuple[list[float], list[float]]:
    times: list[float] = []
    scores: list[float] = []
    for line in re.split(r"\n+", text):
        if not any(mark in line for mark in ("second", "score", ":")):
            continue
        scores += [float(n) for n in re.findall(r"\b\d\.\d\b", line)[-1:]]
        bare = re.sub(r"\b\d{1,2}:\d{2}:\d{2}\b", " ", line)
        numbers = [float(n) for n in re.findall(r"\b(\d+\.\d+\b|\b\d+)\b", bare)]
        times += [n for n in numbers if n > 10.0][-1:]
    return times, scores
