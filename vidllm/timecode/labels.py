"""Names of the ends of a range, "start", "end_time", "onset_ms", and what their numbers count."""

from __future__ import annotations

import re

START = r"start|begin|onset"
END = r"end|finish|stop|until|offset"
_OTHER = re.compile(
    r"frame|idx|index|token|percent|pct|%|ratio|frac|norm|page|line|char|word|score|conf|prob"
    r"|row|col|pixel|byte|date|year|hours?\b",
    re.IGNORECASE,
)
_MILLI = re.compile(r"(?:[_\s(]|\b)(?:ms|msecs?|milli\w{0,9})\b|Ms\b|Millis\b")
_MINUTES = re.compile(r"(?:[_\s(])(?:min|mins|minutes?)\b|Minutes?\b")


def seconds_each(label: str) -> float | None:
    """Seconds of 1 under a label; None where it counts something else, such as frames."""
    if _OTHER.search(label):
        return None
    return 0.001 if _MILLI.search(label) else 60.0 if _MINUTES.search(label) else 1.0
