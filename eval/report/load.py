"""Folders of runs: the configuration, the answers and the results that `vidllm eval` left there.

A finished run has answers.jsonl and results.json; one that was stopped has a journal for each
process, rows-0.jsonl and so on, whose last line may be cut off.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.paths import input_file, input_folder, look, shown
from vidllm.errors.printable import printable
from vidllm.errors.schema import Mismatch, parse

from ..run.folder_checks import check_truth
from ..run.folder_schemas import RESULTS
from ..run.headline import matching
from ..run.journal import item_of, journals, read_lines, response_of
from ..run.records import ANSWERS, CONFIG, RunFolder, labels_of
from ..run.records import RESULTS as RESULTS_FILE
from ..run.results import summarise, task_of
from ..tasks.base import Item, Response
from .outcome import Category, Outcome, split_label

#: What makes a results.json that of another run than run.json says.
_SAME = ("task", "split", "prompts", "settings", "items")


@dataclass(frozen=True)
class Row:
    """One answer of one setting. The map of kept tokens stays in the file: see `kept_of`.

    Args:
        parsed: what the task read in the answer; None for a parse failure.
        value: what it earned in [0, 1]; None where one answer alone has no score.
        file, offset: where the line stands.
    """

    setting: str
    id: str
    response: Response
    parsed: Any
    value: float | None
    file: Path
    offset: int


@dataclass(frozen=True)
class Run:
    """One folder.

    Args:
        config: run.json. headline: name of the score that stands for all.
        outcomes: one a setting, the uncompressed run first.
        items: questions by id, in order of the files. rows: by setting and id.
        counted: questions that the headline is the mean of; of: which these are, for people.
        expected: answers of the whole run, None where nobody knows yet.
        notes: what the reader of a report must know, one line each.
    """

    folder: Path
    config: Mapping[str, Any]
    headline: str
    outcomes: tuple[Outcome, ...]
    items: Mapping[str, Item]
    rows: Mapping[str, Mapping[str, Row]]
    counted: frozenset[str] = frozenset()
    of: str = ""
    expected: int | None = None
    finished: bool = True
    notes: tuple[str, ...] = field(default=())

    @property
    def task(self) -> str:
        """The benchmark."""
        return str(self.config.get("task", "unknown"))

    @property
    def family(self) -> str:
        """Of the benchmark."""
        return str(self.config.get("family", ""))

    @property
    def answers(self) -> int:
        """How many answers are there."""
        return sum(len(rows) for rows in self.rows.values())


def find_folders(given: Sequence[Path]) -> list[Path]:
    """Folders of runs among the given ones: themselves, or else all below them, sorted.

    Raises:
        InputError: nothing there, or no run in it.
    """
    found: list[Path] = []
    for folder in given:
        there = look(folder, "DIR")
        if there is None or not stat.S_ISDIR(there.st_mode):
            what = "does not exist" if there is None else "is not a folder"
            raise InputError(f"{shown(folder)} {what}: give the --out folder of a vidllm eval")
        input_folder(folder, "the run")
        if (folder / CONFIG).is_file():
            below = [folder]
        else:
            below = sorted(file.parent for file in folder.rglob(CONFIG))
        if not below:
            empty = "is empty" if not any(folder.iterdir()) else f"holds no {CONFIG}"
            raise InputError(f"{folder} {empty}: give the --out folder of a vidllm eval")
        found += [f for f in below if f.resolve() not in {g.resolve() for g in found}]
    return found


@dataclass
class Answers:
    """The rows of files: questions by id, rows by setting and id, and what scoring takes."""

    items: dict[str, Item] = field(default_factory=dict)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    entries: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _attempts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, file: Path, labels: Sequence[str], *, journal: bool = False) -> None:
        """Add the rows of a file; of several tries at an answer the last one stays.

        Args:
            labels: settings of the run.
            journal: it may end in half a line; its entries are kept for scoring.

        Raises:
            InputError: a damaged line, or one without a field that it needs.
        """
        for where, offset, entry in read_lines(file, finished=not journal):
            key = entry["setting"], entry["id"]
            attempt = entry.get("attempt", 0)
            if attempt <= self._attempts.get(key, -1):
                continue
            if key[0] not in labels:
                has = ", ".join(labels)
                raise InputError(
                    f"{where} is of a setting {key[0]!r}, which the run has not: {has}"
                )
            row = Row(
                setting=key[0],
                id=key[1],
                response=response_of(entry),
                parsed=entry["parsed"],
                value=entry["value"],
                file=file,
                offset=offset,
            )
            item = self.items.get(row.id) or item_of(entry)
            self._attempts[key] = attempt
            self.items[row.id] = item
            self.rows.setdefault(row.setting, {})[row.id] = row
            if journal:
                self.entries[key] = {k: v for k, v in entry.items() if k != "kept"}


def load_run(folder: Path) -> Run:
    """Read one folder, finished or not.

    Raises:
        InputError: no run, no answer yet, or a damaged file; one line names it.
    """
    config = RunFolder(folder).config()
    labels = labels_of(config)
    found, notes = Answers(), []
    results = _results_of(folder, config)
    finished = results is not None
    if results is not None and (folder / ANSWERS).is_file():
        found.add(folder / ANSWERS, labels)
    else:
        for file in journals(folder):
            found.add(file, labels, journal=True)
    if results is None:
        if not found.entries:
            raise InputError(f"{folder} holds no answer yet: wait, or go on with its vidllm eval")
        results = summarise(task_of(config), config, found.entries)
        notes.append(
            f"This run is not finished: {results['answers']} of {results['expected']} answers are "
            "there, and all numbers are of these."
        )
        if len({frozenset(rows) for rows in found.rows.values()}) > 1:
            notes.append("The settings do not have the same questions yet.")
    elif not found.rows:
        notes.append(f"{ANSWERS} is missing: what single answers show is left out.")
    check_truth(task_of(config), found.items.values(), folder)
    try:
        return Run(
            folder=folder,
            config=config,
            headline=str(results["headline"]),
            outcomes=tuple(_outcome(one) for one in results["results"].values()),
            items=found.items,
            rows={label: found.rows[label] for label in labels if label in found.rows},
            counted=_counted(found, results),
            of=str(results["headline_of"] or ""),
            expected=results.get("expected"),
            finished=finished,
            notes=tuple(notes),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unknown(folder, repr(error)) from error


def _unknown(folder: Path, reason: object) -> InputError:
    return InputError(
        printable(
            f"{folder / RESULTS_FILE} is damaged, or of another version ({reason}): delete it and "
            "run the same vidllm eval again"
        )
    )


def _results_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """results.json, if it is there and of the run that run.json tells of."""
    file = folder / RESULTS_FILE
    if not file.is_file():
        return None
    results = parse(input_file(file, "results").read_bytes(), file)
    try:
        RESULTS.check(results, "")
    except Mismatch as error:
        raise _unknown(folder, error) from error
    labels = labels_of(results)
    named = {label: one["label"] for label, one in results["results"].items()}
    if named != {label: label for label in labels}:
        here = ", ".join(named.values())
        raise _unknown(folder, f"its results are those of {here}, not of {', '.join(labels)}")
    same = all(results.get(name) == config.get(name) for name in _SAME)
    return results if same and results.get("finished", True) else None


def _counted(found: Answers, results: Mapping[str, Any]) -> frozenset[str]:
    """The questions that the headline is the mean of; all where that is not known."""
    for one in results["results"].values():
        rows = found.rows.get(str(one["label"]), {})
        values = {name: row.value for name, row in rows.items() if row.value is not None}
        items = [found.items[name] for name in rows]
        part = matching(items, values, one["headline"]["value"]).get(results["headline_of"])
        if part is not None:
            return frozenset(part.ids)
    return frozenset(found.items)


def _outcome(one: Mapping[str, Any]) -> Outcome:
    """A setting's entry in results.json."""
    label = str(one["label"])
    headline, change, costs, sums = (
        one["headline"],
        one["relative"] or {},
        one["costs"],
        one["sums"],
    )
    answered = max(1, int(sums["answers"]))
    method, keep = split_label(label)
    outcome = Outcome(
        label=label,
        method=method,
        keep=keep,
        score=headline["value"],
        low=headline["low"],
        high=headline["high"],
        relative=change.get("share"),
        difference=change.get("difference"),
        change_low=change.get("low"),
        change_high=change.get("high"),
        p=change.get("p"),
        scores=dict(one["scores"]),
        official=dict(one["official"]),
        unofficial=str(one.get("unofficial") or ""),
        groups={
            str(group): {
                str(name): Category(float(c["value"]), c["low"], c["high"], int(c["n"]))
                for name, c in parts.items()
            }
            for group, parts in one["by_group"].items()
        },
        frames=costs.get("frames"),
        tokens_full=costs.get("tokens_full"),
        tokens_kept=costs.get("tokens_kept"),
        flops=dict(costs.get("flops") or {}),
        # Of what was spent: a call that answers several questions at once is not as long for each.
        seconds={stage: float(value) / answered for stage, value in sums["seconds"].items()},
        kv_full_mb=costs.get("kv_full_mb"),
        kv_kept_mb=costs.get("kv_kept_mb"),
        peak_mb=costs.get("peak_mb"),
        answers=int(one["answers"]),
        parse_failures=int(one["parse_failures"]),
        failed=dict(one["failed_videos"]),
    )
    if outcome.is_full and outcome.score:
        return replace(outcome, relative=1.0)
    return outcome


def entry_of(row: Row) -> dict[str, Any]:
    """The whole line of a row, with what is too large to be held for every row.

    Raises:
        InputError: the file changed since it was read.
    """
    with row.file.open("rb") as stream:
        stream.seek(row.offset)
        line = stream.readline()
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InputError(f"{row.file} changed while it was read: start again") from error
    return dict(entry)
