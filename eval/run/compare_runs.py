"""Two runs question by question: paired bootstrap by video, and McNemar's test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.paths import input_folder, is_folder, shown

from .journal import in_order
from .records import RunFolder, labels_of
from .results import SAMPLES, Outcome, common_part, outcome_of, task_of
from .run_settings import find_setting
from .runner import scored_again


def compare(first: str, second: str) -> list[dict[str, Any]]:
    """The headline of two runs, a row a setting.

    Args:
        first, second: "DIR" or "DIR:setting". Without a setting all that both have are compared;
            a setting that one names alone is the other's too.

    Raises:
        InputError: folders of other runs, or runs of other questions.
    """
    (one, left), (two, right) = named(first), named(second)
    pairs = _pairs(one, left, two, right)
    found = []
    for a, b in pairs:
        sides = [_outcome(one, a), _outcome(two, b)]
        found.append({"setting": a if a == b else f"{a} → {b}", **_row(one, sides)})
    return found


def named(text: str) -> tuple[RunFolder, str | None]:
    """The folder and the setting of "DIR:setting"; a path may hold colons too.

    Raises:
        InputError: no folder of a run.
    """
    places = [len(text), *(at for at, sign in enumerate(text) if sign == ":")]
    for at in places:
        path = Path(text[:at]).expanduser()
        if is_folder(path):
            return RunFolder(input_folder(path, "the run")), text[at + 1 :] or None
    raise InputError(f"{shown(text)} is no folder of a run: give DIR or DIR:setting")


def _pairs(
    one: RunFolder, left: str | None, two: RunFolder, right: str | None
) -> list[tuple[str, str]]:
    configs = one.config(), two.config()
    for key in ("task", "split"):
        sides = [config[key] for config in configs]
        if sides[0] != sides[1]:
            raise InputError(f"the runs differ in {key}: {sides[0]} and {sides[1]}")
    labels = [labels_of(config) for config in configs]
    if left is None and right is None:
        pairs = [(label, label) for label in labels[0] if label in labels[1]]
        if not pairs:
            raise InputError("the runs have no setting in common: name one each, DIR:setting")
    else:
        pairs = [(str(left or right), str(right or left))]
    for a, b in pairs:
        find_setting(labels[0], a, str(one.path))
        find_setting(labels[1], b, str(two.path))
    if one.path.resolve() == two.path.resolve() and any(a == b for a, b in pairs):
        raise InputError("a run is not compared with itself: name two settings, DIR:setting")
    return pairs


def _outcome(folder: RunFolder, label: str) -> Outcome:
    task = task_of(folder.config())
    rows = [scored_again(task, row) for row in in_order(folder.rows(), [label])]
    if not rows:
        raise InputError(f"{folder.path} has no answers of {label} yet")
    return outcome_of(task, label, rows)


def _row(folder: RunFolder, sides: list[Outcome]) -> dict[str, Any]:
    config = folder.config()
    name = task_of(config).headline
    of = common_part(sides)
    if of is None:
        raise InputError(f"{name} is no mean over answers: it has no paired test")
    part, other = (side.parts[of] for side in sides)
    if of == SAMPLES and sides[0].videos != sides[1].videos:
        raise InputError("the runs do not have the same answers: pair equal runs")
    both = (set(part.ids), set(other.ids))
    if odd := sorted(both[0] ^ both[1]):
        raise InputError(
            f"the runs differ in {len(odd)} answers, e.g. {odd[0]!r}: pair runs of one --limit "
            "that are finished"
        )
    test = part.versus(sides[0].values, sides[1].values, sides[0].videos, int(config["seed"]))
    return {
        "headline": name,
        "of": of,
        "first": sides[0].scores[name],
        "second": sides[1].scores[name],
        **test,
    }
