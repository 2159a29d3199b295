"""Whether a video file is all there, read off its bytes: what no demuxer says."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO

_TS_PACKET = 188  # bytes, ISO/IEC 13818-1


def gif_images(path: Path) -> int | None:
    """Whole images before the chain of blocks of a GIF file breaks; None if it never does.

    GIF has no check sums and its demuxer goes on as if nothing were missing. The chain breaks
    where no block can begin, and where a data block before an image's last is not full, if the
    encoder filled those of the first image (GIF89a specification, sections 15 to 27).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _whole_images(data)


def _whole_images(data: mmap.mmap) -> int | None:
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


def cut_off(path: Path) -> tuple[bool, int, int]:
    """Whether a file is shorter than its own outermost boxes say, the bytes of whole boxes, and
    the bytes that all boxes say there are.

    Knows MP4/MOV, AVI, Matroska/WebM, GIF (its last byte) and transport streams (whole packets of
    188 bytes); others promise no length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:1] == b"G" and head[:4] != b"GIF8":
            return _part_of_packet(file, size) > 0, size, size
        if head[:4] == b"GIF8":
            file.seek(-1, 2)
            return file.read(1) != b";", size, size
        kind = "riff" if head[:4] == b"RIFF" else "ebml" if head[:4] == b"\x1a\x45\xdf\xa3" else ""
        if not kind and head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return False, size, size
        at = whole = 0
        while at < size:
            file.seek(at)
            length = _box_length(file.read(16), kind)
            if length is None:
                return False, size, size
            whole, at = at, at + length
    return at > size, whole if at > size else size, max(at, size)


def _part_of_packet(file: BinaryIO, size: int) -> int:
    """Bytes of the transport stream packet that a file ends within; 0 for other kinds of file."""
    file.seek(0)
    start = file.read(5 * _TS_PACKET)
    synced = len(start) == 5 * _TS_PACKET and set(start[::_TS_PACKET]) == {ord("G")}
    return size % _TS_PACKET if synced else 0


def _box_length(head: bytes, kind: str) -> int | None:
    """Bytes of the box that begins with ``head``, its header included; None if it does not say."""
    if kind == "riff":
        length = 8 + int.from_bytes(head[4:8], "little")
        return length + length % 2 if head[:4] == b"RIFF" and length > 8 else None
    if kind == "ebml":  # RFC 8794: an identifier and a length, both of variable size
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
