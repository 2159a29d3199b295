"""Files are there as a whole or not at all: written beside, synced, and renamed."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import WorkError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the place beside `path` to write to; what was written there becomes `path` at the end.

    Until then, and where the block raises, the file of before stays. OSErrors pass.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_files(files: dict[Path, bytes], what: str) -> None:
    """Write files so that a failure leaves all of them as they were: all beside, then all renamed.

    Args:
        what: where they stand, for the message.

    Raises:
        WorkError: they cannot be written.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    if folders := [path for path in files if path.is_dir()]:
        raise WorkError(f"{what} cannot be written: {folders[0].name} is a folder there")
    try:
        for path, data in files.items():
            parts[path].write_bytes(data)
            sync(parts[path])
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise WorkError(f"{what} cannot be written: {reason}") from error
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a head, a column a name in the order of their coming; None is empty."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder where the system can do that."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if folder:  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not folder:
            raise
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left half written. Only for who holds the folder's lock."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def sha256(file: Path) -> str:
    """The sha256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
