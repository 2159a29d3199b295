"""Damage to bytes: flips, runs, cuts, blocks in other places, and lies in fields of containers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

#: Numbers that fields are made to state.
SPECIAL = (0, 1, 2, 7, 2**15, 2**16, 2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 1)

#: Boxes of mp4 and mov, those of fragments included.
_BOXES = (
    b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"stss", b"stsd", b"elst", b"mdhd", b"mvhd",
    b"tkhd", b"moov", b"trak", b"mdat", b"avcC", b"moof", b"trun", b"tfhd", b"tfdt", b"trex",
    b"mfhd", b"ftyp", b"esds", b"stbl",
)  # fmt: skip
#: Elements of Matroska: segment, cluster, its time, block, duration, time scale, sides, …
_ELEMENTS = (
    b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xe7", b"\xa3", b"\x44\x89", b"\x2a\xd7\xb1",
    b"\xb0", b"\xba", b"\x23\xe3\x83", b"\x1c\x53\xbb\x6b", b"\x16\x54\xae\x6b", b"\xae",
    b"\x1a\x45\xdf\xa3", b"\x63\xa2", b"\x86",
)  # fmt: skip
_CHUNKS = (b"RIFF", b"avih", b"strh", b"strf", b"idx1", b"LIST", b"movi", b"00dc")


def special(draw: random.Random) -> int:
    """A number of 32 bits that fields do not hold."""
    return draw.choice(SPECIAL) if draw.random() < 0.8 else draw.getrandbits(32)


def flip(data: bytearray, draw: random.Random, low: int = 0, high: int | None = None) -> None:
    """Turn one to eight bits between two places."""
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(low, max(low + 1, min(high or len(data), len(data))))
        data[at] ^= 1 << draw.randrange(8)


def _flips(data: bytearray, draw: random.Random, _: bytes) -> None:
    flip(data, draw)


def _flips_ahead(data: bytearray, draw: random.Random, _: bytes) -> None:
    flip(data, draw, 0, 800)


def _span(data: bytearray, draw: random.Random) -> slice:
    start = draw.randrange(len(data))
    return slice(start, min(len(data), start + draw.choice((4, 16, 64, 256, 1024))))


def _zeros(data: bytearray, draw: random.Random, _: bytes) -> None:
    span = _span(data, draw)
    data[span] = bytes(span.stop - span.start)


def _noise(data: bytearray, draw: random.Random, _: bytes) -> None:
    span = _span(data, draw)
    data[span] = draw.randbytes(span.stop - span.start)


def _cut(data: bytearray, draw: random.Random, _: bytes) -> None:
    del data[draw.randrange(len(data)) :]


def _removed(data: bytearray, draw: random.Random, _: bytes) -> None:
    del data[_span(data, draw)]


def _inserted(data: bytearray, draw: random.Random, other: bytes) -> None:
    at, span = draw.randrange(len(data)), _span(bytearray(other), draw)
    data[at:at] = other[span]


def _splice(data: bytearray, draw: random.Random, _: bytes) -> None:
    span = _span(data, draw)
    at = draw.randrange(len(data))
    block = bytes(data[span])
    data[at : at + len(block)] = block


def _tail(data: bytearray, draw: random.Random, other: bytes) -> None:
    at = draw.randrange(len(data))
    data[at:] = other[min(at, len(other) - 1) :]


#: Name to damage that any file can take; the third argument is another file of its kind.
ANYWHERE: dict[str, Callable[[bytearray, random.Random, bytes], None]] = {
    "bit flips": _flips,
    "bit flips ahead": _flips_ahead,
    "zeroed run": _zeros,
    "random run": _noise,
    "cut": _cut,
    "removed run": _removed,
    "inserted run": _inserted,
    "spliced block": _splice,
    "other tail": _tail,
}


def lie(data: bytearray, draw: random.Random, kind: str) -> None:
    """Have one or two fields of a container state something else.

    Args:
        kind: the file's suffix without its dot.
    """
    work = {
        "mp4": _box, "mov": _box, "mkv": _element, "webm": _element, "avi": _chunk, "gif": _gif,
        "ts": _packet,
    }[kind]  # fmt: skip
    for _ in range(draw.choice((1, 1, 2))):
        work(data, draw)


def _found(data: bytearray, names: Sequence[bytes], draw: random.Random) -> tuple[bytes, int]:
    there = [name for name in names if name in data]
    name = draw.choice(there or list(names))
    places: list[int] = []
    at = data.find(name)
    while at >= 0 and len(places) < 200:
        places.append(at)
        at = data.find(name, at + 1)
    return name, draw.choice(places) if places else 0


def _put(data: bytearray, at: int, value: bytes) -> None:
    at = max(0, at)
    data[at : at + len(value)] = value[: max(0, len(data) - at)]


def _box(data: bytearray, draw: random.Random) -> None:
    name, at = _found(data, _BOXES, draw)
    where = draw.random()
    if where < 0.25:
        place = at - 4  # the size of the box
    elif where < 0.6:
        place = at + (12 if name == b"stsz" else 8)  # how many entries there are
    else:
        place = at + 4 + 4 * draw.randrange(12)
    _put(data, place, struct.pack(">I", special(draw)))


def _element(data: bytearray, draw: random.Random) -> None:
    name, at = _found(data, _ELEMENTS, draw)
    at += len(name)
    if draw.random() < 0.4:
        size = draw.choice((b"\x01" + struct.pack(">Q", special(draw))[1:], b"\xff", b"\x80"))
        _put(data, at, size)
    elif draw.random() < 0.5:
        _put(data, at + 1, struct.pack(">I", special(draw)))
    else:
        _put(data, at + 1, struct.pack(">d", draw.choice((0.0, -1.0, 1e9, 1e300, float("nan")))))


def _chunk(data: bytearray, draw: random.Random) -> None:
    name, at = _found(data, _CHUNKS, draw)
    _put(data, at + len(name) + 4 * draw.randrange(14), struct.pack("<I", special(draw)))


def _gif(data: bytearray, draw: random.Random) -> None:
    name, at = _found(data, (b"GIF8", b"\x2c", b"\x21\xf9\x04"), draw)
    place = {b"GIF8": 6, b"\x2c": 1, b"\x21\xf9\x04": 3}[name] + 2 * draw.randrange(3)
    _put(data, at + place, struct.pack("<H", special(draw) & 0xFFFF))


def _packet(data: bytearray, draw: random.Random) -> None:
    at = 188 * draw.randrange(max(1, len(data) // 188)) + draw.randrange(1, 24)
    value = draw.choice((b"\0", b"\xff", b"\x47", draw.randbytes(1), draw.randbytes(4)))
    _put(data, at, value)
