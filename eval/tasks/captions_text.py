"""Dense captions in what a model says: times with a sentence each.

Honest (`events`): a JSON list with times and sentences; else every range of seconds with the words
that follow it (or precede it, where the answer ends with a range), which reads TimeChat's
"90 - 102 seconds, spread butter." and the models' own time codes alike. Nothing is merged.

Official: `timechat_events` (also VTG-LLM's and TimeSuite's) and `vtimellm_events`, from the
behaviour of the scripts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence

from vidllm.timecode import AbsoluteTime, TextTime

from ..scores.captions import Event
from .base import Item, Response
from .spans_text import length, tokens_as_seconds

#: No video of these benchmarks is longer, where nobody says how long one is.
_LONGEST = 1e6


def events(item: Item, response: Response) -> list[Event]:
    """The events that a response describes, in the order in which they are written."""
    if response.error is not None:
        return []
    seconds = length(item, response)
    longest = _LONGEST if seconds is None else seconds
    if "<TIME_" in response.raw:
        found = AbsoluteTime().captions(response.raw, longest)
    elif (written := tokens_as_seconds(response)) is not None:
        found = TextTime().captions(written, longest)
    else:
        found = TextTime().captions(response.text, longest)
    return [Event(span.start, span.end, " ".join(words.split())) for span, words in found]


def merge_alike(found: Sequence[Event], *, gap: float, ratio: float = 0.98) -> list[Event]:
    """Neighbours with nearly the same sentence as one event, as VTimeLLM's script merges them.

    Args:
        gap: seconds by which the next may start before or behind the end of the last one.
        ratio: of `difflib.SequenceMatcher`, above which sentences are the same.
    """
    merged: list[Event] = []
    for event in found:
        last = merged[-1] if merged else None
        if last is not None and abs(event.start - last.end) <= gap:
            alike = difflib.SequenceMatcher(None, last.sentence, event.sentence).ratio() > ratio
            if alike:
                merged[-1] = Event(last.start, event.end, last.sentence)
                continue
        merged.append(event)
    return merged


def vtimellm_events(text: str, duration: float) -> list[Event] | None:
    """As VTimeLLM's script: a JSON list of {"event", "timestamps": "from xx to xx"}, hundredths.

    An event from a to b lasts from a to b + 1 hundredths of the video; alike neighbours that are
    at most one hundredth apart are merged. None for a text that is no such list.
    """
    mark = re.search(r"\[.*\]", text)
    try:
        rows = json.loads(mark[0]) if mark else None
        found = [
            Event(int(row["timestamps"][5:7]), int(row["timestamps"][-2:]), str(row["event"]))
            for row in rows or ()
        ]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    unit = duration / 100
    return [
        Event(s * unit, (e + 1) * unit, text) for s, e, text in merge_alike(found, gap=1)
    ] or None


def timechat_events(text: str) -> list[Event]:
    """As the script of TimeChat reads "start - end seconds, text" (VTG-LLM and TimeSuite too).

    It is given digits and seconds where a model writes time tokens, see `spans_text.script_text`.

    All "number - number" of the lower-cased text are times; what is left between them, without
    the word "seconds", are the captions, pieces of at most 5 characters dropped; both lists are
    cut to the shorter one. Words before the first time shift all captions by one. Without any such
    range "start time: a … end time: b … description: c" is read. The script's last resort, which
    makes 40 seconds of a single time, is left out.
    """
    said = text.lower()
    number = r"\d+\.*\d*"
    times = re.findall(rf"({number})\s*-\s*({number})", said)
    pieces = re.split(rf"{number}\s*-\s*{number}", said) if times else []
    words = [line for piece in pieces for line in piece.replace("seconds", "").split("\n")]
    if not times:
        starts = re.findall(rf"start(?:ing)? time: ({number})(?:s| seconds)?", said)
        ends = re.findall(rf"end(?:ing)? time: ({number})(?:s| seconds)?", said)
        times = list(zip(starts, ends, strict=False))
        words = re.findall(r"description: (.*)", said) or re.findall(r"\*\s*(.*)", said)
    kept = [line.strip().strip(", ").rstrip() for line in words if len(line) > 5]
    found = []
    for (start, end), sentence in zip(times, kept, strict=False):
        try:
            found.append(Event(float(start), float(end), sentence))
        except ValueError:  # "1..5", which the script's pattern lets through
            continue
    return found
