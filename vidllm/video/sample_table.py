"""Times and key frames of an MP4 or MOV file from its sample tables, without reading its packets.

The tables (ISO/IEC 14496-12, 8.6.1 and 8.6.2) give what a pass over every packet would give; of
an hour of video that is one read of a megabyte instead of all of the file. Whatever is unusual
(fragments, edits that repeat or cut) is left to that pass: the caller checks and falls back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .recordings import Recording

_LARGEST = 256 * 1024**2  # bytes of tables worth holding in memory
_NESTED = (b"trak", b"mdia", b"minf", b"stbl", b"edts")
#: Tables of a track: where the number of entries stands in the box, and bytes of each.
_ENTRIES = {
    **dict.fromkeys((b"stts", b"ctts"), (4, 8)),
    **dict.fromkeys((b"stco", b"stss"), (4, 4)),
    b"stsz": (8, 4),
    b"stsc": (4, 12),
    b"co64": (4, 8),
}


@dataclass(frozen=True)
class SampleTable:
    """One track's samples in file order, times in the track's time scale.

    Attributes:
        decode: (n,) int64 decoding times from 0.
        present: (n,) int64 presentation times, before any edit list.
        duration: (n,) int64 how long each sample lasts on the decoding time line.
        keys: numbers of the key frames, ascending.
    """

    decode: np.ndarray
    present: np.ndarray
    duration: np.ndarray
    keys: list[int]


def sample_table(recording: Recording, track: int, count: int) -> SampleTable | None:
    """The table of the track with that id; None where there is none or it is not simple.

    Args:
        count: samples that the demuxer found. Tables that speak of others are not believed, and
            nothing of the size that they state is made.
    """
    try:
        moov = _read_moov(recording)
        if moov is None:
            return None
        tracks = []
        for kind, body in _boxes(moov):
            if kind == b"mvex":  # fragments follow: the tables are not all
                return None
            if kind == b"trak":
                tracks.append(body)
        for body in tracks:
            header = next(part for kind, part in _boxes(body) if kind == b"tkhd")
            if struct.unpack_from(">I", header, 20 if header[0] else 12)[0] == track:
                return _tables(body, count)
    except (struct.error, ValueError, StopIteration, IndexError):
        return None  # damaged tables: the demuxer may still make something of them
    return None


def overstated(recording: Recording) -> str | None:
    """Which of an MP4's tables states more entries than it has bytes for, in words; else None."""
    try:
        moov = _read_moov(recording)
        return None if moov is None else _overstated(moov, recording.size)
    except (OSError, struct.error, ValueError):
        return None


def _overstated(body: memoryview, size: int) -> str | None:
    for kind, inside in _boxes(body):
        if kind in _NESTED and (found := _overstated(inside, size)):
            return found
        if kind not in _ENTRIES:
            continue
        place, each = _ENTRIES[kind]
        count, room = struct.unpack_from(">I", inside, place)[0], len(inside) - place - 4
        if kind == b"stsz" and any(inside[4:8]):  # one size for all samples
            each, room = struct.unpack_from(">I", inside, 4)[0], size
        if count * each > room:
            return (
                f'its table "{kind.decode()}" claims {count} entries, which is more than the file '
                "can hold"
            )
    return None


def _read_moov(recording: Recording) -> memoryview | None:
    with recording.open() as file:
        while head := file.read(8):
            length, kind = struct.unpack(">I4s", head)
            inside = length - 8
            if length == 1:
                inside = struct.unpack(">Q", file.read(8))[0] - 16
            if inside < 0 or (kind == b"moov" and inside > _LARGEST):
                return None
            if kind == b"moov":
                return memoryview(file.read(inside))
            file.seek(inside, 1)
    return None


def _boxes(body: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        if length < 8:
            raise ValueError("a box of an unusual length")
        yield kind, body[at + 8 : at + length]
        at += length


def _tables(body: memoryview, count: int) -> SampleTable | None:
    for name in (b"mdia", b"minf", b"stbl"):
        body = next(part for kind, part in _boxes(body) if kind == name)
    tables = dict(_boxes(body))
    runs = _pairs(tables[b"stts"]) if b"stts" in tables else None
    if runs is None or not _speaks_of(runs, count):
        return None
    duration = np.repeat(runs[:, 1], runs[:, 0])
    decode = np.cumsum(duration) - duration
    present = decode
    if b"ctts" in tables:
        offsets = _pairs(tables[b"ctts"])
        if not _speaks_of(offsets, count):
            return None
        present = decode + np.repeat(offsets[:, 1], offsets[:, 0])
    keys = list(range(len(decode)))
    if b"stss" in tables:
        number = struct.unpack_from(">I", tables[b"stss"], 4)[0]
        keys = (np.frombuffer(tables[b"stss"], ">u4", number, 8).astype(np.int64) - 1).tolist()
    return SampleTable(decode, present, duration, keys)


def _pairs(table: memoryview) -> np.ndarray:
    """(count, value) rows of a run-length table: (r, 2) int64."""
    count = struct.unpack_from(">I", table, 4)[0]
    return np.frombuffer(table, ">i4", 2 * count, 8).reshape(-1, 2).astype(np.int64)


def _speaks_of(runs: np.ndarray, count: int) -> bool:
    """Whether (r, 2) rows of a run-length table are of so many samples in all."""
    return bool((runs[:, 0] >= 0).all()) and int(runs[:, 0].sum()) == count
