"""Dense captions in text: which words go with which stretch of time."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .joints import widened
from .labels import seconds_each
from .reader import find_ranges, read_time
from .reply import answer_text

_START = ("start", "begin", "onset")
_END = ("end", "finish", "stop", "offset")
_BOTH = ("timestamp", "timestamps", "segment", "interval", "range", "time", "times", "span")
_SENTENCE = ("caption", "sentence", "description", "event", "action", "text", "content", "label")
_OBJECT = re.compile(r"\{[^{}]{2,4000}\}")
#: Marks before and behind a sentence that tie it to its times, or dress it.
_HEAD = re.compile(
    r"^(?:[\s.,;:\-–—>|)\]}*_~`：，。、；→\uff09\u3011\u300d\u300f\uff3d]+"
    r"|(?:second(?:e?s|en|[eio])?|segundos?|sekunden?|\u0441\u0435\u043a\u0443\u043d\u0434\w?)\b|秒|\ucd08)+",
    re.IGNORECASE,
)
_MARKER = re.compile(r"^(?:\d{1,3}[.)]|[-*•])\s{1,9}")
_LABEL = re.compile(
    r"(?:^|(?<=\n))[ \t]{0,9}(?:\d{1,3}[.)]|[-*•]|#{1,6}|\|[ \t]{0,3}#?\d{1,3})?[ \t*_]{0,9}"
    r"(?:(?:event|scene|step|segment|clip|part|moment|caption|timestamps?|times?"
    r"|(?:start|begin)(?:ning|ing)?(?:[ _]time)?)\b"
    r"[ \t]{0,3}#?\d{0,3}[ \t]{0,3}[:.)\-–]{0,2})?[ \t*_(\[{<|~`]{0,9}$",
    re.IGNORECASE,
)
_NAME = re.compile(r"^(?:caption|description|sentence|event)\s?:\s*", re.IGNORECASE)
#: Words that tell of no event, with nothing else beside a stretch of time.
_LINKS = frozenset(
    (
        *("it", "this", "that", "the", "a", "an", "event", "moment", "action", "scene", "answer"),
        *(
            "video",
            "clip",
            "time",
            "times",
            "timestamp",
            "timestamps",
            "span",
            "interval",
            "segment",
        ),
        *("happens", "occurs", "is", "takes", "place", "lasts", "starts", "begins", "and", "then"),
        *("in", "at", "from", "to", "of", "on", "between", "during", "within", "until", "till"),
        *("seconds", "second", "s", "so", "final", "described", "shown", "visible"),
    )
)
_TAIL = re.compile(r"(?:^|(?<=[\s.,;:]))(?:and|then|from)\s{0,9}$", re.IGNORECASE)


class Caption(NamedTuple):
    """Seconds as written, and the sentence that goes with them."""

    first: float
    last: float
    sentence: str


def listed_captions(reply: str) -> list[Caption] | None:
    """The captions of an answer that is a list of JSON objects; None where it is none.

    An object has a start and an end, or both in one ("timestamps": [1, 4], "0:01 - 0:04"), and a
    sentence; one without is left out.
    """
    text = answer_text(reply)
    if "{" not in text:
        return None
    rows = list(_objects(_whole(text)))
    if not rows:
        found = (_row(mark[0]) for mark in _OBJECT.finditer(text))
        rows = [row for row in found if row is not None]
    if not rows:
        return None
    return [found for found in map(_caption, rows) if found is not None]


def sentences(text: str, edges: Sequence[tuple[int, int]], begin: int, end: int) -> list[str]:
    """The words that go with each of some stretches in text[begin:end]; "" for none.

    They follow a stretch or precede it, as the lines say; where these do not tell, they precede
    if the text ends with a stretch and begins with words.

    Args:
        edges: [begin, end) of where each stretch is written, in order.
    """
    if not edges:
        return []
    edges = _apart([widened(text, *edge) for edge in edges])
    cuts = [begin, *(edge for pair in edges for edge in pair), end]
    between = [text[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    left = [bool(trim(part.rpartition("\n")[2])) for part in between[:-1]]
    right = [bool(trim(part.partition("\n")[0])) for part in between[1:]]
    if all(right) and not any(left[1:]):
        before = False
    elif all(left) and not any(right[:-1]) and "\n" in between[-1].rstrip() + "\n":
        before = not right[-1]
    else:
        before = bool(trim(between[0])) and not trim(between[-1])
    if before and all(left) and not any(right):
        return [trim(part.rpartition("\n")[2]) for part in between[:-1]]
    if before:
        return [trim(part) for part in between[:-1]]
    # A blank line behind a sentence ends it: what follows is no caption.
    return [
        trim(re.split(r"\n[ \t]*\n", part, maxsplit=1)[0] if same else part)
        for part, same in zip(between[1:], right, strict=True)
    ]


def trim(text: str) -> str:
    """A caption without the marks and words that tie it to its span, and without dress."""
    text = _HEAD.sub("", _MARKER.sub("", text.replace("**", "").lstrip()))
    text = _LABEL.sub("", text)
    text = _TAIL.sub("", text)
    text = _NAME.sub("", text)
    text = text.strip(" \t\n.,;:-–").rstrip(" \t\n.,;:-–|<([{*`\uff08\u3010\u300c\u300e\uff3b")
    return "" if set(re.findall(r"[^\W\d_]+", text.lower())) <= _LINKS else text


def _apart(edges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches without overlaps."""
    apart, last = [], 0
    for begin, end in edges:
        apart.append((max(begin, last), max(end, last)))
        last = apart[-1][1]
    return apart


