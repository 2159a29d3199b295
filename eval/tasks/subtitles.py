"""Subtitles in prompts: the official files, the part of the video that is looked at, the text.

All subtitles of that part are in the prompt. lmms-eval and the page of Video-MME put in only those
that are shown at a sampled frame; here the text does not depend on how many frames a run samples,
so that runs with other frames, or fewer tokens, differ in what they see and in nothing that they
read. Scores with subtitles can therefore not be compared with those of few frames elsewhere.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidllm.errors import InputError

_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_ARROW = re.compile(rf"^\s*({_TIME.pattern})\s*-->\s*({_TIME.pattern})(?:\s.*)?$")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class Cue:
    """What is said from `start` to `end`, in seconds of the video."""

    start: float
    end: float
    text: str


def read_srt(path: Path) -> list[Cue]:
    """The subtitles of an .srt file, in order of time, without mark-up and empty ones.

    Numbers of cues may be missing, times may have a full stop for the comma, and a cue may have
    several lines, which are joined by blanks. An empty file has no subtitles.

    Raises:
        InputError: a file that cannot be read, or text without a line of times.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as subtitles in UTF-8 ({error})") from error
    found: list[tuple[float, float, list[str]]] = []
    for number, line in enumerate(lines):
        if times := _ARROW.match(line):
            if found and lines[number - 1].strip().isdigit() and found[-1][2]:
                found[-1][2].pop()  # the number of this cue, taken for text of the last one
            found.append((seconds(times[1]), seconds(times[5]), []))
        elif found and line.strip():
            found[-1][2].append(line)
        elif line.strip() and not line.strip().isdigit():
            raise InputError(f"{path}, line {number + 1}: a line of times must come first")
    return _ordered(Cue(start, end, _plain(" ".join(text))) for start, end, text in found)


def read_json_subtitles(path: Path, origin: float, duration: float) -> list[Cue]:
    """LongVideoBench's subtitles, moved to the seconds of the video and cut to its length.

    A list of {"start": "hh:mm:ss.ms", "end": …, "line": …}, or of {"timestamp": [start, end],
    "text": …} where a missing end is the end of the video.

    Args:
        origin: `starting_timestamp_for_subtitles`: where the video starts in their time.
        duration: of the video, in seconds.

    Raises:
        InputError: a missing file or a wrong field; names both.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: must be a list of subtitles")
    cues = [
        _json_cue(row, f"{path}, subtitle {k}", origin + duration) for k, row in enumerate(rows)
    ]
    moved = (Cue(c.start - origin, c.end - origin, c.text) for c in cues)
    return within(_ordered(moved), 0.0, duration)


def within(cues: Sequence[Cue], start: float | None = None, end: float | None = None) -> list[Cue]:
    """The subtitles of which something is shown between two times, cut to them."""
    low, high = -math.inf if start is None else start, math.inf if end is None else end
    shown = [cue for cue in cues if cue.start < high and (cue.end > low or cue.start >= low)]
    return [Cue(max(cue.start, low), min(max(cue.start, cue.end), high), cue.text) for cue in shown]


def as_lines(cues: Iterable[Cue], *, times: bool = False) -> str:
    """A line a subtitle, with its seconds if wanted: "[12.3 s - 15.0 s] text"."""
    if not times:
        return "\n".join(cue.text for cue in cues)
    return "\n".join(f"[{cue.start:.1f} s - {cue.end:.1f} s] {cue.text}" for cue in cues)


def seconds(time: str) -> float:
    """Seconds of "hh:mm:ss,ms", "hh:mm:ss.ms" or "mm:ss".

    Raises:
        InputError: any other text.
    """
    found = _TIME.fullmatch(time.strip())
    if not found:
        raise InputError(f"a time is hh:mm:ss,ms, not {time!r}")
    hours, minutes, rest = found.groups()
    return 3600.0 * int(hours or 0) + 60.0 * int(minutes) + float(rest.replace(",", "."))


def _json_cue(row: Any, where: str, last: float) -> Cue:
    try:
        if "timestamp" in row:
            start, end = row["timestamp"]
            return Cue(float(start), last if end is None else float(end), _plain(row["text"]))
        return Cue(seconds(row["start"]), seconds(row["end"]), _plain(row["line"]))
    except KeyError as error:
        raise InputError(f"{where}: the field {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: a wrong time or text ({error})") from error


def _plain(text: str) -> str:
    """Without mark-up; blanks are single."""
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def _ordered(cues: Iterable[Cue]) -> list[Cue]:
    return sorted((cue for cue in cues if cue.text), key=lambda cue: (cue.start, cue.end))
