"""Recordings that were joined byte by byte into one file: where each of them begins.

Most demuxers stop where the first recording ends, or take what follows for more of it. Such a file
holds pieces of one format (boxes, tags, pages, packs, packets) up to a place at which no piece of
that format can begin, but a file of some format can.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
# Elements of a segment, and of a cluster (RFC 9559), where their parent does not tell its length.
_ELEMENTS = {
    _SEGMENT, _CLUSTER, b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b",
    b"\x1c\x53\xbb\x6b", b"\x10\x43\xa7\x70", b"\x12\x54\xc3\x67", b"\x19\x41\xa4\x69",
    b"\xe7", b"\xa3", b"\xa0", b"\xab", b"\xa7", b"\x58\x54", b"\xec", b"\xbf",
}  # fmt: skip
_ASF = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"
_MXF = b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02"  # the header partition
_ASF_OBJECTS = {  # header, data, and indexes (ASF specification, 10.1)
    b"\x30\x26\xb2\x75", b"\x36\x26\xb2\x75", b"\x90\x08\x00\x33", b"\xd3\x29\xe2\xd6",
    b"\xf8\x03\xb1\xfe", b"\xd0\x3f\xb7\x3c",
}  # fmt: skip
_PACK, _SYNC = b"\0\0\1\xba", b"G"
_NUT_INDEX = b"NX\xddg/#\xe6N"
_ASSOCIATION = b"G\x40\0"  # what a packet with an association table begins with
#: Bytes of a transport stream's packets, and of what stands before each (Blu-ray: a time).
_PACKETS = {"mpegts": (188, 0), "m2ts": (192, 4)}
_IN_STEP = 5  # packets that a transport stream is known by
_MOST_LOST = 1000  # places at which a stream is out of step: beyond that it is not looked at
# What a file begins with; that of MP4 stands behind a length.
_STARTS = {
    "ebml": _EBML, "flv": b"FLV\x01", "gif": b"GIF8", "png": b"\x89PNG\r\n\x1a\n",
    "ivf": b"DKIF\0\0\x20\0", "nut": b"nut/multimedia container\0", "asf": _ASF, "mxf": _MXF,
    "mpeg": _PACK, "ogg": b"OggS\0\x02",
}  # fmt: skip
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip")
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


def kind_at(data: mmap, at: int) -> str | None:
    """The format of a video file that may begin at a byte."""
    head = data[at : at + 32]
    for kind, start in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"ftyp" or (at == 0 and head[4:8] in _BOXES):
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "riff"
    for kind, (step, lead) in _PACKETS.items():
        if data[at + lead : at + lead + _IN_STEP * step : step] == _SYNC * _IN_STEP:
            return kind
    return None


def box_length(head: bytes, kind: str) -> int | None:
    """Bytes of the box that begins with ``head``, its header included; None if it does not say.

    Args:
        kind: "riff", "ebml", "asf", or "" for the boxes of MP4.
    """
    if kind == "asf":
        length = int.from_bytes(head[16:24], "little")
        return length if length >= 24 and head[:4] in _ASF_OBJECTS else None
    if kind == "riff":
        length = 8 + int.from_bytes(head[4:8], "little")
        return length + length % 2 if head[:4] == b"RIFF" and length > 8 else None
    if kind == "ebml":
        first, value = _ebml_header(head)
        return None if value is None else first + value
    length = int.from_bytes(head[:4], "big")
    if length == 1:  # ISO/IEC 14496-12, 4.2: the length stands in 64 bits
        length = int.from_bytes(head[8:16], "big")
    return length if length >= 8 else None


def _ebml_header(head: bytes) -> tuple[int, int | None]:
    """Bytes of an element's header, and of its content; None if it does not say.

    RFC 8794: an identifier and a length, both of variable size.
    """
    if not head or not head[0]:
        return 0, None
    id_bytes = 9 - head[0].bit_length()
    rest = head[id_bytes:]
    if not rest or not rest[0]:
        return 0, None
    size_bytes = 9 - rest[0].bit_length()
    value = int.from_bytes(rest[:size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
    unknown = value == (1 << 7 * size_bytes) - 1
    return id_bytes + size_bytes, None if unknown else value


def _box(data: mmap, at: int, first: bool) -> int | None:
    head = data[at : at + 16]
    return box_length(head, "") if head[4:8].isascii() and head[4:8].isalnum() else None


def _chunk(data: mmap, at: int, first: bool) -> int | None:
    return box_length(data[at : at + 16], "riff")


def _element(data: mmap, at: int, first: bool) -> int | None:
    head = data[at : at + 16]
    id_bytes = 9 - head[0].bit_length()
    header, value = _ebml_header(head)
    if head[:id_bytes] not in _ELEMENTS and not (first and head.startswith(_EBML)):
        return None
    if value is None:  # a live recording: its parts come next
        return header if head[:4] in (_SEGMENT, _CLUSTER) else None
    return header + value


def _tag(data: mmap, at: int, first: bool) -> int | None:
    if first:
        return 13
    known = data[at] & 0x1F in (8, 9, 18) and not data[at] & 0xC0
    return 15 + int.from_bytes(data[at + 1 : at + 4], "big") if known else None


def _block(data: mmap, at: int, first: bool) -> int | None:
    """GIF89a specification, sections 15 to 27."""
    begin, kind = at, data[at]
    if first:
        return 13 + _colours(data[at + 10])
    if kind == 0x3B:
        return 1
    if kind not in (0x2C, 0x21) or at + 11 > len(data):
        return None
    at += 11 + _colours(data[at + 9]) if kind == 0x2C else 2
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1 - begin


def _colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _png_chunk(data: mmap, at: int, first: bool) -> int | None:
    if first:
        return 8
    head = data[at : at + 8]
    known = head[4:].isalpha() and head[4:] != b"ftyp"
    return 12 + int.from_bytes(head[:4], "big") if known else None


def _ivf_frame(data: mmap, at: int, first: bool) -> int | None:
    return 32 if first else 12 + int.from_bytes(data[at : at + 4], "little")


def _asf_object(data: mmap, at: int, first: bool) -> int | None:
    return box_length(data[at : at + 24], "asf")


def _mxf_item(data: mmap, at: int, first: bool) -> int | None:
    head = data[at : at + 25]
    if not head.startswith(_MXF[:4]) or len(head) < 25:
        return None
    more = head[16] - 0x80
    if more <= 0:
        return 17 + head[16]
    return 17 + more + int.from_bytes(head[17 : 17 + more], "big") if more <= 8 else None


def _nut_parts(data: mmap, at: int, first: bool) -> int | None:
    """All up to the end of the index, which comes last and gives its length in groups of 7 bits."""
    begin, at = at, data.find(_NUT_INDEX, at) + len(_NUT_INDEX)
    if not first or at < len(_NUT_INDEX):
        return None
    length = 0
    while at < len(data) and data[at] & 0x80 and length < 1 << 56:
        length, at = length << 7 | data[at] & 0x7F, at + 1
    length = length << 7 | data[at] if at < len(data) else 0
    return at + 1 + (4 if length > 4096 else 0) + length - begin  # a check sum of a long header


def _page(data: mmap, at: int, first: bool) -> int | None:
    head = data[at : at + 282]
    if not head.startswith(b"OggS") or len(head) < 27:
        return None
    return 27 + head[26] + sum(head[27 : 27 + head[26]])


def _pack(data: mmap, at: int, first: bool) -> int | None:
    """ISO/IEC 13818-1, 2.5.3, and 11172-1, 2.4.3."""
    head = data[at : at + 14]
    if not head.startswith(b"\0\0\1") or len(head) < 5:
        return 4 if head[:4] == b"\0\0\1\xb9" else None
    if head[3] == 0xBA:
        return 14 + (head[13] & 7) if head[4] >> 6 == 1 and len(head) == 14 else 12
    if head[3] == 0xB9:
        return 4
    return 6 + int.from_bytes(head[4:6], "big") if head[3] >= 0xBB else None


_LENGTHS: dict[str, Callable[[mmap, int, bool], int | None]] = {
    "mp4": _box, "riff": _chunk, "ebml": _element, "flv": _tag, "gif": _block, "png": _png_chunk,
    "ivf": _ivf_frame, "asf": _asf_object, "mxf": _mxf_item, "ogg": _page, "mpeg": _pack,
    "nut": _nut_parts,
}  # fmt: skip
# Formats whose demuxers themselves read on where another file of the format begins.
_READ_ON = {"mpegts", "m2ts", "mpeg", "ogg"}


def end_of(data: mmap, begin: int, kind: str) -> tuple[int, bool]:
    """Where the recording of a kind that begins at a byte ends, and whether another begins there.

    Where neither a piece of it nor another recording can begin, that place and False.
    """
    if kind in _PACKETS:
        return _end_of_packets(data, begin, kind)
    at, length_of, lost = begin, _LENGTHS[kind], 0
    full = kind != "mp4"  # an MP4 file's first boxes may come twice
    while at < len(data):
        found = kind_at(data, at) if at > begin and _starts(data, at, kind) else None
        if found == kind and kind not in _READ_ON and full:
            return at, True
        length = length_of(data, at, at == begin)
        if length is not None and at + length <= len(data):
            full = full or data[at + 4 : at + 8] in (b"moov", b"mdat")
            at += length
            continue
        found = kind_at(data, at) if at > begin else None
        if found is not None and (found != kind or kind not in _READ_ON):
            return at, True
        lost += 1
        again = data.find(_PACK, at + 1) if kind == "mpeg" and lost < _MOST_LOST else -1
        if again < 0:
            return at, False
        at = again
    return len(data), False


def _starts(data: mmap, at: int, kind: str) -> bool:
    """Whether what a file of the kind begins with stands where a piece of it may stand as well."""
    if kind == "mp4":
        return data[at + 4 : at + 8] == b"ftyp"
    return kind in ("riff", "asf", "mxf")


def _end_of_packets(data: mmap, begin: int, kind: str) -> tuple[int, bool]:
    step, lead = _PACKETS[kind]
    end = _other_streams(data, begin + lead) - lead
    in_step = re.compile(b"G(?:[\\s\\S]{%d}G){%d}" % (step - 1, _IN_STEP - 1))
    at = begin
    for _ in range(_MOST_LOST):
        marks = data[at + lead : end : step]
        whole = len(marks) - len(marks.lstrip(_SYNC))
        if whole == len(marks):
            break
        lost = at + whole * step
        # The last packet may be a part of one, and another file may begin with the same byte.
        for place in range(max(lost - step, at + 1), lost + 1):
            found = kind_at(data, place)
            if found is not None and found != kind:
                return place, True
        again = in_step.search(data, lost + 1)
        if again is None:
            return lost, False
        at = again.start() - lead
    return end, end < len(data) - lead


def _other_streams(data: mmap, begin: int) -> int:
    """The packet at which a transport stream is one of another coding from there on; its end.

    ISO/IEC 13818-1, 2.4.4: the association table names map tables, these name each stream's coding.
    """
    known: dict[int, int] = {}
    last, other = b"", None
    maps: set[int] = set()
    for _, table in islice(_tables(data, begin, 0), 1):
        maps = {pid for program, pid in _programs(table) if program}
    # Of several programmes the demuxer chooses, and other programmes may end.
    for at, table in _tables(data, begin, maps.pop()) if len(maps) == 1 else ():
        if table == last and other is None:
            continue
        last, codings = table, _codings(table)
        if all(known.get(pid, coding) == coding for pid, coding in codings.items()):
            known.update(codings)
            other = None
        elif other is None:  # one bit may be wrong once
            other = at
        else:
            return max(data.rfind(_ASSOCIATION, begin, other), begin)
    return len(data)


def _tables(data: mmap, at: int, pid: int) -> Iterator[tuple[int, bytes]]:
    """Where tables of a transport stream begin, and their bytes; only such as fit one packet."""
    mark = bytes([0x47, 0x40 | pid >> 8, pid & 0xFF])
    while (at := data.find(mark, at)) >= 0:
        packet = data[at : at + 188]
        if len(packet) == 188 and packet[3] & 0x30 == 0x10 and not packet[4]:
            length = (packet[6] & 0xF) << 8 | packet[7]
            if packet[5] in (0, 2) and 9 <= length <= 180:
                yield at, packet[5 : 8 + length - 4]
        at += 1


def _programs(table: bytes) -> Iterator[tuple[int, int]]:
    """The programmes of an association table, and the streams of their map tables."""
    for at in range(8, len(table) - 3, 4):
        yield (
            int.from_bytes(table[at : at + 2], "big"),
            int.from_bytes(table[at + 2 : at + 4], "big") & 0x1FFF,
        )


def _codings(table: bytes) -> dict[int, int]:
    """The coding of each stream of a map table."""
    found = {}
    at = 12 + (int.from_bytes(table[10:12], "big") & 0xFFF)
    while at + 5 <= len(table):
        found[int.from_bytes(table[at + 1 : at + 3], "big") & 0x1FFF] = table[at]
        at += 5 + (int.from_bytes(table[at + 3 : at + 5], "big") & 0xFFF)
    return found
