"""Recordings that were joined byte by byte into one file: where each of them begins.

Most demuxers stop where the first recording ends, or take what follows for more of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from .pieces import end_of, kind_at

# What stands where a later recording of a kind begins, with what soon follows it, to be looked for
# where the pieces of a file do not lead there; how many bytes of it belong to what comes before.
_MARKS = {
    "ebml": (b"\x1a\x45\xdf\xa3", b"\x42\x82", 0),
    "flv": (b"FLV\x01", b"\0\0\0\x09\0\0\0\0", 0),
    "gif": (b";GIF8", b"9a", 1),
    "png": (b"IEND\xaeB`\x82\x89PNG\r\n\x1a\n", b"", 8),
    "ivf": (b"DKIF\0\0\x20\0", b"", 0),
    "nut": (b"nut/multimedia container\0", b"", 0),
    "asf": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", b"", 0),
    "mxf": (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", b"", 0),
}


@dataclass(frozen=True)
class Recording:
    """A stretch of a file that is a video file by itself; nearly always all of the file.

    Attributes:
        begin, end: bytes of the file; end is None for all that follows.
    """

    path: Path
    begin: int = 0
    end: int | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the file."""
        return self.begin == 0 and self.end is None

    @property
    def size(self) -> int:
        """Bytes."""
        end = self.path.stat().st_size if self.end is None else self.end
        return end - self.begin

    def open(self) -> BinaryIO:
        """Its bytes as if they were a file."""
        file = self.path.open("rb")
        return file if self.is_whole else io.BufferedReader(_Stretch(file, self.begin, self.size))

    def head(self, size: int) -> Recording:
        """Its first bytes."""
        return Recording(self.path, self.begin, self.begin + size)


class _Stretch(io.RawIOBase):
    """Bytes of an open file as if there were no others."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file, self._begin, self._size = file, begin, size
        self._file.seek(begin)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left = max(self._size - self.tell(), 0)
        data = self._file.read(min(len(buffer), left))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence == io.SEEK_END:
            offset += self._size
        return self._file.seek(self._begin + offset) - self._begin

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def close(self) -> None:
        self._file.close()
        super().close()


def recordings_in(path: Path, most: int) -> list[Recording]:
    """The recordings of a file in order, at most so many; one where nothing was joined on.

    Each may be of another format than the one before. Knows MP4/MOV, Matroska/WebM, AVI, FLV, ASF,
    GIF, APNG, IVF, NUT, MXF, Ogg, transport and program streams; the last three are read on by
    their demuxers where another of the same format follows.
    """
    size = path.stat().st_size
    if not size:
        return [Recording(path)]
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        begins = [0, *islice(_begins(data), most)]
    if len(begins) == 1:
        return [Recording(path)]
    ends = [*begins[1:], size]
    return [Recording(path, a, b) for a, b in zip(begins, ends, strict=True)][:most]


def _begins(data: mmap) -> Iterator[int]:
    """Where recordings begin that were joined on."""
    at, kind = 0, kind_at(data, 0)
    while kind is not None:
        at, another = end_of(data, at, kind)
        if not another and at < len(data) and kind in _MARKS:
            at = _find(data, at, *_MARKS[kind])
            another = at < len(data)
        if not another:
            return
        yield at
        kind = kind_at(data, at)


def _find(data: mmap, at: int, mark: bytes, after: bytes, lead: int) -> int:
    """Where a recording begins behind a place in a file, its size where none does."""
    at = data.find(mark, at + 1)
    while at >= 0:
        if after in data[at + len(mark) : at + len(mark) + 64]:
            return at + lead
        at = data.find(mark, at + 1)
    return len(data)
