"""How the plots look: two themes, colours that colour-blind readers tell apart, direct labels.

Everything is set on the figure itself; matplotlib's global settings stay as they are.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

#: Pixels an inch: a figure of 4.2 inches is shown 420 pixels wide, from twice as many.
SHOWN, DRAWN = 100, 200
#: Methods without knowledge of the video, drawn in grey: what every method has to beat.
CONTROLS: tuple[str, ...] = ("random", "uniform")
_MARKERS = "osD^vPXph<>"
_SMALL = 8.0


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; `lines` are told apart also without red or green."""

    name: str
    ink: str
    soft: str
    grid: str
    paper: str
    lines: tuple[str, ...]


LIGHT = Theme(
    "light",
    ink="#1b2330",
    soft="#5c6675",
    grid="#e4e7ec",
    paper="#ffffff",
    lines=(
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#a8327a",
        "#b97a00",
        "#2f95cf",
        "#6b52ae",
        "#6f6f00",
        "#c03a3a",
    ),
)
DARK = Theme(
    "dark",
    ink="#e6e9ee",
    soft="#a3adba",
    grid="#2c333d",
    paper="#14181e",
    lines=(
        "#4ba6e0",
        "#ff8a3d",
        "#2cc79a",
        "#e27ab0",
        "#f0b429",
        "#8acbf5",
        "#b8a6f0",
        "#cfcf6a",
        "#ff8080",
    ),
)


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of one method, the same in every plot of a page."""

    colour: str
    marker: str
    dashes: Any
    strength: float = 1.0


def looks(methods: Sequence[str], theme: Theme) -> dict[str, Look]:
    """A look for each method, by order; "none" is ink, controls are grey and dashed."""
    found: dict[str, Look] = {"none": Look(theme.ink, "*", "-")}
    for name in CONTROLS:
        found[name] = Look(theme.soft, "x" if name == "random" else "+", (0, (3, 2)))
    others = [name for name in dict.fromkeys(methods) if name not in found]
    for k, name in enumerate(others):
        again = k // len(theme.lines)  # the same colour again has other dashes
        found[name] = Look(
            theme.lines[k % len(theme.lines)],
            _MARKERS[k % len(_MARKERS)],
            "-" if not again else (0, (1 + again, 1)),
        )
    return found


def new_figure(theme: Theme, width: float = 4.2, height: float = 3.3) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches, without any state outside itself."""
    figure = Figure(figsize=(width, height), dpi=DRAWN, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dress(axes, theme)
    return figure, axes


def dress(axes: Axes, theme: Theme) -> None:
    """The theme's colours, thin spines, a quiet grid."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.soft)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(colors=theme.soft, labelcolor=theme.ink, labelsize=_SMALL, width=0.8, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def name_axes(axes: Axes, theme: Theme, x: str, y: str, key: str = "") -> None:
    """Names below and, set level, above the axes; `key` explains a sign, above at the right."""
    axes.set_xlabel(x, fontsize=_SMALL, color=theme.ink)
    axes.set_ylabel("")
    axes.set_title(y, fontsize=_SMALL + 0.5, color=theme.ink, loc="left", pad=7)
    if key:
        axes.set_title(key, fontsize=_SMALL - 0.5, color=theme.soft, loc="right", pad=7)


def settle(figure: Figure) -> None:
    """Fit the axes to what stands around them, once; what is added later moves nothing."""
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine("none")


def png(figure: Figure) -> bytes:
    """The figure as PNG of 256 colours; the same figure gives the same bytes.

    The corner keeps its very colour, so that the picture's ground is that of the page.
    """
    settle(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    few = whole.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette, corner = few.getpalette() or [], int(np.asarray(few)[0, 0])
    palette[3 * corner : 3 * corner + 3] = np.asarray(whole)[0, 0].tolist()
    few.putpalette(palette)
    data = io.BytesIO()
    few.save(data, "PNG", optimize=True)
    return data.getvalue()


def number(value: float, digits: int = 3, *, bare: bool = True) -> str:
    """A number with so many digits that count, without an exponent: 0.025, 128, 1 536.

    Args:
        bare: without zeros at the end.
    """
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    if bare and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace(",", "\u2009").replace("-", "−")


def scale_x(axes: Axes, values: Sequence[float], room: float = 0.42) -> None:
    """Scale, limits and ticks of an x axis over positive values.

    Logarithmic where the values spread over a factor of 3 or more. Ticks stand at the values
    where these are few and apart, else at round numbers.

    Args:
        room: share of the width that stays free at the left, for labels.
    """
    low, high = min(values), max(values)
    if high < 3 * low:
        wide = max(high - low, 0.1 * high)
        axes.set_xlim(low - wide * room / (1 - room), high + 0.05 * wide)
        steps = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        places = [v for v in steps if low - 0.3 * wide <= v <= high + 0.05 * wide]
    else:
        axes.set_xscale("log")
        wide = high / low
        axes.set_xlim(low / wide ** (room / (1 - room)), high * wide**0.05)
        places = _log_places(sorted(set(values)))
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _log_places(values: Sequence[float]) -> list[float]:
    apart = all(b / a >= 1.35 for a, b in itertools.pairwise(values))
    if len(values) <= 7 and apart:
        return list(values)
    for figures in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        round_ones = [m * 10.0**e for e in range(-15, 18) for m in figures]
        places = [v for v in round_ones if values[0] * 0.98 <= v <= values[-1] * 1.02]
        if len(places) >= 3:
            return places
    return [values[0], values[-1]]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as possible so that neighbours are `gap` apart, inside [low, high].

    Neighbours that would touch form a block around the mean of where they belong; if there is no
    room for all, the gap shrinks.
    """
    if not places:
        return []
    count = len(places)
    gap = min(gap, (high - low) / max(1, count - 1)) if count > 1 else gap
    order = sorted(range(count), key=lambda i: places[i])
    blocks: list[tuple[float, int]] = []  # lowest place of a block, how many
    for i in order:
        blocks.append((places[i], 1))
        while len(blocks) > 1 and blocks[-2][0] + blocks[-2][1] * gap > blocks[-1][0]:
            (first, m), (second, n) = blocks[-2], blocks[-1]
            blocks[-2:] = [((first * m + (second - m * gap) * n) / (m + n), m + n)]
    found = [first + k * gap for first, n in blocks for k in range(n)]
    for k in range(count):  # back inside, from below and then from above
        found[k] = max(found[k], low + k * gap)
    for k in reversed(range(count)):
        found[k] = min(found[k], high - (count - 1 - k) * gap)
    result = [0.0] * count
    for k, i in enumerate(order):
        result[i] = found[k]
    return result


@dataclass(frozen=True)
class Tag:
    """A direct label: text, the look of its line, and the point that it belongs to.

    `x` is NaN for a level line, which needs no leader where the label stands on it.
    """

    text: str
    look: Look
    x: float
    y: float


def tag_column(axes: Axes, theme: Theme, tags: Sequence[Tag], left: float = 0.02) -> None:
    """Labels in a column at the left inside the axes, joined to their points by thin lines.

    Call it last: the limits of the axes must stand.

    Args:
        left: where the column begins, as a share of the width.
    """
    figure = axes.get_figure(root=True)
    if figure is not None:
        settle(figure)
    box = axes.get_window_extent()
    to_share = axes.transAxes.inverted()
    at = [axes.transData.transform((axes.get_xlim()[1] if t.x != t.x else t.x, t.y)) for t in tags]
    spots = [to_share.transform(place) for place in at]
    gap = 12.5 * DRAWN / SHOWN / box.height
    rows = spread([float(y) for _, y in spots], gap, 0.05, 0.97)
    for tag, (x, y), row in zip(tags, spots, rows, strict=True):
        text = axes.text(
            left,
            row,
            tag.text,
            transform=axes.transAxes,
            fontsize=_SMALL - 0.3,
            color=theme.ink,
            va="center_baseline",
            zorder=6,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
        )
        extent = text.get_window_extent().transformed(to_share)
        begin = float(extent.x1) + 0.012
        if math.isnan(tag.x):
            x = begin + 0.04
            if abs(row - float(y)) < 0.005:
                continue
        axes.plot(
            [begin, float(x)],
            [row, float(y)],
            transform=axes.transAxes,
            color=tag.look.colour,
            linewidth=0.8,
            alpha=0.75,
            zorder=2,
            clip_on=False,
        )
