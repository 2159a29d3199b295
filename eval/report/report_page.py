"""The page: one self-contained HTML file, made of a template that escapes everything it is given.

What a model or a file says is never trusted: jinja2 escapes it, and a content security policy
forbids scripts and requests altogether.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vidllm import __version__
from vidllm.cli.tables import three_digits
from vidllm.errors import InputError
from vidllm.errors.printable import printable

from ..tasks import get_task
from ..tasks.base import Item
from .answer_frames import Case, Pictures, pictures, plain_truth, timeline_end, worst_cases
from .gallery import (
    Picture,
    cost_pictures,
    group_pictures,
    letter_pictures,
    needle_pictures,
    span_pictures,
)
from .load import Run
from .outcome import FULL, Outcome, name_of, reference, split_label
from .study import FREE, Part, Section, flat, shown
from .tables import Cell, facts, group_table, score_rows, score_tables, table

_HERE = Path(__file__).parent
#: How many unreadable answers are shown, and how much of each.
_UNREAD, _LONG = 20, 400

#: Finds the video of an item of a run; raises InputError where there is none.
Finder = Callable[[Run, Item], Path]


def render(found: Sequence[Section], *, worst: int, find: Finder) -> tuple[str, list[Picture]]:
    """The page and the pictures on it.

    Args:
        worst: how many cases each part shows.
        find: where videos are.
    """
    drawn: list[Picture] = []
    context = {
        "version": __version__,
        "css": (_HERE / "page.css").read_text(encoding="utf-8"),
        "title": _title(found),
        "summary": [line for section in found for line in _summary(section)],
        "sections": [_section(section, k, worst, find, drawn) for k, section in enumerate(found)],
        "config": _config([run for s in found for part in s.parts for run in part.runs]),
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["setting"] = lambda outcome: _joined(name_of(outcome))
    return environment.get_template("page.html.j2").render(context), drawn


def _shown(value: Any) -> Any:
    """What the page shows of a value: text without control characters."""
    return printable(value, lines=True) if type(value) is str else value


def _title(found: Sequence[Section]) -> str:
    return f"vidllm report: {', '.join(section.task for section in found)}"


def _summary(section: Section) -> list[str]:
    """The best of each share, in a sentence a part."""
    lines = []
    for part in section.parts:
        full = reference(part.outcomes)
        rest = [o for o in part.outcomes if not o.is_full and o.score is not None]
        where = section.task + (f" ({part.name})" if part.name else "")
        head = f"{where}: {part.headline}"
        if full is not None and full.score is not None:
            head += f" {full.score:.3f} uncompressed"
        best = []
        for share in sorted({o.share for o in rest}, reverse=True):
            top = max((o for o in rest if o.share == share), key=lambda o: o.score or 0.0)
            left = "" if top.relative is None else f" ({100 * top.relative:.1f} %)"
            best.append(f"{top.score:.3f}{left} with {name_of(top)}")
        lines.append(_joined("; ".join([head, *best]) + "."))
    return lines


def _section(
    section: Section, number: int, worst: int, find: Finder, drawn: list[Picture]
) -> dict[str, Any]:
    try:
        task = get_task(section.task)
        about = f"{task.summary}. {task.citation}".strip(" .") + "."
    except InputError:  # a task of another version: its numbers stand all the same
        about = ""
    return {
        "task": section.task,
        "anchor": f"task-{number + 1}",
        "about": about,
        "parts": [_part(section.task, part, worst, find, drawn) for part in section.parts],
    }


def _part(task: str, part: Part, worst: int, find: Finder, drawn: list[Picture]) -> dict[str, Any]:
    heads, rows = table(part)
    spans, spans_note = span_pictures(part)
    letters, letter_rows = letter_pictures(part)
    needle = needle_pictures(part) if task == "needle" else []
    costs, groups = cost_pictures(part), group_pictures(part)
    drawn += [*costs, *spans, *letters, *needle, *groups]
    cases = [
        _case(case, pictures(case, partial(find, run), str(run.config.get("reader", "pyav"))))
        for run, case in _worst(part, worst)
    ]
    against = any(case["loss"] for case in cases)
    unread, unread_count = _unread(part)
    names = dict.fromkeys(group for o in part.outcomes for group in o.groups)
    return {
        "name": part.name,
        "headline": part.headline,
        "facts": facts(part),
        "notes": part.notes,
        "columns": heads,
        "rows": rows,
        "costs": costs,
        "spans": spans,
        "spans_note": spans_note,
        "letters": letters,
        "letter_rows": [
            (
                outcome,
                [
                    *(Cell(f"{v:.3f}") for v in (x.generated, x.likely, x.agree, x.ece)),
                    Cell(str(x.n)),
                ],
            )
            for outcome, x in letter_rows
        ],
        "needle": needle,
        "groups": [_group(part, name) for name in names],
        "group_plots": groups,
        "cases": cases,
        "cases_title": "What compression lost" if against else "Lowest values",
        "cases_note": _CASES[against] + _half(part),
        "any_frames": any(case["stills"] for case in cases),
        "any_time": any(case["stills"] and case["time"] for case in cases),
        "failed": _failed(part),
        "unread": unread,
        "unread_count": unread_count,
        "scores": [
            {
                "title": f"{whole} in parts" if whole else "All scores",
                "heads": [name.removeprefix(f"{whole}/") for name in names],
                "rows": score_rows(part, names),
            }
            for whole, names in score_tables(part)
        ],
    }


_CASES = {
    True: "Answers that lost most of their value against the uncompressed run, each question "
    "once; of equal losses the one at the larger share of tokens. Methods that only serve to "
    "compare with (random, uniform) are left out if there are others.",
    False: "Answers with the lowest values, each question once.",
}


def _half(part: Part) -> str:
    """What the places of the cases are for, where the headline does not count all answers."""
    run = part.runs[0]
    if len(run.counted) == len(run.items) or not run.of:
        return ""
    return f" Half of them are answers that the headline counts ({run.of})."


def _worst(part: Part, worst: int) -> list[tuple[Run, Case]]:
    """The worst cases of all runs of a part, each question once."""
    every = [(run, case) for run in part.runs for case in worst_cases(run, worst)]
    every.sort(key=lambda pair: -(pair[1].loss if pair[1].loss is not None else -1.0))
    found: dict[str, tuple[Run, Case]] = {}
    for run, case in every:
        found.setdefault(case.item.id, (run, case))
    return list(found.values())[:worst]


def _case(case: Case, seen: Pictures) -> dict[str, Any]:
    item, row = case.item, case.row
    answers = [(name_of_label(row.setting), row)]
    if case.full is not None:
        answers.insert(0, (name_of_label(FULL), case.full))
    kind = f"{item.kind} · " if item.kind else ""
    value = f"value {three_digits(row.value)}"
    return {
        "setting": name_of_label(row.setting),
        "loss": case.loss is not None,
        "head": value if case.loss is None else f"−{case.loss:.3f}",
        "where": f"{kind}{item.id} · video {item.video or item.vid}",
        "prompt": item.prompt,
        "truth": _words(plain_truth(case)),
        "answers": [
            {
                "name": name,
                "text": one.response.error or one.response.text or "(nothing)",
                "value": "" if one.value is None else f"value {three_digits(one.value)}",
            }
            for name, one in answers
        ],
        "reason": seen.reason,
        "notes": seen.notes,
        "stills": seen.stills,
        "time": _time(case, seen),
        "others": [(name_of_label(label), three_digits(value)) for label, value in case.others],
    }


def _time(case: Case, seen: Pictures) -> dict[str, Any] | None:
    """The timeline: true and answered spans to scale, and where the frames are."""
    rows = [("true", "truth", case.truth)]
    if case.full is not None:
        rows.append((name_of_label(FULL), "full", case.said(case.full)))
    rows.append((name_of_label(case.row.setting), "said", case.said(case.row)))
    if not any(spans for _, _, spans in rows):
        return None
    end = timeline_end(case)

    def bar(start: float, stop: float) -> dict[str, Any]:
        left, right = (100 * min(max(t / end, 0.0), 1.0) for t in (start, stop))
        title = f"{start:.1f} to {stop:.1f} s"
        return {"left": f"{left:.3f}", "width": f"{right - left:.3f}", "title": title}

    tracks = [
        {"name": name, "kind": kind, "bars": [bar(*span) for span in spans]}
        for name, kind, spans in rows
    ]
    if seen.stills:
        bars = [{**bar(s.second, s.second), "width": "0"} for s in seen.stills]
        tracks.append({"name": "frames above", "kind": "frames", "bars": bars})
    return {"tracks": tracks, "end": f"{end:.1f} s", "middle": f"{end / 2:.1f}"}


def name_of_label(label: str) -> str:
    """The label of a setting for people."""
    return _joined(name_of(Outcome(label, *split_label(label))))


def _joined(text: str) -> str:
    """No line ends between a number and its percent sign."""
    return text.replace(" %", "\u00a0%")


def _group(part: Part, name: str) -> dict[str, Any]:
    heads, rows = group_table(part, name)
    return {"name": name, "heads": heads, "rows": rows}


def _failed(part: Part) -> list[dict[str, str]]:
    """Videos without an answer, with the reason and the settings that have none."""
    found: dict[tuple[str, str], list[str]] = {}
    for outcome in part.outcomes:
        for reason, videos in outcome.failed.items():
            for video in videos:
                found.setdefault((video, reason), []).append(name_of(outcome))
    every = len(part.outcomes)
    return [
        {
            "video": video,
            "reason": reason,
            "settings": "all" if len(names) == every else ", ".join(names),
        }
        for (video, reason), names in found.items()
    ]


def _unread(part: Part) -> tuple[list[dict[str, str]], int]:
    """Answers that are there and could not be read: the first few, and how many."""
    found: list[dict[str, str]] = []
    count = 0
    for run in part.runs:
        for label, rows in run.rows.items():
            for row in rows.values():
                if row.parsed is not None or row.response.error is not None:
                    continue
                count += 1
                if len(found) < _UNREAD:
                    text = row.response.text or "(nothing)"
                    text = text if len(text) <= _LONG else f"{text[:_LONG]} …"
                    found.append({"id": row.id, "setting": name_of_label(label), "text": text})
    return found, count


def _config(runs: Sequence[Run]) -> dict[str, Any]:
    """All entries of all runs, those that differ marked."""
    every = [flat({"folder": str(run.folder), **run.config}) for run in runs]
    names = list(dict.fromkeys(name for one in every for name in one))
    rows = []
    for name in names:
        cells = [_entry(one.get(name)) for one in every]
        free = name.split(".")[0] in (*FREE, "folder")
        rows.append({"name": name, "cells": cells, "differs": len(set(cells)) > 1 and not free})
    return {"heads": [run.folder.name for run in runs], "rows": rows}


def _entry(value: Any) -> str:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        labels = [str(one.get("label", shown(one))) for one in value]
        return ", ".join(labels)
    return value if isinstance(value, str) and value else shown(value)


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
