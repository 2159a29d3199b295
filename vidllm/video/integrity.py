"""Whether a video file is all there, read off its bytes: what no demuxer says."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from typing import BinaryIO

from .recordings import Recording, box_length

_TS_PACKET = 188  # bytes, ISO/IEC 13818-1
_FLV_TAG = 11  # bytes of a tag's header
_BOXED = {b"RIFF": "riff", b"\x1a\x45\xdf\xa3": "ebml", b"\x30\x26\xb2\x75": "asf"}
_SYNC, _STUFFING = 0x47, 0x1FFF  # what each begins with; the stream of no content
_CHUNK = re.compile(rb"\d\d(dc|db|wb|pc|tx)")  # a chunk of an AVI file: its stream and kind
_LOOKED_AT = 8 << 20  # bytes between two pictures


def gif_images(recording: Recording) -> int | None:
    """Whole images before the chain of blocks of a GIF file breaks; None if it never does.

    GIF has no check sums and its demuxer goes on as if nothing were missing. The chain breaks
    where no block can begin, and where a data block before an image's last is not full, if the
    encoder filled those of the first image (GIF89a specification, sections 15 to 27).
    """
    if not recording.is_whole:
        with recording.open() as file:
            return _whole_images(file.read())
    with recording.open() as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _whole_images(data)


def _whole_images(data: mmap.mmap | bytes) -> int | None:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    images, fills = 0, True
    while at < len(data):
        kind = data[at]
        if kind == 0x3B and not data[at + 1 :].strip(b"\0"):  # the end, and perhaps padding
            return None
        if kind == 0x2C and at + 9 < len(data):  # image: descriptor, colours, LZW code size
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == 0x21:  # extension: its label
            at += 2
        else:
            return max(images - 1, 0)
        sizes = []
        while at < len(data) and data[at]:
            sizes.append(data[at])
            at += 1 + data[at]
        at += 1
        if kind == 0x2C and at <= len(data):
            filled = all(size == 255 for size in sizes[:-1])
            if not images:
                fills = filled
            elif fills and not filled:
                return images
            images += 1
    return images


def cut_off(recording: Recording) -> tuple[bool, int, int]:
    """Whether a file is shorter than its own outermost boxes say, the bytes of whole boxes, and
    the bytes that all boxes say there are.

    Knows MP4/MOV, AVI, Matroska/WebM, ASF, GIF (its last byte), FLV (its last tag) and transport
    streams (whole packets of 188 bytes); others promise no length.
    """
    size = recording.size
    with recording.open() as file:
        head = file.read(12)
        if head[:1] == b"G" and head[:4] != b"GIF8":
            return _part_of_packet(file, size) > 0, size, size
        if head[:4] == b"FLV\x01":
            return not _ends_with_tag(file, size), size, size
        if head[:4] == b"GIF8":
            file.seek(-1, 2)
            return file.read(1) != b";", size, size
        kind = _BOXED.get(head[:4], "")
        if not kind and head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return False, size, size
        at = whole = 0
        while at < size:
            file.seek(at)
            head = file.read(24)
            length = box_length(head, kind)
            if length is None:
                return False, size, size
            whole, at = at, at + length
        if head[4:8] == b"moof" and at == size:  # the fragment that it tells of is not there
            return True, whole, size
        if kind == "riff" and at > size and not _lacks_pictures(file, whole, size):
            return False, size, size
    return at > size, whole if at > size else size, max(at, size)


def _lacks_pictures(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a part of an AVI file ends before its pictures do; else it may lack their index."""
    for begin, end in _movies(file, at, size):
        return not begin < end <= size
    return True


def _movies(file: BinaryIO, at: int, size: int) -> Iterator[tuple[int, int]]:
    """Begins and ends of the lists of an AVI file's pictures and sound, from one part of it on."""
    while at < size:
        file.seek(at)
        head = file.read(12)
        length = 8 + int.from_bytes(head[4:8], "little")
        if not head[:4].strip().isalnum():
            return
        if head[:4] == b"LIST" and head[8:] == b"movi":
            yield at, at + length
        at += 12 if head[:4] == b"RIFF" else length + length % 2


def index_for_pictures(recording: Recording) -> list[tuple[int, int]]:
    """Bytes of an AVI file's indexes, where demuxers that do not know them for one see pictures.

    Each entry of 16 bytes begins as the chunk does that it points to.
    """
    found = []
    with recording.open() as file:
        for _, end in _movies(file, 0, recording.size):
            end += end % 2
            file.seek(end)
            head = file.read(8 + 16 + 4)
            length = int.from_bytes(head[4:8], "little")
            if length % 16 == 0 and all(_CHUNK.match(head, at) for at in (8, 24)):
                found.append((end, end + 8 + length))
    return found


def _ends_with_tag(file: BinaryIO, size: int) -> bool:
    """Whether an FLV file ends with a whole tag and its length (Adobe FLV 10.1, E.3)."""
    file.seek(max(size - 4, 0))
    length = int.from_bytes(file.read(4), "big")
    if not _FLV_TAG <= length <= size - 4:
        return length == 0 and size <= 13  # a header alone
    file.seek(size - 4 - length)
    return int.from_bytes(file.read(4)[1:], "big") == length - _FLV_TAG


def _part_of_packet(file: BinaryIO, size: int) -> int:
    """Bytes of the transport stream packet that a file ends within; 0 for other kinds of file."""
    file.seek(0)
    start = file.read(5 * _TS_PACKET)
    synced = len(start) == 5 * _TS_PACKET and set(start[::_TS_PACKET]) == {ord("G")}
    return size % _TS_PACKET if synced else 0


def in_step(recording: Recording, begin: int, end: int) -> bool:
    """Whether whole packets of a transport stream alone stand before byte ``end`` of it.

    Args:
        begin, end: bytes; ``end`` is where a packet begins.
    """
    if not 0 <= begin < end <= recording.size or end - begin > _LOOKED_AT:
        return False
    with recording.open() as file:
        file.seek(begin)
        data = file.read(end - begin)
    return all(data[at] == _SYNC for at in range(len(data) - _TS_PACKET, -1, -_TS_PACKET))


def counters_go_on(recording: Recording, before: int, place: int) -> bool:
    """Whether every counter of a transport stream goes on from one picture to the next.

    A recording that was joined on begins them anew (ISO/IEC 13818-1, 2.4.3.3: continuity_counter).

    Args:
        before, place: bytes at which two pictures begin, one behind the other.
    """
    if not 0 <= before < place or place - before > _LOOKED_AT:
        return True
    with recording.open() as file:
        begin = max(place - (_LOOKED_AT // _TS_PACKET) * _TS_PACKET, place % _TS_PACKET)
        file.seek(begin)
        data = file.read(place - begin + 500 * _TS_PACKET)
    counters: dict[int, int] = {}
    for at in range(0, len(data) - _TS_PACKET + 1, _TS_PACKET):
        stream = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        counter, payload = data[at + 3] & 0xF, data[at + 3] & 0x10
        last = counters.get(stream)
        told = data[at + 3] & 0x20 and data[at + 4] and data[at + 5] & 0x80
        right = last is None or counter in (last, (last + 1) % 16 if payload else last)
        if begin + at >= before and stream != _STUFFING and (told or not right):
            return False
        counters[stream] = counter
    return True
