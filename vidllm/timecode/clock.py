"""Times as people write them: seconds in a short video, clocks such as 1:06:27 in a long one."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Span
from .reader import find_times, named_times

#: Seconds from which on people count a video by the clock.
LONG = 600.0
#: Seconds by which two times may differ that are the same, rounded.
_SAME = 0.11


def clock(seconds: float) -> str:
    """ "1:02:05" or "2:05" for a time."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def span_text(span: Span, long: bool) -> str:
    """A span as "12.3 s – 15.0 s", or by the clock."""
    told = [clock(second) if long else f"{second:.1f} s" for second in span[:2]]
    return " – ".join(told)


def is_long(spans: Sequence[Span]) -> bool:
    """Whether spans reach so far into a video that its times are told by the clock."""
    return max((span.end for span in spans), default=0.0) >= LONG


def names_all(text: str, spans: Sequence[Span]) -> bool:
    """Whether a text names the start and the end of every span, so that nobody need add them."""
    named = [time.seconds for time in named_times(text)] if spans else []
    return all(any(abs(end - one) < _SAME for one in named) for span in spans for end in span[:2])


def by_clock(text: str) -> str:
    """A text whose times, where it names them with a unit, are written by the clock."""
    made, last = "", 0
    for time in find_times(text):
        if time.said and time.begin >= last:
            made, last = made + text[last : time.begin] + clock(time.seconds), time.end
    return made + text[last:]
