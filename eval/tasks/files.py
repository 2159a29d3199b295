"""Reading official annotation files; what is wrong in one is a line that names file and field.

A task's `files` names what a split needs. Each name is one file below the data folder;
alternatives stand in one name with "|" between, and the first that is there is taken.

`--data hub` (`HUB`) takes the records of `task.hub` from the Hugging Face hub instead:
"owner/name", or "owner/name:config". It needs the network once; a folder that
`datasets.load_dataset` reads stands for a data set as well.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

from vidllm.errors import InputError

from ..scores.common import Interval
from .base import Task

#: What `--data` says for the hub; a folder of that name needs its whole path.
HUB = Path("hub")

T = TypeVar("T")
#: A record, and the words that say where it stands: "val_1.json, v_abc".
Record = tuple[str, dict[str, Any]]

_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def annotation_files(task: Task | type[Task], data: Path, split: str) -> list[Path]:
    """The files that a split needs, in the order of `task.files`; none for the hub.

    Raises:
        InputError: one is missing; the line says which, and where it comes from. Or the hub is
            asked for, and the task is not there.
    """
    if data == HUB:
        _check_hub(task)
        return []
    found = []
    for name in task.files[split]:
        choices = [data / part for part in name.split("|")]
        there = next((path for path in choices if path.is_file()), None)
        if there is None:
            source = f": get it from {task.home}" if task.home else ""
            raise InputError(f"{task.name} needs the file {choices[0].name} in {data}{source}")
        found.append(there)
    return found


def optional_file(data: Path, *names: str) -> Path | None:
    """The first of some files that is there; None where there is none, or for the hub."""
    paths = [] if data == HUB else [data / name for name in names]
    return next((path for path in paths if path.is_file()), None)


def records(task: Task | type[Task], data: Path, split: str, hub_split: str = "") -> list[Record]:
    """The records of a split whose one file is a list: jsonl, csv, tsv, parquet, or a JSON list.

    Args:
        hub_split: the split's name on the hub, where it is another one.

    Raises:
        InputError: a file that is missing or not of its kind.
    """
    if data == HUB:
        return hub_records(task, hub_split or split)
    return [row for path in annotation_files(task, data, split) for row in read_records(path)]


def read_records(path: Path) -> list[Record]:
    """The records of a file, by its ending: .jsonl, .csv, .tsv, .parquet or .json (a list).

    Raises:
        InputError: see `records`.
    """
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        return _table(path, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".jsonl":
        lines = read_lines(path)
        return [(where, _record(_parsed(text, where), where)) for where, text in lines]
    else:
        rows = read_json(path, list)
    return [
        (where, _record(row, where))
        for where, row in ((f"{path.name}, record {k}", row) for k, row in enumerate(rows))
    ]


def read_json(path: Path, kind: type[T]) -> T:
    """A JSON file whose outermost value is a dict or a list.

    Raises:
        InputError: no JSON, or another value.
    """
    value = _parsed(_text(path), path.name)
    if not isinstance(value, kind):
        raise InputError(f"{path.name} must hold {_KINDS[kind]}, not {_called(value)}")
    return value


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, each with where it stands.

    Raises:
        InputError: a file that cannot be read.
    """
    lines = enumerate(_text(path).splitlines(), 1)
    return [(f"{path.name}, line {k}", line.strip()) for k, line in lines if line.strip()]


