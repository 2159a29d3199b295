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

FORMAT = 1
#: The control that every method is tested against.
RANDOM = "random"
#: Kinds of rows; methods are ranked among their own, and the first and the last are not.
UNCOMPRESSED, FREE, MET = "uncompressed", "training-free", "met in training"
RANDOM_WEIGHTS, CONTROL = "random weights", "control"
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
#: What people read in the place of a score's name.
SPELT = {"qa_accuracy": "QA accuracy"}
#: Columns of every table that hold text, and those that hold numbers.
TEXTS = ("compressor", "stage", "kind", "met")
NUMBERS = (
    "keep", "tokens_full", "tokens_kept", "answers", "videos", "failed", "unread", *SECONDS,
    "total_s", "call_vision_s", "call_select_s", "call_prefill_s", "flops",
    "flops_vision", "kv_mb",
)  # fmt: skip
_SETTING = Object(
    {"task": String(), "model": String(), "scores": Object(other=Array(String(), 1))},
    other=Anything(),
)
_ADVICE = "make it again with vidllm bench methods"


@dataclass(frozen=True)
class MethodTable:
    """Rows by column, and the setting that all of them share.

    `setting` has the keys of run.json that tell runs apart, `scores` (scores by what people want,
    the first of each decides), `made` (whether the videos are made) and `refused` (compressors
    that the model cannot serve, with the reason).
    """

    setting: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def scores(self) -> dict[str, list[str]]:
        """Scores by what people want; the first of each decides."""
        return {purpose: list(names) for purpose, names in self.setting["scores"].items()}

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
        return commented(self.setting, self.rows)


def commented(setting: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV file whose first line is a comment with the setting as JSON."""
    head = json.dumps(plain(dict(setting)), ensure_ascii=False)
    return f"# {head}\n{csv_text(rounded(rows))}"


def read_commented(file: Path, advice: str) -> tuple[Any, csv.DictReader[str]]:
    """Setting and lines of a file that `commented` made.

    Raises:
        InputError: no such file, or one that is no such table; the line says where.
    """
    input_file(file, "the table")
    try:
        head, _, body = file.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError:
        raise InputError(damage(file, "it is no text", advice)) from None
    if not head.startswith("# {"):
        raise InputError(damage(file, "its first line is not '# {…}' with the setting", advice))
    return parse(head[2:], file, advice), csv.DictReader(body.splitlines())


def rounded(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a file of `commented` holds them."""
    return [{name: _digits(value) for name, value in row.items()} for row in rows]


def _digits(value: Any) -> Any:
    """Six significant digits: no measurement has more."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read_table(file: Path) -> MethodTable:
    """A table from its file.

    Raises:
        InputError: no such file, or one that is no such table; the line says where.
    """
    setting, lines = read_commented(file, _ADVICE)
    validate(setting, _SETTING, file, _ADVICE)
    scores = [name for names in setting["scores"].values() for name in names]
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
