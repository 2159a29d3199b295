"""The table of methods: a row a compressor and share, made from a run, kept as CSV.

The first line of the file is a comment with the setting of all rows as JSON (`# {...}`): model and
mark of its weights, benchmark, split, seed, versions, and what was refused. Readers of CSV skip
it, as pandas does with ``comment="#"``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.paths import input_file
from vidllm.errors.plain import plain
from vidllm.errors.schema import Anything, Array, Object, String, damage, parse, validate
from vidllm.errors.writing import csv_text

from ...run.answer_costs import Cost
from ...run.journal import Key, Row, in_order
from ...run.results import Outcome, common_part, failed_videos, outcome_of
from ...run.run_settings import FULL
from ...scores.statistics import holm
from ...tasks.base import Task
from .candidates import FREE, MET, RANDOM_WEIGHTS, kind_of, method_of
from .measured_scores import Measured, aims_of, measured

FORMAT = 1
#: The control that every method is tested against, and the kinds of rows without a rank.
RANDOM, CONTROL, UNCOMPRESSED = "random", "control", "uncompressed"
KINDS = (UNCOMPRESSED, FREE, MET, RANDOM_WEIGHTS, CONTROL)
#: What a score is compared with: the uncompressed run, `random` and the best of its kind, the
#: last two at the same share.
REFERENCES = ("full", "random", "best")
#: Seconds of an answer by column: the stages of a receipt that are summed.
SECONDS = {
    "read_s": ("decode",),
    "vision_s": ("encode",),
    "select_s": ("compress",),
    "prefill_s": ("prefill",),
    "decode_s": ("generate",),
}
#: Columns of every table that hold text, and those that hold numbers.
TEXTS = ("compressor", "stage", "kind", "met")
NUMBERS = (
    "keep", "tokens_full", "tokens_kept", "answers", "videos", "failed", "unread", *SECONDS,
    "total_s", "call_vision_s", "call_select_s", "call_prefill_s", "flops",
    "flops_vision", "kv_mb",
)  # fmt: skip
_SETTING = Object(
    {"task": String(), "model": String(), "aims": Object(other=Array(String(), 1))},
    other=Anything(),
)
_ADVICE = "make it again with vidllm bench methods"
#: From run.json, as far as it says something.
_FROM_RUN = (
    "task", "family", "split", "seed", "limit", "items", "clips", "options", "kinds", "model",
    "weights", "frames", "fps", "max_new_tokens", "dtype", "device", "device_name", "versions",
    "python", "commit",
)  # fmt: skip


@dataclass(frozen=True)
class MethodTable:
    """Rows by column, and the setting that all of them share.

    `setting` has the keys of run.json that tell runs apart, `aims` (scores by what people want,
    the first of each decides), `made` (whether the videos are made) and `refused` (compressors
    that the model cannot serve, with the reason).
    """

    setting: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def aims(self) -> dict[str, list[str]]:
        """Scores by what people want; the first of each decides."""
        return {aim: list(names) for aim, names in self.setting["aims"].items()}

    @property
    def keeps(self) -> list[float]:
        """The shares that were measured, the largest first."""
        return sorted({row["keep"] for row in self.rows if row["keep"] < 1}, reverse=True)

    @property
    def full(self) -> Mapping[str, Any]:
        """The row of the uncompressed run."""
        return next(row for row in self.rows if row["kind"] == UNCOMPRESSED)

    def at(self, keep: float) -> list[Mapping[str, Any]]:
        """The rows of a share."""
        return [row for row in self.rows if row["keep"] == keep and row["kind"] != UNCOMPRESSED]

    def text(self) -> str:
        """The file."""
        head = json.dumps(plain(dict(self.setting)), ensure_ascii=False)
        rows = [{name: _digits(value) for name, value in row.items()} for row in self.rows]
        return f"# {head}\n{csv_text(rows)}"


def make_table(
    task: Task,
    results: Mapping[str, Any],
    rows: Mapping[Key, Row],
    met: Mapping[str, Sequence[float]],
) -> MethodTable:
    """The table of a finished run.

    Args:
        results: the contents of results.json. rows: by setting and item, read anew.
        met: see `candidates.met_in_training`.
    """
    refused: dict[str, str] = {}
    for label, reason in results.get("refused", {}).items():
        refused.setdefault(label.rpartition("@")[0], reason)
    outcomes: dict[str, Outcome] = {}
    for one in results["settings"]:
        some = in_order(rows, [one["label"]])
        if one["label"] != FULL and all(row["error"] is not None for row in some):
            refused.setdefault(one["label"], next(iter(failed_videos(some))))
        else:
            outcomes[one["label"]] = outcome_of(task, one["label"], some)
    of, seed = common_part(list(outcomes.values())), int(results["seed"])
    scores = {label: measured(task, outcome, of) for label, outcome in outcomes.items()}
    found = [
        _row(results["results"][label], outcome, scores[label], scores[FULL], seed, met)
        for label, outcome in outcomes.items()
    ]
    names = list(scores[FULL])
    for name in names:
        _compare(found, {label: some[name] for label, some in scores.items()}, name, seed)
    for row in found:
        del row["label"]
    setting = {"format": FORMAT} | {k: results[k] for k in _FROM_RUN if results.get(k) is not None}
    setting["aims"] = {aim: [n for n in some if n in names] for aim, some in aims_of(task).items()}
    setting |= {"made": hasattr(task, "prepare"), "refused": refused}
    return MethodTable(setting, found)


def _row(
    one: Mapping[str, Any],
    outcome: Outcome,
    scores: Mapping[str, Measured],
    full: Mapping[str, Measured],
    seed: int,
    met: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    compressor, costs = str(one["compressor"]), one["costs"]
    kind = kind_of(compressor, met)
    if compressor in ("none", RANDOM):
        kind = UNCOMPRESSED if compressor == "none" else CONTROL
    row: dict[str, Any] = {
        "label": outcome.label,
        "compressor": compressor,
        "keep": one["keep"],
        "stage": "" if compressor == "none" else method_of(compressor).stage,
        "kind": kind,
        "met": ", ".join(f"{100 * keep:g} %" for keep in met.get(compressor, ())),
        "tokens_full": costs["tokens_full"],
        "tokens_kept": costs["tokens_kept"],
        "answers": one["answers"],
        "videos": one["videos"],
        "failed": one["failed"],
        "unread": one["parse_failures"],
    }
    for name, score in scores.items():
        low, high = score.interval(seed)
        base = full[name].value
        share = score.value / base if base and score.value is not None else None
        row |= {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_share": share}
    seconds = costs["seconds"]
    row |= {n: sum(seconds.get(s, 0.0) for s in stages) for n, stages in SECONDS.items()}
    row["total_s"] = costs["total_seconds"]
    calls = [row_.get("cost") or {} for row_ in outcome.rows]
    for name in ("vision_s", "select_s", "prefill_s"):
        row[f"call_{name}"] = _whole_call(calls, SECONDS[name])
    row["flops"] = sum(costs["flops"].values()) if costs["flops"] else None
    row["flops_vision"] = None  # of a model whose parts are not counted
    row |= {f"flops_{stage}": value for stage, value in costs["flops"].items()}
    row["kv_mb"] = costs["kv_kept_mb"]
    return row


def _whole_call(costs: Sequence[Cost], stages: Sequence[str]) -> float | None:
    """The mean of what the calls took that answers came from, undivided."""
    known = [sum(c["seconds"].get(s, 0.0) for s in stages) for c in costs if c.get("seconds")]
    return math.fsum(known) / len(known) if known else None


def _compare(
    rows: Sequence[dict[str, Any]], scores: Mapping[str, Measured], name: str, seed: int
) -> None:
    """Add a score's differences from the references, with Holm's p over the methods of a share."""
    for keep in dict.fromkeys(row["keep"] for row in rows if row["kind"] != UNCOMPRESSED):
        there = [row for row in rows if row["keep"] == keep and row["kind"] != UNCOMPRESSED]
        best = _best(there, name)
        for reference in REFERENCES:
            tested = []
            for row in there:
                other = {
                    "full": FULL,
                    "random": next((r["label"] for r in there if r["kind"] == CONTROL), None),
                    "best": best.get(row["kind"]),
                }[reference]
                test = None
                if other is not None and other != row["label"]:
                    test = scores[row["label"]].versus(scores[other], seed)
                place = f"{name}_vs_{reference}"
                told = test or dict.fromkeys(("difference", "low", "high", "p"))
                row |= {place: told["difference"], f"{place}_low": told["low"]}
                row |= {f"{place}_high": told["high"], f"{place}_p": told["p"]}
                row[f"{place}_holm"] = None
                tested += [row] if test is not None else []
            for row, p in zip(tested, holm([r[f"{place}_p"] for r in tested]), strict=True):
                row[f"{place}_holm"] = p


def _digits(value: Any) -> Any:
    """Six significant digits: no measurement has more."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _best(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """The label of the best row of every kind that is ranked."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["kind"] != CONTROL and row[name] is not None:
            best = found.setdefault(row["kind"], row)
            if row[name] > best[name]:
                found[row["kind"]] = row
    return {kind: str(row["label"]) for kind, row in found.items()}


