"""Runs put side by side where they may be: a section a task, a part a configuration.

Settings stand in one table only if everything else about their runs is the same; what tells two
parts of a task apart is said in their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..run import records
from .load import Run
from .outcome import FULL, Outcome, reference

#: Entries of run.json that may differ between runs whose settings are compared.
FREE: tuple[str, ...] = ("format", "settings", "versions", *records.FREE)
#: Entries that are called otherwise on a page.
_CALLED = {"items": "questions"}
#: How many letters of a hash are shown.
_MARK = 8


@dataclass(frozen=True)
class Part:
    """Settings of one task that may be compared: their runs differ in nothing else.

    Args:
        name: what tells this part from the others of its task, "" for the only one.
        slug: for names of files. runs: in the order given.
        outcomes: of all runs, the uncompressed one first, labels unique.
        notes: what the reader must know, one line each.
    """

    name: str
    slug: str
    runs: tuple[Run, ...]
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The score that stands for all."""
        return self.runs[0].headline

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that its runs share."""
        return self.runs[0].config


@dataclass(frozen=True)
class Section:
    """All parts of one task."""

    task: str
    parts: tuple[Part, ...]


def sections(runs: Sequence[Run], *, official: bool = False) -> list[Section]:
    """Group runs by task and by configuration, in order of first appearance.

    Args:
        official: show the headline as the benchmark's own script counts it, where it differs.
    """
    tasks: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        tasks.setdefault(run.task, {}).setdefault(_key(run), []).append(run)
    found = []
    for task, groups in tasks.items():
        names = _names([group[0] for group in groups.values()])
        parts = [
            _part(name, _slug(task, k, len(groups)), group, official)
            for k, (name, group) in enumerate(zip(names, groups.values(), strict=True), 1)
        ]
        found.append(Section(task, tuple(parts)))
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level, with dots between names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def shown(value: Any) -> str:
    """A value of a configuration for people: hashes short, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items()) or "–"
    text = str(value)
    is_hash = len(text) >= 32 and all(c in "0123456789abcdef" for c in text)
    return text[:_MARK] if is_hash else text


def _compared(run: Run) -> dict[str, Any]:
    return flat({k: v for k, v in run.config.items() if k not in FREE and v != {}})


def _key(run: Run) -> str:
    """Equal for runs whose settings may be compared; an unfinished run stands alone."""
    alone = "" if run.finished else str(run.folder)
    return repr((sorted((k, repr(v)) for k, v in _compared(run).items()), alone))


def _names(runs: Sequence[Run]) -> list[str]:
    """What tells each run from the others."""
    if len(runs) == 1:
        return [""]
    every = [_compared(run) for run in runs]
    keys = list(dict.fromkeys(key for one in every for key in one))
    differ = [key for key in keys if len({repr(one.get(key)) for one in every}) > 1]
    if len({run.config.get("items") for run in runs}) > 1:
        differ = ["items", *(key for key in differ if key != "prompts")]
        every = [
            {**one, "items": run.config.get("items")} for run, one in zip(runs, every, strict=True)
        ]
    # A hash tells people nothing where another entry differs too.
    telling = [k for k in differ if not _all_hashes([one.get(k) for one in every])] or differ
    names = []
    for run, one in zip(runs, every, strict=True):
        words = [
            f"{_CALLED.get(key, key.replace('_', ' '))} {shown(one.get(key))}" for key in telling
        ]
        if not run.finished or not words:
            words.append(f"{run.folder.name}{'' if run.finished else ', unfinished'}")
        names.append(" · ".join(words))
    return names


def _all_hashes(values: Sequence[Any]) -> bool:
    return all(isinstance(v, str) and len(v) >= 16 and " " not in v for v in values)


def _slug(task: str, number: int, count: int) -> str:
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in task)
    return safe if count == 1 else f"{safe}-{number}"


def _part(name: str, slug: str, runs: Sequence[Run], official: bool) -> Part:
    outcomes: dict[str, Outcome] = {}
    notes = [note for run in runs for note in run.notes]
    for run in runs:
        for outcome in run.outcomes:
            before = outcomes.setdefault(outcome.label, outcome)
            if before is not outcome and before.score != outcome.score:
                notes.append(
                    f"{outcome.label} was run twice with different scores "
                    f"({shown(before.score)}, and {shown(outcome.score)} in {run.folder.name}): "
                    "the first is shown"
                )
    for key, what in (("device_name", "seconds were measured on"), ("versions", "versions:")):
        kinds = list(dict.fromkeys(shown(run.config.get(key)) for run in runs))
        if len(kinds) > 1:
            notes.append(f"the runs side by side differ in {what} " + "; ".join(kinds))
    found = sorted(outcomes.values(), key=lambda o: not o.is_full)
    if official:
        found = as_official(found, runs[0].headline)
        notes.append(
            "scores are those of the benchmark's own script, with its defects; intervals and "
            "tests are of ours"
        )
        notes += [f"no official scores: {o.unofficial}" for o in found if o.unofficial]
    return Part(name, slug, tuple(runs), tuple(found), tuple(dict.fromkeys(notes)))


def as_official(outcomes: Sequence[Outcome], headline: str) -> list[Outcome]:
    """The outcomes with the official headline; intervals and tests go where it differs."""
    swapped = []
    for outcome in outcomes:
        value = outcome.official.get(headline, outcome.score)
        if value == outcome.score:
            swapped.append(outcome)
            continue
        swapped.append(
            replace(
                outcome,
                score=value,
                low=None,
                high=None,
                difference=None,
                change_low=None,
                change_high=None,
                p=None,
            )
        )
    full = reference(swapped)
    base = None if full is None else full.score
    return [
        replace(
            o, relative=1.0 if o.label == FULL else o.score / base if base and o.score else None
        )
        for o in swapped
    ]
