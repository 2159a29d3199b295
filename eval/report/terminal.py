"""The result of a run on a terminal: settings in rows, and what failed, said plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vidllm.cli.options import say
from vidllm.cli.tables import console, three_digits
from vidllm.errors import WorkError

#: Scores and settings that are shown; all of them stand in results.json.
MOST_SCORES, MOST_SETTINGS, MOST_LINES = 24, 4, 6
#: Columns of a table where there is no terminal.
_WIDE = 160
#: How many videos are named behind a reason.
NAMED = 5


def show(results: Mapping[str, Any], *, official: bool = False, scores: bool = True) -> None:
    """Print what results.json holds.

    Args:
        official: show the scores of the benchmark's own script in the place of ours.
        scores: show the other scores too, as far as they are few.
    """
    out = console(_WIDE)
    out.print(_settings(results, official))
    settings = list(results["results"].values())
    names = list(dict.fromkeys(name for one in settings for name in one["scores"]))
    if len(names) > MOST_SCORES:  # those of parts go
        names = [name for name in names if "/" not in name]
    if scores and 1 < len(names) <= MOST_SCORES and len(settings) <= MOST_SETTINGS:
        out.print(_scores(settings, names, official))
    for line in _differences(settings):
        out.print(line, markup=False, highlight=False)


def _settings(results: Mapping[str, Any], official: bool) -> Table:
    name = results["headline"]
    table = Table(
        title=_title(results), caption=_caption(results), caption_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("setting", overflow="fold", min_width=12)
    score = f"{name}, official" if official else name
    towers = results.get("family") == "retrieval"
    more = ("tower GFLOPs", "encode s") if towers else ()
    for head in (score, "95 %", "of full", "p", "tokens", *more, "seconds", "unread", "failed"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in results["results"].values():
        headline, relation, costs = one["headline"], one["relative"] or {}, one["costs"]
        value = headline.get("official", headline["value"]) if official else headline["value"]
        interval = "" if headline["low"] is None else _span(headline["low"], headline["high"])
        share = relation.get("share")
        table.add_row(
            one["label"],
            three_digits(value),
            interval,
            "" if share is None else f"{100 * share:.1f} %",
            "" if relation.get("p") is None else f"{relation['p']:.3f}",
            "" if costs["tokens_kept"] is None else f"{costs['tokens_kept']:g}",
            *(_tower(costs) if towers else ()),
            "" if costs["total_seconds"] is None else f"{costs['total_seconds']:.3g}",
            str(one["parse_failures"]),
            str(one["failed"]),
        )
    return table


def _tower(costs: Mapping[str, Any]) -> tuple[str, str]:
    """What a clip costs in the vision tower: GFLOPs and measured seconds."""
    flops, seconds = costs["flops"].get("vision"), costs["seconds"].get("encode")
    return (
        "" if flops is None else f"{flops / 1e9:.3g}",
        "" if seconds is None else f"{seconds:.3g}",
    )


def _title(results: Mapping[str, Any]) -> str:
    parts = [f"{results['task']} {results['split']}", Path(results["model"]).name]
    one = next(iter(results["results"].values()), None)
    if one is not None:
        parts.append(f"{one['answers']} answers about {one['videos']} videos")
    if not results["finished"]:
        parts.append(f"unfinished: {results['answers']} of {results['expected']} answers")
    return " · ".join(parts)


def _caption(results: Mapping[str, Any]) -> str:
    one = next(iter(results["results"].values()), None)
    if one is None or not one["costs"]["seconds"]:
        return ""
    stages = " · ".join(f"{stage} {value:.3g}" for stage, value in one["costs"]["seconds"].items())
    return f"seconds of an answer, {one['label']}: {stages}"


def _scores(settings: Sequence[Mapping[str, Any]], names: Sequence[str], official: bool) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("score", no_wrap=True)
    for one in settings:
        table.add_column(one["label"], justify="right", no_wrap=True)
    for name in names:
        row = []
        for one in settings:
            value = one["scores"].get(name)
            row.append(three_digits(one["official"].get(name, value) if official else value))
        table.add_row(name, *row)
    return table


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the benchmark's own script gives another number than ours."""
    found: dict[str, list[str]] = {}
    for one in settings:
        told = [
            f"{name} {three_digits(value)} (ours {three_digits(one['scores'][name])})"
            if name in one["scores"]
            else f"{name} {three_digits(value)}"
            for name, value in one["official"].items()
        ]
        if told:
            found.setdefault(" · ".join(told), []).append(one["label"])
    lines = [f"official script, {', '.join(labels)}: {text}" for text, labels in found.items()]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], "… more official scores stand in results.json"]
    reasons = dict.fromkeys(one["unofficial"] for one in settings if one["unofficial"])
    return [*lines, *(f"no official scores: {reason}" for reason in reasons)]


def say_failures(results: Mapping[str, Any]) -> None:
    """Say plainly, on standard error, what has no answer and why."""
    reasons: dict[str, dict[str, None]] = {}
    count = 0
    for one in results["results"].values():
        count += one["failed"]
        for reason, videos in one["failed_videos"].items():
            reasons.setdefault(reason, {}).update(dict.fromkeys(videos))
    if not count:
        return
    say(f"failed: {count} of {results['answers']} answers, which count as wrong")
    for reason, videos in reasons.items():
        more = f" and {len(videos) - NAMED} more" if len(videos) > NAMED else ""
        say(f"  {', '.join(list(videos)[:NAMED])}{more}: {reason}")


def check_failures(results: Mapping[str, Any]) -> None:
    """Raise WorkError where every single answer failed."""
    failed = sum(one["failed"] for one in results["results"].values())
    if failed and failed == results["answers"]:
        one = next(iter(results["results"].values()))
        raise WorkError(f"all {failed} answers failed, because: {next(iter(one['failed_videos']))}")


def show_comparison(rows: Sequence[Mapping[str, Any]], names: tuple[str, str]) -> None:
    """Print the rows of `compare.compare`."""
    title = f"{rows[0]['headline']} · A {names[0]} · B {names[1]}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("setting", overflow="fold")
    for head in ("A", "B", "B − A", "95 %", "p", "only A", "only B", "McNemar p", "n", "videos"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        test = row["mcnemar"]
        table.add_row(
            row["setting"],
            three_digits(row["first"]),
            three_digits(row["second"]),
            f"{row['difference']:+.3f}",
            f"{row['low']:+.3f} … {row['high']:+.3f}",
            f"{row['p']:.3f}",
            str(test["first_only"]),
            str(test["second_only"]),
            f"{test['p']:.3f}",
            str(row["n"]),
            str(row["videos"]),
        )
    table.caption = f"paired by question, drawn by video; right for McNemar: {test['right']}"
    console(_WIDE).print(table)


def _span(low: float, high: float) -> str:
    return f"{three_digits(low)}–{three_digits(high)}"
