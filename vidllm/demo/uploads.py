"""The folder of what visitors upload: how much it may hold, and what is taken out of it again."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidllm.errors import InputError, WorkError

#: Errors of the system that mean: no room.
FULL = (errno.ENOSPC, errno.EDQUOT)
_PREFIX = "vidllm-page-"
_NO_ROOM = "make room there, or set GRADIO_TEMP_DIR to a folder that has some"


class Uploads:
    """A folder of this page alone, which goes with it.

    Args:
        most_bytes: of all files together. above: where the folder is made; None for
            `GRADIO_TEMP_DIR`, or the system's temporary folder.

    Raises:
        WorkError: the folder cannot be made there.
    """

    def __init__(self, most_bytes: int, above: Path | None = None) -> None:
        self.most_bytes = most_bytes
        self._coming = 0  # bytes that uploads under way may still bring
        self._uploading = 0
        self._lock = threading.Lock()
        self._stay: set[Path] = set()
        place = above or os.environ.get("GRADIO_TEMP_DIR")
        try:
            near = Path(place or tempfile.gettempdir())
            if near.name.startswith(_PREFIX):  # of an earlier page of this process
                near = near.parent
            near.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=near)).resolve()
        except OSError as error:
            where = place or "the temporary folder"
            raise WorkError(
                f"{where} cannot hold uploads ({error.strerror}): {_NO_ROOM}"
            ) from error

    def full(self) -> WorkError:
        """What to say where nothing can be written."""
        return WorkError(f"{self.folder.parent} is full: {_NO_ROOM}")

    def settle(self) -> None:
        """What is there by now belongs to the page, such as its samples, and stays."""
        self._stay = set(self._files())

    def bytes(self) -> int:
        """What visitors' files weigh."""
        return sum(_size(file) for file in self._files() if file not in self._stay)

    @contextmanager
    def coming(self, size: int) -> Iterator[None]:
        """An upload of at most so many bytes; what a broken one leaves is deleted.

        Raises:
            InputError: there is no room for it.
        """
        with self._lock:
            if self.bytes() + self._coming + size > self.most_bytes:
                raise InputError("this page holds as many uploads as it may: try again later")
            self._coming += size
            self._uploading += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size
                self._uploading -= 1
                if not self._uploading:  # whole files were moved into folders of their own
                    for file in self._partial():
                        file.unlink(missing_ok=True)

    def sweep(self, used: Collection[str], seconds: float) -> None:
        """Delete what no visitor has and nobody has touched for so long."""
        past = time.time() - seconds
        for file in self._files():
            if file in self._stay or str(file) in used:
                continue
            with suppress(OSError):
                if file.stat().st_mtime < past:
                    file.unlink()
                    if file.parent != self.folder:
                        file.parent.rmdir()

    def clear(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return [file for file in self.folder.rglob("*") if file.is_file()]

    def _partial(self) -> list[Path]:
        with suppress(OSError):
            return [file for file in self.folder.iterdir() if file.is_file()]
        return []


def _size(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0
