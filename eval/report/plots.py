"""Plots of settings: score against cost with the Pareto front, score over share, seconds by stage.

Each function gives one matplotlib figure of one theme; none touches matplotlib's global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .outcome import STAGES, Outcome, flop_unit, methods, name_of, reference
from .pareto import front
from .style import (
    CONTROLS,
    Look,
    Tag,
    Theme,
    looks,
    name_axes,
    new_figure,
    number,
    scale_x,
    tag_column,
)

Limits = tuple[float, float]
#: Inches of a plot, across and up.
SIZE = (4.2, 3.3)


@dataclass(frozen=True)
class Cost:
    """What a score is plotted against. `of` gives None where it was not measured."""

    name: str
    axis: str
    of: Callable[[Outcome], float | None]


def costs_of(outcomes: Sequence[Outcome]) -> list[Cost]:
    """Tokens, FLOPs and seconds, as far as the outcomes have them."""
    flops = [o.prefill_flops for o in outcomes if o.prefill_flops is not None]
    size, unit = flop_unit(flops)

    def prefill(outcome: Outcome) -> float | None:
        return None if outcome.prefill_flops is None else outcome.prefill_flops / size

    every = (
        Cost("tokens", "video tokens that the LLM keeps", lambda o: o.tokens_kept),
        Cost("flops", f"prefill {unit} an answer, predicted", prefill),
        Cost("seconds", "seconds spent an answer, all stages", lambda o: o.total_seconds),
    )
    return [cost for cost in every if any((cost.of(o) or 0) > 0 for o in outcomes)]


def score_limits(outcomes: Sequence[Outcome]) -> Limits:
    """Limits of the score axis that hold every outcome and the interval of the reference."""
    values = [o.score for o in outcomes if o.score is not None]
    full = reference(outcomes)
    if full is not None:
        values += [v for v in (full.low, full.high) if v is not None]
    if not values:
        return (0.0, 1.0)
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.01 * max(abs(high), 1e-9))
    return (low - room, high + room)


def score_against(
    theme: Theme,
    outcomes: Sequence[Outcome],
    cost: Cost,
    headline: str,
    *,
    limits: Limits | None = None,
) -> Figure:
    """Score against a cost, a line a method, the Pareto front and the uncompressed run marked.

    Args:
        outcomes: of comparable settings; those without score or cost are left out.
        limits: of the score axis, so that several plots can share it.
    """
    figure, axes = new_figure(theme, *SIZE)
    tags = draw_score_against(axes, theme, outcomes, cost, headline, limits)
    tag_column(axes, theme, tags)
    return figure


def draw_score_against(
    axes: Axes,
    theme: Theme,
    outcomes: Sequence[Outcome],
    cost: Cost,
    headline: str,
    limits: Limits | None = None,
) -> list[Tag]:
    """As `score_against`, into axes that are there.

    Returns:
        The labels, for `tag_column` when all axes of the figure are drawn.
    """
    shown = [(o, c, o.score) for o in outcomes if (c := cost.of(o)) and o.score is not None]
    look = looks(methods(outcomes), theme)
    name_axes(axes, theme, cost.axis, headline, "○ Pareto front")
    if not shown:
        _nothing(axes, theme)
        return []
    values = [c for _, c, _ in shown]
    scale_x(axes, values)
    axes.set_ylim(*(limits or score_limits(outcomes)))
    full = reference([o for o, _, _ in shown])
    _draw_reference(axes, theme, full)
    tags = []
    for method in methods([o for o, _, _ in shown]):
        own = sorted((o.share, c, s) for o, c, s in shown if o.method == method)
        line = [(c, s) for _, c, s in own]
        at = look[method]
        points = line
        if full is not None and (c := cost.of(full)) and full.score is not None:
            points = [*line, (c, full.score)]  # every method ends in the uncompressed run
            axes.plot(*zip(*points[-2:], strict=True), color=at.colour, lw=1, alpha=0.35, zorder=2)
        _line(axes, line, at, method in CONTROLS)
        tags.append(Tag(method, at, *line[0]))
    ahead = front(values, [s for _, _, s in shown])
    front_x, front_y = [values[k] for k in ahead], [shown[k][2] for k in ahead]
    axes.step(
        front_x,
        front_y,
        where="post",
        color=theme.ink,
        lw=1.1,
        alpha=0.6,
        ls=(0, (1, 1.5)),
        zorder=3,
    )
    axes.scatter(front_x, front_y, s=62, facecolors="none", edgecolors=theme.ink, lw=1.0, zorder=5)
    if full is not None and (c := cost.of(full)) and full.score is not None:
        axes.scatter([c], [full.score], marker="*", s=70, color=theme.ink, zorder=6)
        tags.append(Tag("uncompressed", look["none"], math.nan, full.score))
    return tags


def relative_over_keep(theme: Theme, outcomes: Sequence[Outcome], headline: str) -> Figure:
    """What is left of the uncompressed score, in percent, over the share of tokens kept."""
    figure, axes = new_figure(theme, *SIZE)
    shown = [(o, 100 * o.relative) for o in outcomes if o.relative is not None]
    look = looks(methods(outcomes), theme)
    name_axes(axes, theme, "video tokens kept, %", f"{headline}, % of uncompressed")
    rest = [(o, r) for o, r in shown if not o.is_full]
    if not rest:
        _nothing(axes, theme)
        return figure
    keeps = [100 * o.share for o, _ in shown] + [100.0]
    scale_x(axes, keeps)
    values = [r for _, r in rest] + [100.0]
    room = 0.08 * (max(values) - min(values)) + 1
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.axhline(100, color=theme.ink, lw=1, alpha=0.6, zorder=2)
    tags = []
    for method in methods([o for o, _ in rest]):
        line = sorted((100 * o.share, r) for o, r in rest if o.method == method)
        at = look[method]
        axes.plot(*zip(line[-1], (100.0, 100.0), strict=True), color=at.colour, lw=1, alpha=0.35)
        _line(axes, line, at, method in CONTROLS)
        tags.append(Tag(method, at, *line[0]))
    axes.scatter([100], [100], marker="*", s=70, color=theme.ink, zorder=6)
    tag_column(axes, theme, tags)
    return figure


def seconds_by_stage(theme: Theme, outcomes: Sequence[Outcome]) -> Figure:
    """Where the seconds of an answer go: a bar a setting, a part a stage."""
    shown = [o for o in outcomes if o.seconds]
    figure, axes = new_figure(theme, SIZE[0], 0.9 + 0.2 * max(4, len(shown)))
    name_axes(axes, theme, "seconds spent an answer", "where the seconds go")
    if not shown:
        _nothing(axes, theme)
        return figure
    others = [s for o in shown for s in o.seconds if s not in STAGES]
    stages = [*STAGES, *dict.fromkeys(others)]
    stages = [s for s in stages if any(o.seconds.get(s) for o in shown)]
    left = [0.0] * len(shown)
    rows = range(len(shown))
    for k, stage in enumerate(stages):
        parts = [o.seconds.get(stage, 0.0) for o in shown]
        colour = theme.lines[k % len(theme.lines)]
        axes.barh(rows, parts, left=left, height=0.72, color=colour, label=stage, lw=0)
        left = [a + b for a, b in zip(left, parts, strict=True)]
    for row, total in zip(rows, left, strict=True):
        axes.text(
            total,
            row,
            f" {number(total, bare=False)}",
            va="center_baseline",
            fontsize=7,
            color=theme.ink,
        )
    axes.set_yticks(list(rows), [name_of(o) for o in shown], fontsize=7, color=theme.ink)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(left))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    axes.grid(False, axis="y")
    axes.margins(y=0.02)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        fontsize=7,
        frameon=False,
        labelcolor=theme.ink,
        handlelength=0.9,
        columnspacing=1.0,
    )
    return figure


def _line(axes: Axes, line: Sequence[tuple[float, float]], look: Look, control: bool) -> None:
    axes.plot(
        *zip(*line, strict=True),
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        linewidth=1.1 if control else 1.6,
        markersize=5 if control else 4.6,
        markeredgewidth=1.3 if control else 0,
        zorder=4,
    )


def _draw_reference(axes: Axes, theme: Theme, full: Outcome | None) -> None:
    """A line at the uncompressed score and a band over its interval."""
    if full is None or full.score is None:
        return
    axes.axhline(full.score, color=theme.ink, lw=1, alpha=0.6, zorder=2)
    if full.low is not None and full.high is not None:
        axes.axhspan(full.low, full.high, color=theme.soft, alpha=0.12, lw=0, zorder=1)


def _nothing(axes: Axes, theme: Theme) -> None:
    """Say that there is nothing to draw, instead of empty axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        "not measured",
        transform=axes.transAxes,
        ha="center",
        fontsize=9,
        color=theme.soft,
    )
