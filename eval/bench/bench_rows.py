"""What the commands of ``vidllm bench`` share: lists of options, places, and rows that are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vidllm.cli.options import emit, say
from vidllm.cli.tables import console
from vidllm.errors import InputError
from vidllm.errors.bounds import check, short
from vidllm.errors.paths import output_file
from vidllm.errors.writing import csv_text

if TYPE_CHECKING:
    from rich.table import Table

Rows: TypeAlias = list[dict[str, Any]]


def device_of(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def place_of(folder: Path | None, name: str) -> Path:
    """Where a measurement works if nobody says where."""
    return folder or Path(tempfile.gettempdir()) / f"vidllm-{name}"


def names_of(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def counts_of(option: str, text: str) -> list[int]:
    if not all(part.isdecimal() and len(part) < 20 for part in names_of(text)) or not names_of(
        text
    ):
        raise InputError(f"{option} is a list of counts such as 32,128, not {short(text)}")
    counts = [int(part) for part in names_of(text)]
    for count in counts:
        check(option.lstrip("-"), count, option)
    return counts


def saver(out: Path) -> Callable[[Rows], None]:
    """Writes the rows so far: what was measured stays, whatever comes after."""
    output_file(out)
    out.parent.mkdir(parents=True, exist_ok=True)

    def save(rows: Rows) -> None:
        out.write_text(csv_text(_alike(rows)), encoding="utf-8", newline="\n")

    return save


def keeper(out: Path, words: str) -> tuple[Rows, Callable[[dict[str, Any]], None]]:
    """The rows so far, and what takes one more: it is written, and said in these words."""
    rows: Rows = []
    save = saver(out)

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        save(rows)
        say(words.format(**{name: "none" if value == "" else value for name, value in row.items()}))

    return rows, keep


def _alike(rows: Rows) -> Rows:
    """Whole numbers as floats in columns with floats or gaps, as readers of tables have them."""
    kinds = {name: {type(row.get(name)) for row in rows} for row in rows for name in row}
    mixed = [name for name, some in kinds.items() if {int} < some <= {int, float, type(None)}]
    return [row | {n: float(row[n]) for n in mixed if row.get(n) is not None} for row in rows]


def show_rows(rows: Rows, table: Callable[[Rows], Table], out: Path, json: bool) -> None:
    if json:
        emit({"rows": rows, "csv": str(out)})
        return
    console(180).print(table(rows))
    say(f"written to {out}")