def read_table(file: Path) -> MethodTable:
    """A table from its file.

    Raises:
        InputError: no such file, or one that is no such table; the line says where.
    """
    input_file(file, "the table")
    try:
        head, _, body = file.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError:
        raise InputError(damage(file, "it is no text", _ADVICE)) from None
    if not head.startswith("# {"):
        raise InputError(damage(file, "its first line is not '# {…}' with the setting", _ADVICE))
    setting = parse(head[2:], file, _ADVICE)
    validate(setting, _SETTING, file, _ADVICE)
    lines = csv.DictReader(body.splitlines())
    scores = [name for names in setting["aims"].values() for name in names]
    numbers = [*NUMBERS, *(column for name in scores for column in columns_of(name))]
    missing = [name for name in (*TEXTS, *numbers) if name not in (lines.fieldnames or ())]
    if missing:
        raise InputError(damage(file, f"the column {missing[0]} is missing", _ADVICE))
    rows = [_read(row, numbers, f"{file}:{number}") for number, row in enumerate(lines, 3)]
    if sum(row["kind"] == UNCOMPRESSED for row in rows) != 1:
        raise InputError(damage(file, "it has not one uncompressed row", _ADVICE))
    return MethodTable(setting, rows)


def columns_of(name: str) -> list[str]:
    """The columns of a score."""
    found = [name, *(f"{name}_{more}" for more in ("low", "high", "share"))]
    for reference in REFERENCES:
        place = f"{name}_vs_{reference}"
        found += [place, *(f"{place}_{more}" for more in ("low", "high", "p", "holm"))]
    return found


def _read(row: Mapping[str, str], numbers: Sequence[str], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: row[name] for name in TEXTS}
    if any(value is None for value in row.values()) or None in row:
        raise InputError(damage(where, "it has not as many cells as the head", _ADVICE))
    if found["kind"] not in KINDS:
        raise InputError(damage(where, f"kind is {found['kind']!r}, none of {KINDS}", _ADVICE))
    for name in numbers:
        try:
            found[name] = float(row[name]) if row[name] else None
        except ValueError:
            found[name] = math.nan
        if found[name] is not None and not math.isfinite(found[name]):
            raise InputError(damage(where, f"{name} is {row[name]!r}, no number", _ADVICE))
    if found["keep"] is None:
        raise InputError(damage(where, "keep is empty", _ADVICE))
    return found