def _whole(text: str) -> Any:
    """The JSON of an answer that is one object, within its braces."""
    try:
        return json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return None


def _objects(value: Any) -> Iterator[Mapping[Any, Any]]:
    """The objects of an answer that hold a caption, at any depth."""
    if isinstance(value, dict):
        if _caption(value) is not None:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _objects(part)


def _row(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        try:
            row = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return row if isinstance(row, dict) else None


def _caption(row: Mapping[Any, Any]) -> Caption | None:
    named = {
        re.sub(r"[^a-z]", "", str(name).lower()): value
        for name, value in row.items()
        if value is not None
    }
    starts = _ends(row, _START, ("from", "tstart"))
    ends = _ends(row, _END, ("to", "tend"))
    both = next((named[name] for name in _BOTH if name in named), None)
    said = next((named[name] for name in _SENTENCE if name in named), None)
    if not isinstance(said, str) or not said.strip():
        return None
    if not (starts and ends) and isinstance(both, dict):
        starts, ends = _ends(both, _START, ("from",)), _ends(both, _END, ("to",))
    if not (starts and ends) and isinstance(both, list | tuple) and len(both) == 2:
        starts, ends = [(both[0], 1.0)], [(both[1], 1.0)]
    if starts and ends:
        first, last = _seconds(*starts[0]), _seconds(*ends[0])
        return None if first is None or last is None else Caption(first, last, said)
    found = find_ranges(both) if isinstance(both, str) else []
    return Caption(found[0].first, found[0].last, said) if len(found) == 1 else None


def _ends(
    row: Mapping[Any, Any], begins: tuple[str, ...], names: tuple[str, ...]
) -> list[tuple[Any, float]]:
    """What stands under the names of one end, and the seconds of 1 there."""
    found = []
    for label, value in row.items():
        name, each = re.sub(r"[^a-z]", "", str(label).lower()), seconds_each(str(label))
        if (name.startswith(begins) or name in names) and value is not None and each:
            found.append((value, each))
    return found


def _seconds(value: Any, each: float) -> float | None:
    if isinstance(value, str):
        return read_time(value)
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) * each if right and math.isfinite(value) else None
