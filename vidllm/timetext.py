"""Times and time ranges in free text: "12.3 - 15 seconds", "from 0:12 to 0:15", "starts at 5 s".

Regular expressions only; `vidllm.timecode` decides what a range, or none, means.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SECOND = r"(?:seconds?|secs?|s)\b"
_MINUTE = r"(?:minutes?|mins?|m)\b"
_HOUR = r"(?:hours?|hrs?|h)\b"
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
# One time: a clock (1:02:03.5 or 02:03), units (1 h 2 min 3 s, the larger ones optional), or a
# bare number. A digit, dot or colon on either side means that it is a piece of something else.
_TIME = (
    r"(?<![\d:])(?<!\d\.)(?:"
    r"(?:\d+:)?\d{1,2}:\d{2}(?:\.\d+)?(?![\d:])"
    rf"|{_NUMBER}\s*{_HOUR}(?:[\s,]*(?:and\s+)?{_NUMBER}\s*{_MINUTE})?"
    rf"(?:[\s,]*(?:and\s+)?{_NUMBER}\s*{_SECOND})?"
    rf"|{_NUMBER}\s*{_MINUTE}(?:[\s,]*(?:and\s+)?{_NUMBER}\s*{_SECOND})?"
    rf"|{_NUMBER}(?![\d:]|\.\d)(?:\s*{_SECOND})?"
    r")"
)
_AT = r"(?:\s*(?:at|around|about|the|second|seconds|time|mark|is|was|:|=|~))*\s*"
_JOINED = rf"\s*(?:-+|–|—|−|~|\bto\b|\buntil\b|\btill\b|\bthrough\b){_AT}"
_RANGES = re.compile(
    rf"(?P<lead>\b(?:from|between)\b{_AT})(?P<a>{_TIME})(?:{_JOINED}|\s*\band\b{_AT})(?P<b>{_TIME})"
    rf"|(?P<open>[\[(]\s*)(?P<e>{_TIME})\s*(?:,|;|{_JOINED})\s*(?P<f>{_TIME})\s*[\])]"
    rf"|(?<!\d-)(?P<c>{_TIME}){_JOINED}(?P<d>{_TIME})(?!\s*-\s*\d)",  # but no dates
    re.IGNORECASE,
)
_SENTENCES = re.compile(
    rf"\b(?:start|begin)\w*\b[^\d]{{0,40}}?(?P<a>{_TIME}).{{0,80}}?"
    rf"\b(?:end|finish|stop|until)\w*\b[^\d]{{0,40}}?(?P<b>{_TIME})",
    re.IGNORECASE | re.DOTALL,
)
_WORD_AFTER = re.compile(r"\s+(?!and\b|then\b)[^\W\d]", re.IGNORECASE)
_PARTS = re.compile(rf"({_NUMBER})\s*({_HOUR}|{_MINUTE}|{_SECOND})?", re.IGNORECASE)


class TextRange(NamedTuple):
    """Two times in seconds as written, and where the range stands in the text."""

    first: float
    last: float
    begin: int
    end: int


def read_time(text: str) -> float | None:
    """Seconds of one time ("12.3", "12 s", "1 min 20 s", "01:20", "1:02:03.5"), or None."""
    found = re.fullmatch(rf"\s*{_TIME}\s*", text, re.IGNORECASE)
    return None if found is None else _seconds(text)


def find_ranges(text: str) -> list[TextRange]:
    """All ranges in a text, in order; "starts at A ... ends at B" counts where no other is found.

    A range of bare whole numbers before a word ("2 - 3 people") is left out when the text also
    has ranges that are plainly times: with a unit, a clock, a decimal point or a "from".
    """
    ranges, plain, doubtful = [], [], []
    for found in _RANGES.finditer(text):
        group = found.groupdict()
        first = group["a"] or group["c"] or group["e"]
        last = group["b"] or group["d"] or group["f"]
        ranges.append(TextRange(*_pair(first, last), *found.span()))
        plain.append(bool(group["lead"] or re.search(r"[a-z.:]", first + last, re.IGNORECASE)))
        doubtful.append(not plain[-1] and bool(_WORD_AFTER.match(text, found.end())))
    if any(plain):
        ranges = [found for found, odd in zip(ranges, doubtful, strict=True) if not odd]
    if ranges:
        return ranges
    return [
        TextRange(*_pair(found["a"], found["b"]), *found.span())
        for found in _SENTENCES.finditer(text)
    ]


def _pair(first: str, last: str) -> tuple[float, float]:
    # "1 to 2 minutes": the first number borrows the unit of the second.
    if re.fullmatch(rf"\s*{_NUMBER}\s*", first):
        unit = re.fullmatch(rf"\s*{_NUMBER}\s*({_HOUR}|{_MINUTE})\s*", last, re.IGNORECASE)
        if unit:
            first = f"{first} {unit[1]}"
    return _seconds(first), _seconds(last)


def _seconds(text: str) -> float:
    if ":" in text:
        total = 0.0
        for part in text.split(":"):
            total = total * 60 + float(part)
        return total
    scale = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(n) * scale[(unit or "s")[0].lower()] for n, unit in _PARTS.findall(text))
