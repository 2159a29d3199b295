"""From the answers of all arms to one table: scores, tests against the start, and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidllm.errors import InputError

from ...run.journal import Key, in_order
from ...run.results import common_part, outcome_of, summarise, task_of
from ...run.run_settings import FULL
from ...run.runner import scored_again
from ...scores.statistics import holm
from ..methods.measured_scores import Measured, measured, scores_by_purpose
from ..methods.table_making import score_row
from .arms import START
from .entries import Entry
from .running import Cost, cost_of, stamp_of

Row = dict[str, Any]
#: Columns of every row that say what it is, and what its training took.
WHAT = ("system", "recipe", "about", "seed", "keep", "compressor", "temporal")
TRAINING = ("steps", "batch", "clips", "lr", "trained", "step_cpu_s")
COUNTS = (
    "tokens_full", "tokens_kept", "answers", "videos", "failed", "unread", "vision_s", "select_s",
    "prefill_s", "decode_s", "total_s", "flops", "kv_mb",
)  # fmt: skip
#: Of a score: its interval, its share of the start's with all tokens, and the test against that.
OF_SCORE = ("", "_low", "_high", "_share", "_vs_start", "_vs_start_low", "_vs_start_high",
            "_vs_start_p", "_vs_start_holm")  # fmt: skip
SCORES = ("mIoU", "R1@0.5", "qa_accuracy")
COLUMNS = (*WHAT, *(f"{name}{more}" for name in SCORES for more in OF_SCORE), *COUNTS, *TRAINING)


class Asked:
    """The answers of one arm, scored.

    Args:
        config, answers: of the arm over the test's clips, see `answers.answers_of`.
    """

    def __init__(self, entry: Entry, config: Mapping[str, Any], answers: Mapping[Key, Row]) -> None:
        task = task_of(config)
        rows = {key: scored_again(task, row) for key, row in answers.items()}
        self.entry, self.results = entry, summarise(task, config, rows)
        self.questions = {row["id"]: row["prompt"] for row in rows.values()}
        self.outcomes = {
            label: outcome_of(task, label, in_order(rows, [label]))
            for label in self.results["results"]
            if any(row["error"] is None for row in in_order(rows, [label]))
        }
        of = common_part(list(self.outcomes.values()))
        self.scores: dict[str, dict[str, Measured]] = {
            label: measured(task, outcome, of) for label, outcome in self.outcomes.items()
        }
        names = [name for some in scores_by_purpose(task).values() for name in some]
        self.names = [name for name in names if name in SCORES]


def systems_rows(asked: Sequence[Asked]) -> list[Row]:
    """A row an arm, seed and share; the start with all tokens comes first.

    Scores are tested against the start with all tokens, paired by answer, with Holm's correction
    over all rows of a share.

    Raises:
        InputError: answers to other clips than the start's, or no start.
    """
    start = next((one for one in asked if one.entry.arm.name == START), None)
    if start is None or FULL not in start.scores:
        raise InputError("the start with all tokens has no answers yet: nothing to compare with")
    full, seed = start.scores[FULL], int(start.results["seed"])
    rows: list[Row] = []
    for one in asked:
        if one.questions != start.questions:
            raise InputError(
                f"{one.entry.answers} has other questions than the start: ask it again, with the "
                "same --seed, --split and --version"
            )
        rows += _rows_of(one, full, seed)
    for keep in dict.fromkeys(row["keep"] for row in rows):
        for name in start.names:
            there = [r for r in rows if r["keep"] == keep and r[f"{name}_vs_start_p"] is not None]
            corrected = holm([row[f"{name}_vs_start_p"] for row in there])
            for row, p in zip(there, corrected, strict=True):
                row[f"{name}_vs_start_holm"] = p
    return rows


def _rows_of(one: Asked, full: Mapping[str, Measured], seed: int) -> list[Row]:
    entry, found = one.entry, []
    cost = cost_of(entry)
    for label, outcome in one.outcomes.items():
        scores = one.scores[label]
        told = score_row(one.results["results"][label], outcome, scores, full, seed, {})
        row: Row = dict.fromkeys(COLUMNS)
        row |= {name: value for name, value in told.items() if name in row}
        row |= {
            "system": entry.arm.name,
            "recipe": entry.arm.recipe,
            "about": entry.arm.about,
            "seed": entry.seed if entry.arm.recipe else None,
            "temporal": entry.arm.options.get("temporal", ""),
        }
        row |= _training(cost)
        for name in one.names:
            test = scores[name].versus(full[name], seed)
            if test is None or (entry.arm.name == START and label == FULL):
                continue
            place = f"{name}_vs_start"
            row |= {place: test["difference"], f"{place}_low": test["low"]}
            row |= {f"{place}_high": test["high"], f"{place}_p": test["p"]}
        found.append(row)
    return found


def _training(cost: Cost | None) -> Row:
    if cost is None:
        return {}
    return {
        "steps": cost.steps, "batch": cost.batch, "clips": cost.clips, "lr": cost.lr,
        "trained": sum(cost.trained.values()), "step_cpu_s": cost.cpu_seconds,
    }  # fmt: skip


def setting_of(start: Asked, told: Mapping[str, Any], waiting: Sequence[Entry]) -> dict[str, Any]:
    """What all rows share, for the first line of the file.

    Args:
        told: of the budget. waiting: arms that are not in the table yet.
    """
    names = ("task", "split", "seed", "limit", "clips", "options", "device_name", "versions")
    found = {name: start.results[name] for name in names if start.results.get(name) is not None}
    notes = {}
    for entry in waiting:
        step = stamp_of(entry).get("step")
        notes[entry.label] = "" if step is None else f"step {step} of its training"
    return {**found, "budget": dict(told), "waiting": notes}
