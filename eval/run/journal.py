"""Rows, one an answer and setting, and the journal of a process: appended, never rewritten.

Lines go to the disk (fsync) before the next clip is asked, so that a process may be killed at any
moment: what is lost is what was being asked, and half a line at the end is cut off the next time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from vidllm.errors import InputError, WorkError
from vidllm.errors.plain import plain
from vidllm.errors.schema import damage, parse, validate

from ..tasks.base import Item, Response
from .folder_schemas import ROW

Row = dict[str, Any]
#: A setting's label and an item's id.
Key = tuple[str, str]
#: What was measured; the other entries of a row are the same whenever it is made.
MEASURED = ("cost", "attempt")
#: What to do about a line that is wrong.
ADVICE = "delete the line to have it asked again"
#: Room that is kept free on the disk for the answers in hand when it gets full.
RESERVE = 1 << 20


@dataclass(frozen=True)
class Prediction:
    """What an asker got for an item.

    Args:
        response: the answer, or why there is none.
        kept: the map of kept tokens (`TokenMap.as_dict`), None where there is none.
        cost: what it cost, see `costs.costs_of`; empty for a failure.
        frames: how many frames of the video were looked at, None for a failure.
    """

    response: Response
    kept: dict[str, Any] | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None


def row_of(
    setting: str, item: Item, number: int, said: Prediction, parsed: Any, value: float | None
) -> Row:
    """The row of an answer: all that it takes to score it again.

    `number` is the place of the item in the benchmark. Item and response both have a duration:
    `duration` is that of the file which was read, `official_duration` that of the annotation.
    """
    return {
        "setting": setting,
        "number": number,
        **item.as_dict(),
        **said.response.as_dict(),
        "official_duration": item.duration,
        "frames": said.frames,
        "parsed": parsed,
        "value": value,
        "kept": said.kept,
        "cost": dict(said.cost),
    }


def item_of(row: Mapping[str, Any]) -> Item:
    """The item of a row."""
    return Item.from_dict({**row, "duration": row.get("official_duration")})


def response_of(row: Mapping[str, Any]) -> Response:
    """The response of a row."""
    return Response.from_dict(row)


def key_of(row: Mapping[str, Any]) -> Key:
    """What a row is found by."""
    return str(row["setting"]), str(row["id"])


def line_of(row: Mapping[str, Any]) -> str:
    """One line of JSON, always the same for the same row."""
    return json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n"


class Journal:
    """The rows that one process adds; open it once.

    Args:
        path: of the file, made if it is not there. Half a line at its end is cut off.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reserve = path.with_name(f".{path.name}.reserve")
        try:
            path.touch()
            self._file = path.open("r+b", buffering=0)
            self._end = _whole(self._file)
            self._file.truncate(self._end)
            with self._reserve.open("wb") as room:
                room.write(os.urandom(RESERVE))  # a file of nothing but zeros may take no room
                room.flush()
                os.fsync(room.fileno())
        except OSError as error:
            raise InputError(f"--out {path.parent} cannot be written: {reason(error)}") from error

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows and wait until the disk has them.

        Raises:
            WorkError: it cannot be done; the file then ends where it ended before.
        """
        # Official files may hold halves of signs, which JSON lets through and UTF-8 does not.
        data = "".join(line_of(row) for row in rows).encode("utf-8", "surrogatepass")
        try:
            self._write(data)
        except OSError:
            try:  # the disk is full: the room that was kept for this is given up
                self._reserve.unlink(missing_ok=True)
                self._write(data)
            except OSError as error:
                raise WorkError(f"{self.path} cannot be written: {reason(error)}") from error
            raise WorkError(
                f"{self.path.parent} has no room left: the answers so far are all kept there, "
                "make room and run the same command again"
            ) from None

    def close(self) -> None:
        """Close the file and give its room back."""
        self._file.close()
        self._reserve.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        try:
            self._file.seek(self._end)
            rest = memoryview(data)
            while len(rest):
                rest = rest[self._file.write(rest) or 0 :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)


def journals(folder: Path) -> list[Path]:
    """The journals of all processes that ever worked on a run."""
    return sorted(folder.glob("rows-*.jsonl"))


def read_lines(path: Path, *, finished: bool = False) -> Iterator[tuple[str, int, Row]]:
    """The rows of a file: where each stands, for messages, the byte at which it begins, the row.

    Args:
        finished: half a line at the end is damage; of a journal it is left out.

    Raises:
        InputError: a line that is damaged; it is named.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and not finished:
                    return
                where = f"line {number} of {path}"
                row = parse(line, where, ADVICE)
                validate(row, ROW, where, ADVICE)
                yield where, offset, row
                offset += len(line)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error


def read_journals(folder: Path) -> dict[Key, Row]:
    """All rows of a run by key; of several tries the last one.

    Raises:
        InputError: a file that is damaged or cannot be read.
    """
    rows: dict[Key, Row] = {}
    for path in journals(folder):
        for where, _, row in read_lines(path):
            before = rows.get(key_of(row))
            tries = [one.get("attempt", 0) for one in (before, row) if one is not None]
            if before is not None and tries[0] == tries[1]:
                reason = f"{row['id']!r} under {row['setting']!r} is answered twice"
                raise InputError(damage(where, reason, "delete one line"))
            if before is None or tries[0] < tries[1]:
                rows[key_of(row)] = row
    return rows


def without_costs(row: Mapping[str, Any]) -> Row:
    """A row without what was measured."""
    return {name: value for name, value in row.items() if name not in MEASURED}


def in_order(rows: Mapping[Key, Row], labels: Sequence[str]) -> list[Row]:
    """The rows in order of these settings, then of the benchmark's items."""
    place = {label: number for number, label in enumerate(labels)}
    some = [row for (label, _), row in rows.items() if label in place]
    return sorted(some, key=lambda row: (place[row["setting"]], row["number"]))


def reason(error: OSError) -> str:
    """Why an operation on a file failed, for people."""
    return (error.strerror or str(error)).strip().rstrip(".")


def _whole(file: BinaryIO | FileIO) -> int:
    """Where the last whole line of a file ends."""
    at, block = file.seek(0, os.SEEK_END), 1 << 16
    while at > 0:
        begin = max(0, at - block)
        file.seek(begin)
        found = (file.read(at - begin) or b"").rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        at = begin
    return 0
