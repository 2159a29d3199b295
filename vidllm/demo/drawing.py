"""Pictures over time as inline SVG: to scale at every width, coloured by the page's variables.

Places along the time axis are percentages of the width, so that nothing is distorted and no
script is needed; heights are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from vidllm.timecode import Span
from vidllm.tokens import TokenMap

from .sessions import Row

_BAR, _SPAN, _TICK, _NAME, _AXIS = 36, 16, 7, 15, 20
#: Distances of the marks on the axis, in seconds.
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
_MOST_MARKS = 6
_MOST_LANES = 4


def clock(seconds: float, digits: int = 1) -> str:
    """ "0:16.6", "1:02:03.4"; without a fraction where `digits` is 0."""
    whole = round(max(0.0, seconds), digits)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    width = 3 + digits if digits else 2
    last = f"{second:0{width}.{digits}f}"
    return f"{hours:.0f}:{minutes:02.0f}:{last}" if hours else f"{minutes:.0f}:{last}"


def timeline(
    duration: float,
    rows: Sequence[Row] = (),
    frames: Sequence[float] | np.ndarray = (),
    kept: TokenMap | None = None,
) -> str:
    """What is known of a video along its time.

    Args:
        duration: seconds of the video; 0 for none.
        rows: spans, a line each name. frames: seconds of the sampled frames.
        kept: for bars of the tokens that stand in every slot, of those that were there.
    """
    if duration <= 0:
        return ""
    parts: list[str] = []
    top = 0
    for number, row in enumerate(rows):
        parts += _named(top, row.name if row.spans else f"{row.name}: no time")
        top += _NAME
        for lane in lanes(row.spans):
            parts.append(_rect(0, 100, top, _SPAN, "vl-lane"))
            for span in lane:
                words = f"{row.name}: {clock(span.start)} – {clock(span.end)}"
                left, wide = _place(span, duration)
                parts.append(_rect(left, wide, top, _SPAN, f"vl-span vl-span-{number % 2}", words))
            top += _SPAN + 2
        top += 3
    if kept is not None:
        parts += _named(top, "tokens kept per frame")
        top += _NAME
        parts += _bars(kept, duration, top)
        top += _BAR + 4
    if len(frames):
        name = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
        parts += _named(top, name)
        top += _NAME
        parts += [_line(_at(float(t), duration), top, top + _TICK, "vl-tick") for t in frames]
        top += _TICK + 3
    parts += _axis(duration, top)
    return (
        f'<svg class="vl-timeline" width="100%" height="{top + _AXIS}" role="img" '
        f'aria-label="timeline of {clock(duration)}">{"".join(parts)}</svg>'
    )


def scores(duration: float, seconds: np.ndarray, values: np.ndarray) -> str:
    """A curve over time, as steps: how well every second fits.

    Args:
        duration: of the video. seconds: (T,) where the curve is known. values: (T,) from 0 on.
    """
    high = 90
    most = float(values.max(initial=0.0))
    if duration <= 0 or most <= 0:
        return '<p class="vl-hint">no moment was found</p>'
    # One rectangle a run of equal values.
    steps = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    middle = [0.0, *((seconds[:-1] + seconds[1:]) / 2).tolist(), duration]
    parts = [_rect(0, 100, _NAME, high, "vl-lane")]
    for first, last in pairwise(steps):
        value, start, end = float(values[first]), middle[first], middle[last]
        if value <= 0:
            continue
        tall = value / most * (high - 6)
        left, wide = _place(Span(start, end), duration)
        words = f"{clock(start)} – {clock(end)}: {value:.2f}"
        parts.append(_rect(left, wide, _NAME + high - tall, tall, "vl-curve", words))
    parts += _named(0, f"score, up to {most:.2f}")
    parts += _axis(duration, _NAME + high + 2)
    return (
        f'<svg class="vl-timeline" width="100%" height="{_NAME + high + 2 + _AXIS}" role="img" '
        f'aria-label="scores over time">{"".join(parts)}</svg>'
    )


def lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans in as few lines as show each whole; those behind the last line overlap in it."""
    found: list[list[Span]] = [[]]
    for span in sorted(spans, key=lambda s: s[:2]):
        free = next((lane for lane in found if not lane or lane[-1].end <= span.start), None)
        if free is None and len(found) < _MOST_LANES:
            free = []
            found.append(free)
        (found[-1] if free is None else free).append(span)
    return found


def _bars(kept: TokenMap, duration: float, top: int) -> list[str]:
    counts = kept.per_frame().tolist()
    cells = kept.grid[1] * kept.grid[2]
    # A token that was made new may stand where several do.
    most = max(cells, *counts)
    seconds = kept.seconds.tolist()
    gaps = np.diff(kept.seconds)
    step = float(np.median(gaps)) if len(gaps) else duration
    wide = max(0.15, 0.8 * 100 * step / duration)
    parts = [_rect(0, 100, top, _BAR, "vl-lane")]
    for at, count in zip(seconds, counts, strict=True):
        tall = _BAR * count / most
        middle = min(max(_at(at, duration), wide / 2), 100 - wide / 2)
        words = f"{clock(at)}: {count} of {cells} tokens"
        if count:
            parts.append(_rect(middle - wide / 2, wide, top + _BAR - tall, tall, "vl-bar", words))
    return parts


def _axis(duration: float, top: int) -> list[str]:
    step = next((s for s in _STEPS if duration / s <= _MOST_MARKS), duration / _MOST_MARKS)
    digits = 1 if step < 1 else 0
    parts = [f'<line class="vl-axis" x1="0" x2="100%" y1="{top}" y2="{top}"/>']
    for number in range(int(duration / step) + 1):
        at = _at(number * step, duration)
        anchor = "start" if at < 3 else "end" if at > 95 else "middle"
        parts.append(_line(at, top, top + 4, "vl-axis"))
        parts.append(
            f'<text class="vl-word" x="{at:.3f}%" y="{top + 16}" text-anchor="{anchor}">'
            f"{clock(number * step, digits)}</text>"
        )
    return parts


def _named(top: int, name: str) -> list[str]:
    return [f'<text class="vl-word" x="0" y="{top + 11}">{escape(name)}</text>']


def _at(seconds: float, duration: float) -> float:
    return 100 * min(max(seconds / duration, 0.0), 1.0)


def _place(span: Span, duration: float) -> tuple[float, float]:
    """Left edge and width of a span, in percent."""
    left = _at(span.start, duration)
    return left, _at(span.end, duration) - left


def _rect(left: float, wide: float, top: float, tall: float, kind: str, words: str = "") -> str:
    title = f"<title>{escape(words)}</title>" if words else ""
    return (
        f'<rect class="{kind}" x="{left:.3f}%" width="{wide:.3f}%" y="{top:g}" '
        f'height="{tall:.2f}">{title}</rect>'
    )


def _line(at: float, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{at:.3f}%" x2="{at:.3f}%" y1="{top:g}" y2="{bottom:g}"/>'