def read_cells(path: Path, columns: int) -> list[tuple[str, list[str]]]:
    """The cells of a tab-separated file without a header, each row with where it stands.

    Raises:
        InputError: a row with another number of cells.
    """
    rows = []
    for where, line in read_lines(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != columns:
            raise InputError(f"{where}: {len(cells)} columns instead of {columns}")
        rows.append((where, cells))
    return rows


def hub_records(task: Task | type[Task], split: str) -> list[Record]:
    """The records of `task.hub`, through `datasets.load_dataset`.

    Raises:
        InputError: the task has no data set there, `datasets` is missing, or the data set cannot
            be loaded.
    """
    _check_hub(task)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError('--data hub needs datasets: pip install "vidllm[eval]"') from error
    name, config = task.hub, None
    if not Path(name).is_dir():
        name, _, config = name.partition(":")
    try:
        found = load_dataset(name, config or None, split=split)
    except Exception as error:  # what a hub, a cache and a format may raise is no closed list
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the hub's {task.hub} ({split}) cannot be loaded: {line}") from error
    return [(f"{task.hub}, record {k}", dict(row)) for k, row in enumerate(found)]


@overload
def field(row: Any, name: str, kind: type[T], *, where: str) -> T: ...
@overload
def field(row: Any, name: str, kind: type[T], *, where: str, default: T) -> T: ...
def field(row: Any, name: str, kind: type[T], *, where: str, default: Any = ...) -> Any:
    """One entry of a record, of the type it must have.

    Whole numbers are numbers; a number that is written as text (csv) is read; ids of digits
    alone count as text.

    Args:
        default: for an entry that is not there, or null; without it that is an error.

    Raises:
        InputError: the entry is missing or of another type; one line names file and field.
    """
    if not isinstance(row, dict) or row.get(name) is None:
        if default is not ...:
            return default
        raise InputError(f"{where}: the field '{name}' is missing")
    value = row[name]
    if kind in (int, float) and isinstance(value, str):
        value = _number(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    wrong = not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))
    if wrong or (kind is float and not math.isfinite(value)):
        raise InputError(
            f"{where}: the field '{name}' must be {_KINDS[kind]}, not {_called(row[name])}"
        )
    return value


def span(value: Any, name: str, *, where: str) -> Interval:
    """A true span [start, end] in seconds. Ends in the wrong order are put right.

    Raises:
        InputError: not two numbers.
    """
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        ends = [_number(end) if isinstance(end, str) else end for end in value]
        if all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends) and all(
            map(math.isfinite, ends)
        ):
            return min(ends) + 0.0, max(ends) + 0.0
    raise InputError(
        f"{where}: the field '{name}' must hold [start, end] in seconds, not {_called(value)}"
    )


def spans(row: Any, name: str, *, where: str) -> list[Interval]:
    """The field `name` as a list of true spans; at least one.

    Raises:
        InputError: see `field` and `span`; an empty list.
    """
    found = [span(value, name, where=where) for value in field(row, name, list, where=where)]
    if not found:
        raise InputError(f"{where}: the field '{name}' has no span")
    return found


def together(row: Any, *names: str, where: str) -> list[tuple[Any, ...]]:
    """Lists of one length as rows, e.g. timestamps and their sentences.

    Raises:
        InputError: a field that is missing or no list, or lengths that differ.
    """
    lists = [field(row, name, list, where=where) for name in names]
    if len({len(found) for found in lists}) > 1:
        counts = ", ".join(f"{len(v)} {n}" for n, v in zip(names, lists, strict=True))
        raise InputError(f"{where}: the fields {' and '.join(names)} differ in length: {counts}")
    return list(zip(*lists, strict=True))


def objects(value: Any, where: str) -> Iterator[Record]:
    """The entries of an object whose values are objects, by name, each with where it stands.

    Raises:
        InputError: a value that is none.
    """
    for name, row in value.items():
        place = f"{where}, {name}"
        yield place, _record(row, place)


def _check_hub(task: Task | type[Task]) -> None:
    if not task.hub:
        raise InputError(f"{task.name} is not on the hub as records: give --data a folder")


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: an object with fields is expected, not {_called(value)}")
    return value


def _table(path: Path, delimiter: str) -> list[Record]:
    rows: list[Record] = []
    with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                where = f"{path.name}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: not as many columns as the header has")
                rows.append((where, dict(row)))
        except csv.Error as error:
            raise InputError(f"{path.name}, line {reader.line_num}: {error}") from error
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(f'{path.name} needs pyarrow: pip install "vidllm[eval]"') from error
    try:
        return list(parquet.read_table(path).to_pylist())
    except Exception as error:  # pyarrow has its own and the system's
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path.name} cannot be read as parquet: {line}") from error


def _text(path: Path) -> str:
    with _readable(path):
        return path.read_text(encoding="utf-8-sig")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text, at byte {error.start}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{where} is not JSON: {error.msg} at {place}") from error


def _number(text: str) -> Any:
    """The number that a text writes, a whole one as int; the text itself where it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _called(value: Any) -> str:
    """A value in an error text: short, on one line."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
