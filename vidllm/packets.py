"""What a video file's packets say without decoding: order, key frames, gaps, and a cut-off end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.container.input import InputContainer
from av.video.stream import VideoStream


@dataclass
class PacketIndex:
    """Every packet of a video stream, in file order (packet numbers count from 0).

    Attributes:
        pts: (p,) int64 presentation times in the stream's time base.
        duration: (p,) int64, 0 where unknown.
        position: (p, 2) int64 byte position in the file (-1 unknown) and size.
        keys: packet numbers of key frames, ascending.
        shown: (n,) int64 packet numbers in presentation order, without packets that are never
            shown (edited out, hidden, or before the first key frame).
        timed: False when the file has no presentation times; then ``pts`` only numbers packets.
        lost_before: packet numbers before which data is missing in the file.
    """

    pts: np.ndarray
    duration: np.ndarray
    position: np.ndarray
    keys: list[int]
    shown: np.ndarray
    timed: bool
    lost_before: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        numbers = range(len(self.pts) - 1, -1, -1)  # of equal times the first packet wins
        self._numbers = dict(zip(self.pts[::-1].tolist(), numbers, strict=True))

    def number(self, pts: int | None) -> int:
        """The packet presented at ``pts``, -1 if there is none."""
        return self._numbers.get(pts, -1)

    def start_of(self, packet: int) -> int:
        """The packet to start decoding at, to get the picture of ``packet``."""
        at = bisect_right(self.keys, packet) - 1
        while at >= 0 and self.pts[self.keys[at]] > self.pts[packet]:
            at -= 1  # a leading frame of an open GOP: it also needs the GOP before
        return self.keys[at] if at >= 0 else 0

    def key_before(self, packet: int) -> int:
        """The key frame before ``packet``, or 0."""
        at = bisect_right(self.keys, packet - 1) - 1
        return self.keys[at] if at >= 0 else 0

    def sound(self, packet: int, faults: Collection[int] = ()) -> bool:
        """Whether no fault and no gap lies between the picture and the key frame it needs."""
        start = self.start_of(packet)
        return not (
            any(start <= fault <= packet for fault in faults)
            or any(start < lost <= packet for lost in self.lost_before)
        )


def list_packets(container: InputContainer, stream: VideoStream) -> PacketIndex:
    """Read all packets of a stream, without decoding, and put them in order."""
    pts: list[int | None] = []
    rows: list[tuple[int, int, int]] = []
    keys: list[int] = []
    never: list[int] = []
    hides = stream.codec_context.name == "vp8"
    known = -1
    while len(pts) > known:  # after an unreadable stretch go on, as long as more comes
        known = len(pts)
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_keyframe:
                    keys.append(len(pts))
                # VP8 keeps pictures that are only referred to in packets of their own
                # (RFC 6386, 9.1: the show_frame bit).
                if packet.is_discard or (hides and not memoryview(packet)[0] & 0x10):
                    never.append(len(pts))
                position = packet.pos
                pts.append(packet.pts)
                rows.append((packet.duration or 0, -1 if position is None else position, packet.size))
            break
        except av.FFmpegError:
            continue
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 3)
    missing = sum(time is None for time in pts)
    timed = missing <= len(pts) // 100  # a broadcast may begin in the middle of a picture
    if timed:
        times = np.asarray([_NEVER if t is None else t for t in pts], dtype=np.int64)
    else:
        times = np.arange(len(pts), dtype=np.int64)
    visible = np.ones(len(times), dtype=bool)
    visible[never] = False
    keys = keys or [0]
    if timed and len(times):
        visible &= times != _NEVER
        visible &= times >= times[keys[0]]
    shown = np.flatnonzero(visible)
    shown = shown[np.argsort(times[shown], kind="stable")]
    return PacketIndex(times, columns[:, 0], columns[:, 1:], keys, shown, timed)


_NEVER = np.iinfo(np.int64).min


def find_holes(container: InputContainer, index: PacketIndex, seconds: np.ndarray) -> np.ndarray:
    """Stretches where a demuxer dropped damaged data: (m, 2) float64 seconds.

    A long time between two frames is a hole only if bytes lie between them in the file that
    belong to no packet; otherwise the frame was meant to stand. Marks ``index.lost_before``.
    """
    steps = np.diff(seconds)
    usual = float(np.median(steps)) if len(steps) else 0.0
    suspects = np.flatnonzero(steps > max(4 * usual, 0.5))
    if not len(suspects) or (index.position[:, 0] < 0).any():
        return np.zeros((0, 2))
    spans = []
    for stream in container.streams:
        stream.discard = "default"
    container.seek(0)
    try:
        for packet in container.demux():
            if packet.size and packet.pos is not None:
                spans.append((packet.pos, packet.pos + packet.size))
    except av.FFmpegError:
        return np.zeros((0, 2))
    spans.sort()
    starts, ends = np.asarray(spans, dtype=np.int64).T
    slack = max(512, int(np.median(index.position[:, 1])) // 2)
    # Frames are presented out of file order, so look at the file just around the long step.
    holes = []
    for at in suspects:
        after = int(index.shown[at + 1])
        before = index.position[:after, 0]
        if not len(before):
            continue
        low, high = int(before.max()), int(index.position[after, 0])
        inside = (starts >= low) & (starts <= high)
        reach = np.maximum.accumulate(ends[inside])
        gaps = starts[inside][1:] - reach[:-1]
        if len(gaps) and gaps.max() > slack:
            index.lost_before.add(after)
            holes.append((float(seconds[at] + usual), float(seconds[at + 1])))
    return np.asarray(holes, dtype=np.float64).reshape(-1, 2)


def cut_off(path: Path) -> bool:
    """Whether the file is shorter than its own outermost boxes say (MP4/MOV, AVI, Matroska)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        kind = "riff" if head[:4] == b"RIFF" else "ebml" if head[:4] == b"\x1a\x45\xdf\xa3" else ""
        if not kind and head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return False
        at = 0
        while at < size:
            file.seek(at)
            length = _box_length(file.read(16), kind)
            if length is None:
                return False
            at += length
    return at > size


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
