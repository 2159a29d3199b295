"""A finished arm as one small file, so that a table can grow run by run, on any machine.

`ARM.SEED.jsonl.gz`: a line that says of what run the answers are and what the training took, then
the rows of the journal without the maps of kept tokens, which the table has no use for.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.schema import Anything, Nullable, Number, Object, String, parse, validate
from vidllm.errors.writing import sha256, whole_file
from vidllm.models.shipped import default_model, find_model

from ...run.folder_schemas import CONFIG, ROW
from ...run.journal import Key, Row, key_of, line_of
from ...run.records import FREE

_HEAD = Object(
    {
        "start": String(),
        "config": CONFIG,
        "stamp": Object(other=Anything()),
        "cpu_seconds": Nullable(Number()),
    }
)
#: Of a configuration what says where its machine had things; what the table shows stays.
_PLACES = set(FREE) - {"device_name", "items", "clips"}
_STAMP = ("steps", "step", "batch", "clips", "lr", "size", "seed", "trained", "recipe",
          "mixture", "precision")  # fmt: skip
_ADVICE = "delete it, to have the arm run again"
#: Bytes of an unpacked file at most; those of 60 clips have 1.5 million.
_MOST = 2**28


@dataclass(frozen=True)
class Finished:
    """What such a file holds.

    Attributes:
        start: mark of the weights that all began with. config: of the run, without what says where
            its machine had it. stamp: of the training, {} for an arm without one. cpu_seconds: of
            a step of it.
    """

    start: str
    config: dict[str, Any]
    stamp: dict[str, Any]
    cpu_seconds: float | None
    rows: dict[Key, Row]


def size_of(stamp: Mapping[str, Any]) -> str:
    """The size of a training; stamps without one are from a time when all kept ones were small."""
    return str(stamp.get("size", "small"))


def check_size(folder: Path, size: str) -> None:
    """See that the trainings of finished arms are of a size.

    Raises:
        InputError: one is of another, or a file is damaged.
    """
    for file in sorted(folder.glob("*.jsonl.gz")):
        kept = read_finished(file)
        if kept is not None and kept.stamp and size_of(kept.stamp) != size:
            raise InputError(
                f"{file} was trained with size {size_of(kept.stamp)}, not {size}: give that "
                "--size, or another --kept"
            )


def write_finished(
    file: Path,
    start: str,
    config: Mapping[str, Any],
    stamp: Mapping[str, Any],
    cpu_seconds: float | None,
    rows: Iterable[Row],
) -> None:
    """Write a finished arm; the same arm gives the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head: dict[str, Any] = {
        "start": start,
        "config": {name: value for name, value in config.items() if name not in _PLACES}
        | {"model": Path(config["model"]).name},
        "stamp": {name: stamp[name] for name in _STAMP if name in stamp},
        "cpu_seconds": cpu_seconds,
    }
    lines = [line_of(head), *(line_of({**row, "kept": None}) for row in rows)]
    with whole_file(file) as part:
        part.write_bytes(gzip.compress("".join(lines).encode("utf-8", "surrogatepass"), mtime=0))


def start_mark(init: str) -> str:
    """A mark of the weights of the start and of its learned methods.

    Args:
        init: its folder or name, "" for the shipped model.
    """
    folder = Path(find_model(init) if init else default_model())
    # Statistics of footage say what the model knows, and change no answer.
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.stem != "footage"]
    return "-".join(sha256(file)[:8] for file in files)


def read_finished(file: Path) -> Finished | None:
    """A finished arm; None where there is none.

    Raises:
        InputError: the file is damaged.
    """
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else None


@lru_cache(maxsize=64)
def _read(file: Path, _: int) -> Finished:
    try:
        with gzip.open(file) as packed:
            text = packed.read(_MOST + 1)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{file} is no finished arm: {_ADVICE}") from None
    if len(text) > _MOST:
        raise InputError(f"{file} unpacks to more than {_MOST >> 20} MiB: {_ADVICE}")
    lines = text.splitlines()
    head: Any = parse(lines[0] if lines else b"", f"line 1 of {file}", _ADVICE)
    validate(head, _HEAD, f"line 1 of {file}", _ADVICE)
    rows = {}
    for number, line in enumerate(lines[1:], 2):
        row: Any = parse(line, f"line {number} of {file}", _ADVICE)
        validate(row, ROW, f"line {number} of {file}", _ADVICE)
        rows[key_of(row)] = row
    return Finished(**head, rows=rows)
