"""Plots of answers: scores by category, errors of spans, letters against log-probabilities.

Each function gives one matplotlib figure of one theme; none touches matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .answers import Letters, SpanErrors, bin_masks
from .outcome import Outcome, name_of
from .style import Look, Theme, dress, looks, name_axes, new_figure, number

_TEXT = 7.0


def _colours(theme: Theme, outcomes: Sequence[Outcome], palette: Sequence[str]) -> list[Look]:
    """One look an outcome; the same method at another share has other dashes and is fainter."""
    look = looks(palette, theme)
    seen: dict[str, int] = {}
    found = []
    for outcome in outcomes:
        at = look[outcome.method]
        again = seen.get(outcome.method, 0)
        seen[outcome.method] = again + 1
        dashes = ("-", (0, (4, 1.2)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))[again % 4]
        found.append(Look(at.colour, at.marker, dashes, (1.0, 0.72, 0.5, 0.34)[again % 4]))
    return found


def category_bars(
    theme: Theme,
    outcomes: Sequence[Outcome],
    group: str,
    headline: str,
    *,
    palette: Sequence[str],
) -> Figure:
    """The headline in every category of a group, a bar an outcome, with 95 % intervals."""
    groups = [outcome.groups.get(group, {}) for outcome in outcomes]
    names = list(dict.fromkeys(name for one in groups for name in one))
    counts = {name: max(one[name].n for one in groups if name in one) for name in names}
    high = 0.115 * (len(outcomes) + 0.9)
    figure, axes = new_figure(theme, 4.2, 0.95 + max(4 * high, len(names) * high))
    name_axes(axes, theme, headline, f"by {group}")
    step = 1 / (len(outcomes) + 0.9)
    for k, (outcome, at) in enumerate(
        zip(outcomes, _colours(theme, outcomes, palette), strict=True)
    ):
        rows = [row + (k - (len(outcomes) - 1) / 2) * step for row in range(len(names))]
        known = [(row, groups[k][n]) for row, n in zip(rows, names, strict=True) if n in groups[k]]
        axes.barh(
            [row for row, _ in known],
            [part.value for _, part in known],
            height=step * 0.92,
            color=at.colour,
            alpha=at.strength,
            lw=0,
            label=name_of(outcome),
        )
        for row, part in known:
            end = part.value
            if part.low is not None and part.high is not None:
                axes.plot([part.low, part.high], [row, row], color=theme.soft, lw=0.9, zorder=3)
                end = max(end, part.high)
            axes.text(
                end, row, f" {part.value:.3f}", fontsize=5.8, va="center_baseline", color=theme.soft
            )
    axes.set_yticks(
        range(len(names)), [f"{_short(n)} ({counts[n]})" for n in names], fontsize=_TEXT
    )
    axes.invert_yaxis()
    left, right = axes.get_xlim()
    axes.set_xlim(min(0, left), right + 0.09 * (right - left))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(False, axis="y")
    _key(axes, theme)
    return figure


def span_error_bars(
    theme: Theme,
    outcomes: Sequence[Outcome],
    errors: Sequence[SpanErrors],
    *,
    palette: Sequence[str],
    share: bool = False,
) -> Figure:
    """Histograms of start and end errors, one above the other, on one scale.

    Args:
        errors: of each outcome. share: in percent of the video instead of seconds.
    """
    figure, top = new_figure(theme, 4.2, 3.7)
    figure.clear()
    top, bottom = figure.subplots(2, 1, sharex=True, sharey=True)
    unit = "% of the video" if share else "seconds"

    def scaled(values: np.ndarray, found: SpanErrors) -> np.ndarray:
        kept = 100 * values / found.duration if share else values
        return np.asarray(kept[np.isfinite(kept)])

    starts = [scaled(e.start, e) for e in errors]
    ends = [scaled(e.end, e) for e in errors]
    every = np.abs(np.concatenate([*starts, *ends])) if errors else np.zeros(0)
    reach = _nice(float(np.quantile(every, 0.95))) if len(every) else 1.0
    bins = np.linspace(-reach, reach, 32)
    look = _colours(theme, outcomes, palette)
    for axes, name, lists in ((top, "start", starts), (bottom, "end", ends)):
        dress(axes, theme)
        for outcome, at, values in zip(outcomes, look, lists, strict=True):
            _stairs(axes, np.clip(values, -reach, reach), bins, outcome, at)
        axes.axvline(0, color=theme.soft, lw=0.8, zorder=2)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
        head = f"error of the {name}, share of answers"
        axes.set_title(head, fontsize=8.5, color=theme.ink, loc="left")
    bottom.set_xlabel(
        f"{unit}; too early ← 0 → too late; what is farther off lies in the outer bins",
        fontsize=_TEXT,
        color=theme.ink,
    )
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    _key(top, theme, inside=True)
    return figure


def iou_histogram(
    theme: Theme,
    outcomes: Sequence[Outcome],
    errors: Sequence[SpanErrors],
    *,
    palette: Sequence[str],
) -> Figure:
    """The IoU of first spans; answers without a span are at 0."""
    figure, axes = new_figure(theme, 4.2, 3.0)
    name_axes(axes, theme, "IoU of the first span; 0 where there is none", "answers")
    bins = np.linspace(0, 1, 21)
    for outcome, at, found in zip(
        outcomes, _colours(theme, outcomes, palette), errors, strict=True
    ):
        _stairs(axes, found.iou, bins, outcome, at)
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    _key(axes, theme, inside=True)
    return figure


def both_accuracies(
    theme: Theme, outcomes: Sequence[Outcome], letters: Sequence[Letters]
) -> Figure:
    """Accuracy of generated letters and of the most probable ones, a line an outcome."""
    figure, axes = new_figure(theme, 4.2, 0.95 + 0.2 * max(4, len(outcomes)))
    name_axes(axes, theme, "accuracy", "two ways to read an answer")
    generated, likely = theme.lines[1], theme.lines[0]
    rows = list(range(len(outcomes)))
    for row, found in zip(rows, letters, strict=True):
        axes.plot([found.generated, found.likely], [row, row], color=theme.soft, lw=1.4, zorder=2)
    axes.scatter(
        [found.generated for found in letters],
        rows,
        s=26,
        color=generated,
        zorder=3,
        label="generated letter",
    )
    axes.scatter(
        [found.likely for found in letters],
        rows,
        s=30,
        facecolors=theme.paper,
        edgecolors=likely,
        lw=1.6,
        zorder=4,
        label="most probable letter",
    )
    axes.set_yticks(rows, [name_of(o) for o in outcomes], fontsize=_TEXT)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _key(axes, theme)
    return figure


def reliability(
    theme: Theme,
    outcomes: Sequence[Outcome],
    letters: Sequence[Letters],
    *,
    palette: Sequence[str],
) -> Figure:
    """How often the most probable letter is right, by its probability among the options."""
    figure, axes = new_figure(theme, 4.2, 3.3)
    name_axes(axes, theme, "probability of the letter, %", "right, %")
    axes.plot([0, 100], [0, 100], color=theme.soft, lw=0.9, ls=(0, (3, 2)), zorder=2)
    for outcome, at, found in zip(
        outcomes, _colours(theme, outcomes, palette), letters, strict=True
    ):
        full = [m for m in bin_masks(found.confidence) if m.any()]
        x = [100 * float(found.confidence[m].mean()) for m in full]
        y = [100 * float(found.right[m].mean()) for m in full]
        size = [12 + 160 * float(m.mean()) for m in full]
        axes.plot(x, y, color=at.colour, ls=at.dashes, lw=1.3, zorder=3, label=name_of(outcome))
        axes.scatter(x, y, s=size, color=at.colour, alpha=0.75, lw=0, zorder=4)
    axes.set_xlim(0, 103)
    axes.set_ylim(0, 103)
    _key(axes, theme, inside=True)
    return figure


def _stairs(axes: Axes, values: np.ndarray, bins: np.ndarray, outcome: Outcome, at: Look) -> None:
    share = 100 * np.histogram(values, bins)[0] / max(1, len(values))
    style: dict[str, Any] = {"color": at.colour, "label": name_of(outcome)}
    if outcome.is_full:
        axes.stairs(share, bins, fill=True, alpha=0.22, lw=0, zorder=1, **style)
    else:
        axes.stairs(share, bins, lw=1.4, ls=at.dashes, alpha=at.strength, zorder=3, **style)


def _key(axes: Axes, theme: Theme, *, inside: bool = False) -> None:
    """Which colour is whose: in a free corner, or below the axes."""
    style: dict[str, Any] = {
        "fontsize": 6.8,
        "labelcolor": theme.ink,
        "handlelength": 1.4,
        "columnspacing": 1.2,
    }
    if inside:
        box = {"facecolor": theme.paper, "edgecolor": theme.grid, "framealpha": 0.85}
        axes.legend(loc="best", **box, **style)
        return
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, **style)


def _nice(value: float) -> float:
    """The next of 1, 2, 5, 10, … above a value; at least 1."""
    if value <= 1:
        return 1.0
    size = 10.0 ** np.floor(np.log10(value))
    return float(next(m * size for m in (1, 1.5, 2, 3, 5, 7.5, 10) if m * size >= value - 1e-9))


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
