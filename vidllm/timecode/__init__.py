"""How times are told to a model, and the one reader of times in its answers."""

from __future__ import annotations

from .codes import (
    AbsoluteTime,
    Found,
    RelativeTime,
    Span,
    TextTime,
    TimeCode,
    get_timecode,
    number_to_token,
)
from .reader import find_ranges, find_times, lone_times, named_times, read_time
from .reply import answer_text, plain, unfinished

__all__ = [
    "AbsoluteTime",
    "Found",
    "RelativeTime",
    "Span",
    "TextTime",
    "TimeCode",
    "answer_text",
    "find_ranges",
    "find_times",
    "get_timecode",
    "lone_times",
    "named_times",
    "number_to_token",
    "plain",
    "read_time",
    "unfinished",
]
