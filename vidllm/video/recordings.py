"""Recordings that were joined byte by byte into one file: where each of them begins.

Most demuxers stop where the first recording ends, or take what follows for more of it.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# What a file of a kind begins with, and where that stands in what comes before a later beginning.
_GIF_END, _PNG_END = b";", b"IEND\xaeB`\x82"
_MARKS = {
    b"FLV\x01": (b"FLV\x01", b"\0\0\0\x09\0\0\0\0"),
    b"GIF8": (_GIF_END + b"GIF8", b"9a"),
    b"\x89PNG\r\n\x1a\n": (_PNG_END + b"\x89PNG\r\n\x1a\n", b""),
    b"DKIF\0\0\x20\0": (b"DKIF\0\0\x20\0", b""),
    b"nut/multimedia container\0": (b"nut/multimedia container\0", b""),
    # The header of ASF files; the header partition of MXF files.
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", b""),
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02": (
        b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",
        b"",
    ),
}
_EBML = b"\x1a\x45\xdf\xa3"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


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

    Knows MP4/MOV, Matroska/WebM, AVI, FLV, ASF, GIF, APNG, IVF, NUT and MXF. Transport and program
    streams, Ogg and raw streams are read on by their demuxers.
    """
    begins = [0]
    with path.open("rb") as file:
        size = path.stat().st_size
        for begin in _begins(file, size):
            begins.append(begin)
            if len(begins) > most:
                break
    if len(begins) == 1:
        return [Recording(path)]
    ends = [*begins[1:], size]
    return [Recording(path, a, b) for a, b in zip(begins, ends, strict=True)][:most]


def _begins(file: BinaryIO, size: int) -> Iterator[int]:
    head = file.read(32)
    if head[4:8] in _BOXES:
        return _box_begins(file, size)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _box_begins(file, size)
    if head[:4] == _EBML:
        return _ebml_begins(file, size)
    for start, (mark, after) in _MARKS.items():
        if head.startswith(start):
            lead = mark.index(start[:4])
            return (at + lead for at in _finds(file, mark, after, 0))
    return iter(())


def _box_begins(file: BinaryIO, size: int) -> Iterator[int]:
    """Later `ftyp` boxes of an MP4 file or `AVI ` chunks of an AVI file, outermost ones only."""
    at = seen = 0
    while 0 <= at < size:
        file.seek(at)
        head = file.read(16)
        riff = head[:4] == b"RIFF"
        if head[4:8] == b"ftyp" or (riff and head[8:12] == b"AVI "):
            if seen and at:
                yield at
        else:
            seen += head[4:8] in (b"moov", b"mdat")
        seen += riff
        length = box_length(head, "riff" if riff else "")
        if length is None:
            return
        at += length


def _ebml_begins(file: BinaryIO, size: int) -> Iterator[int]:
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        if at and head[:4] == _EBML:
            yield at
        length = box_length(head, "ebml")
        if length is None:  # a live recording: only its bytes tell where it ends
            yield from _finds(file, _EBML, b"\x42\x82", at + 4)
            return
        at += length


def _finds(file: BinaryIO, mark: bytes, after: bytes, at: int) -> Iterator[int]:
    """Where a mark stands in a file, with other bytes soon behind it."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(mark, at + 1 if at == 0 else at)
        while at > 0:
            if after in data[at + len(mark) : at + len(mark) + 64]:
                yield at
            at = data.find(mark, at + 1)


def box_length(head: bytes, kind: str) -> int | None:
    """Bytes of the box that begins with ``head``, its header included; None if it does not say.

    Args:
        kind: "riff", "ebml", or "" for the boxes of MP4.
    """
    if kind == "riff":
        length = 8 + int.from_bytes(head[4:8], "little")
        return length + length % 2 if head[:4] == b"RIFF" and length > 8 else None
    if kind == "ebml":  # RFC 8794: an identifier and a length, both of variable size
        if not head or not head[0]:
            return None
        id_bytes = 9 - head[0].bit_length()
        rest = head[id_bytes:]
        if not rest or not rest[0]:
            return None
        size_bytes = 9 - rest[0].bit_length()
        value = int.from_bytes(rest[:size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
        unknown = value == (1 << 7 * size_bytes) - 1
        return None if unknown else id_bytes + size_bytes + value
    length = int.from_bytes(head[:4], "big")
    if length == 1:  # ISO/IEC 14496-12, 4.2: the length stands in 64 bits
        length = int.from_bytes(head[8:16], "big")
    return length if length >= 8 else None
