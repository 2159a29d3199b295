"""The pictures of a part of a report, each in both themes, with words for alternative text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from .answer_plots import (
    both_accuracies,
    category_bars,
    iou_histogram,
    reliability,
    span_error_bars,
)
from .answers import Letters, SpanErrors, letter_accuracy, span_errors
from .load import Row, entry_of
from .needle_map import heatmap
from .outcome import Outcome, methods, name_of, reference, representatives
from .pareto import front
from .plots import Cost, costs_of, relative_over_keep, score_against, score_limits, seconds_by_stage
from .study import Part
from .style import DARK, LIGHT, SHOWN, Theme, number, png

#: More categories than these are a table only.
MOST_CATEGORIES = 24
#: More settings than these do not all get heat maps.
MOST_MAPS = 8


@dataclass(frozen=True)
class Picture:
    """One plot: PNG for both themes, what it is called in a folder, and what it shows in words."""

    name: str
    light: bytes
    dark: bytes
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def light_uri(self) -> str:
        """For an `img`."""
        return _uri(self.light)

    @property
    def dark_uri(self) -> str:
        """For a `source` of the dark theme."""
        return _uri(self.dark)


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def picture(name: str, draw: Callable[[Theme], Figure], alt: str, caption: str = "") -> Picture:
    """Draw in both themes."""
    figure = draw(LIGHT)
    width, height = (round(float(inches) * SHOWN) for inches in figure.get_size_inches())
    return Picture(name, png(figure), png(draw(DARK)), width, height, alt, caption)


def cost_pictures(part: Part) -> list[Picture]:
    """Score against tokens, FLOPs and seconds; relative score over share; seconds by stage."""
    outcomes, name = part.outcomes, part.headline
    limits, found = score_limits(outcomes), []
    for cost in costs_of(outcomes):

        def draw(theme: Theme, cost: Cost = cost) -> Figure:
            return score_against(theme, outcomes, cost, name, limits=limits)

        words = _front_words(outcomes, cost, name)
        caption = words
        if cost.name == "flops":
            caption += f" {_other_flops(outcomes)}"
        elif cost.name == "tokens":
            caption += " The band is the 95 % interval of the uncompressed run."
        found.append(picture(f"{part.slug}-{cost.name}", draw, words, caption))
    if any(o.relative is not None and not o.is_full for o in outcomes):
        found.append(
            picture(
                f"{part.slug}-relative",
                lambda theme: relative_over_keep(theme, outcomes, name),
                f"{name} in percent of the uncompressed run over the share of tokens kept",
            )
        )
    if any(o.seconds for o in outcomes):
        found.append(
            picture(
                f"{part.slug}-stages",
                lambda theme: seconds_by_stage(theme, outcomes),
                "seconds of an answer by stage, a bar a setting",
                "Means over answers; questions asked together share what is done once for them.",
            )
        )
    return found


def group_pictures(part: Part) -> list[Picture]:
    """Bars by category of every group: the uncompressed run and the best setting of each share."""
    few = representatives(part.outcomes)
    names = dict.fromkeys(group for o in few for group in o.groups)
    found = []
    for group in names:
        if not 1 < len({c for o in few for c in o.groups.get(group, {})}) <= MOST_CATEGORIES:
            continue

        def draw(theme: Theme, group: str = group) -> Figure:
            return category_bars(theme, few, group, part.headline, palette=methods(part.outcomes))

        found.append(
            picture(
                f"{part.slug}-by-{_file_name(group)}",
                draw,
                f"{part.headline} by {group}, for {', '.join(name_of(o) for o in few)}",
            )
        )
    return found


def span_pictures(part: Part) -> tuple[list[Picture], str]:
    """Histograms of span errors and IoU, and a line on what is not in them."""
    few = [o for o in representatives(part.outcomes) if rows_of(part, o.label)]
    items = part.runs[0].items
    errors = [span_errors(items, rows_of(part, o.label), part.runs[0].family) for o in few]
    if not any(len(e.start) for e in errors):
        return [], ""
    palette = methods(part.outcomes)
    pairs: list[tuple[str, Callable[[Theme], Figure], str]] = [
        (
            "errors-seconds",
            lambda t: span_error_bars(t, few, errors, palette=palette),
            "errors of starts and ends in seconds",
        ),
        (
            "errors-share",
            lambda t: span_error_bars(t, few, errors, palette=palette, share=True),
            "errors of starts and ends in percent of the video",
        ),
        (
            "iou",
            lambda t: iou_histogram(t, few, errors, palette=palette),
            "IoU of first spans",
        ),
    ]
    if all(bool(_no_durations(e)) for e in errors):
        del pairs[1]
    found = [picture(f"{part.slug}-{name}", draw, words) for name, draw, words in pairs]
    missing = ", ".join(f"{name_of(o)} {e.missing}" for o, e in zip(few, errors, strict=True))
    note = (
        f"The first span of each answer against the true one that it meets best, for "
        f"{len(errors[0].iou)} questions. Answers without a span have no error and an IoU of 0: "
        f"{missing}."
    )
    return found, note


def letter_pictures(part: Part) -> tuple[list[Picture], list[tuple[Outcome, Letters]]]:
    """Both ways to read a multiple choice, for all settings; how sure is how right, for few."""
    items = part.runs[0].items
    every = [(o, letter_accuracy(items, rows_of(part, o.label))) for o in part.outcomes]
    known = [(o, letters) for o, letters in every if letters is not None]
    if not known:
        return [], []
    few = {o.label for o in representatives(part.outcomes)}
    shown = [(o, letters) for o, letters in known if o.label in few]
    outcomes, letters = [o for o, _ in known], [found for _, found in known]
    first = picture(
        f"{part.slug}-letters",
        lambda t: both_accuracies(t, outcomes, letters),
        "accuracy of generated letters and of the most probable ones, a line a setting",
    )
    if not shown:
        return [first], known
    second = picture(
        f"{part.slug}-calibration",
        lambda t: reliability(
            t, [o for o, _ in shown], [x for _, x in shown], palette=methods(part.outcomes)
        ),
        "share of right letters over their probability among the options",
        "Larger dots stand for more questions; on the dashed line letters are as often right as "
        "they are probable.",
    )
    return [first, second], known


def needle_pictures(part: Part) -> list[Picture]:
    """The heat maps of the needle test; of many settings only those that stand for all."""
    fps = part.config.get("fps")
    shown = part.outcomes if len(part.outcomes) <= MOST_MAPS else representatives(part.outcomes)
    rows = [
        {**{k: v for k, v in entry_of(row).items() if k != "kept"}, "fps": fps}
        for outcome in shown
        for row in rows_of(part, outcome.label).values()
    ]
    if not rows:
        return []
    words = "recall of the needle by its depth and the length of the clip"
    return [
        picture(f"{part.slug}-heatmap", lambda t: heatmap(rows, ink=t.ink, paper=t.paper), words)
    ]


def rows_of(part: Part, label: str) -> Mapping[str, Row]:
    """The answers of a setting, by question."""
    return next((run.rows[label] for run in part.runs if run.rows.get(label)), {})


def _front_words(outcomes: Sequence[Outcome], cost: Cost, headline: str) -> str:
    shown = [(o, c, o.score) for o in outcomes if (c := cost.of(o)) and o.score is not None]
    ahead = front([c for _, c, _ in shown], [s for _, _, s in shown])
    names = ", ".join(f"{name_of(shown[k][0])} ({number(shown[k][1])})" for k in ahead)
    return f"{headline} against {cost.axis}. On the front: {names}."


def _other_flops(outcomes: Sequence[Outcome]) -> str:
    full = reference(outcomes) or outcomes[0]
    rest = {k: v for k, v in full.flops.items() if k not in ("prefill", "total") and v}
    if not rest or not full.prefill_flops:
        return ""
    words = ", ".join(f"{k} {number(v / full.prefill_flops)}" for k, v in rest.items())
    return f"Beside it, as multiples of the uncompressed prefill: {words}."


def _no_durations(errors: SpanErrors) -> bool:
    return not any(d == d for d in errors.duration)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:40]
