"""What a video file's packets say without decoding: order, key frames, gaps, and a cut-off end."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container.input import InputContainer
from av.video.stream import VideoStream

from vidllm.sampletable import sample_table

_CHECKED = 32  # packets that must agree before a sample table is believed
NEVER = np.iinfo(np.int64).min  # the time of a packet that has none


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
        counted: a packet's time is not that of its picture: pictures can only be counted.
        lost_before: packet numbers before which data is missing in the file.
        faults: packets that the demuxer itself knows to be incomplete.
        places: packet numbers by byte position, where the demuxer's times cannot be trusted to
            tell packets apart (AVI: it counts packets, and counts wrong past a damage).
    """

    pts: np.ndarray
    duration: np.ndarray
    position: np.ndarray
    keys: list[int]
    shown: np.ndarray
    timed: bool
    counted: bool
    lost_before: set[int] = field(default_factory=set)
    faults: set[int] = field(default_factory=set)
    places: dict[int, int] | None = None
    origin: int | None = None

    def __post_init__(self) -> None:
        # Of equal times the first packet wins. Hours have a million packets: no array twice.
        order = np.argsort(self.pts, kind="stable")
        self._order = self.shown if np.array_equal(order, self.shown) else order

    def number(self, pts: int | None) -> int:
        """The packet presented at ``pts``, -1 if there is none."""
        if pts is None:
            return -1
        at = int(np.searchsorted(self.pts, pts, sorter=self._order))
        number = int(self._order[at]) if at < len(self._order) else -1
        return number if number >= 0 and self.pts[number] == pts else -1

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
            any(start <= fault <= packet for fault in self.faults.union(faults))
            or any(start < lost <= packet for lost in self.lost_before)
        )


def index_from_table(
    path: Path, container: InputContainer, stream: VideoStream
) -> PacketIndex | None:
    """The index of an MP4 or MOV file from its sample table; None where that cannot be trusted.

    FFmpeg works edit lists into what it demuxes. The table is used if what FFmpeg made of it is
    the same up to one constant: as many samples, and the first packets and the last alike.
    Leaves the demuxer a few packets into the file.
    """
    entries: Any = getattr(stream, "index_entries", ())
    if "mp4" not in container.format.name or not len(entries):
        return None
    table = sample_table(path, stream.id)
    if table is None or len(table.decode) != len(entries) or not table.keys:
        return None
    last = entries[len(entries) - 1]
    if last.is_discard or last.timestamp - entries[0].timestamp != table.decode[-1]:
        return None
    shift: int | None = None
    keys = set(table.keys)
    packets = (packet for packet in container.demux(stream) if packet.size)
    for number, packet in enumerate(islice(packets, min(_CHECKED, len(entries)))):
        if packet.pts is None or packet.is_discard or packet.is_keyframe != (number in keys):
            return None
        if shift is None:
            shift = packet.pts - int(table.present[number])
        elif packet.pts != table.present[number] + shift:
            return None
    if shift is None:
        return None
    times = table.present + shift
    shown = np.argsort(times, kind="stable")
    shown = shown[times[shown] >= times[table.keys[0]]]
    unknown = np.broadcast_to(np.int64(-1), (len(times), 2))
    duration = table.duration
    if (duration == duration[0]).all():
        duration = np.broadcast_to(duration[0], len(times))
    return PacketIndex(times, duration, unknown, table.keys, shown, True, False)


def list_packets(container: InputContainer, stream: VideoStream) -> PacketIndex:
    """Read all packets of a stream, without decoding, and put them in order."""
    pts = array("q")
    rows = array("q")  # duration, position and size of each packet
    keys: list[int] = []
    never: list[int] = []
    faults: set[int] = set()
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
                if packet.is_corrupt:
                    faults.add(len(pts))
                # VP8 keeps pictures that are only referred to in packets of their own
                # (RFC 6386, 9.1: the show_frame bit).
                if packet.is_discard or (hides and not memoryview(packet)[0] & 0x10):
                    never.append(len(pts))
                position = packet.pos
                pts.append(NEVER if packet.pts is None else packet.pts)
                position = -1 if position is None else position
                rows.extend((packet.duration or 0, position, packet.size))
            break
        except av.FFmpegError:
            continue
    times = np.frombuffer(pts, np.int64)
    columns = np.frombuffer(rows, np.int64).reshape(-1, 3)
    places = _avi_times(container, stream, times, columns[:, 1])
    missing = np.flatnonzero(times == NEVER)
    # A recording may begin in the middle of something: packets without a time then come first.
    leading = bool(len(missing)) and missing[-1] + 1 == len(missing) < len(times)
    timed = leading or len(missing) <= len(times) // 100
    if not timed:
        times = np.arange(len(times), dtype=np.int64)
    visible = np.ones(len(times), dtype=bool)
    visible[never] = False
    keys = keys or [0]
    if timed and len(times):
        visible &= times != NEVER
        visible &= times >= times[keys[0]]
    shown = np.flatnonzero(visible)
    shown = shown[np.argsort(times[shown], kind="stable")]
    return PacketIndex(
        times,
        columns[:, 0],
        columns[:, 1:],
        keys,
        shown,
        timed,
        counted=not timed,
        faults=faults,
        places=places,
        origin=stream.index_entries[0].timestamp if places is not None else None,
    )


def _avi_times(
    container: InputContainer, stream: VideoStream, times: np.ndarray, places: np.ndarray
) -> dict[int, int] | None:
    """Where an AVI file lost packets, take the others' times from its index, by byte position.

    Changes ``times`` and returns the packet numbers by position; None where there is no need.
    """
    entries = getattr(stream, "index_entries", ())
    if container.format.name != "avi" or len(entries) <= len(times):
        return None
    known = {entry.pos: entry.timestamp for entry in entries}
    header = 8  # the index points to the chunk's header, the packet to what follows
    begins = (places - header).tolist()
    if any(begin not in known for begin in begins):
        return None
    times[:] = [known[begin] for begin in begins]
    return {begin + header: number for number, begin in enumerate(begins)}


def read_only(container: InputContainer, wanted: VideoStream | None) -> None:
    """Tell the demuxer to skip all other streams (None: to skip none), where PyAV can."""
    levels: Any = getattr(av.stream, "Discard", None)  # came with a later PyAV than ours at least
    for stream in container.streams if levels else ():
        other = wanted is not None and stream.index != wanted.index
        stream.discard = levels.all if other else levels.default


def find_holes(container: InputContainer, index: PacketIndex, seconds: np.ndarray) -> np.ndarray:
    """Stretches where a demuxer dropped damaged data: (m, 2) float64 seconds.

    A long time between two frames is a hole only if bytes lie between them in the file that
    belong to no packet; otherwise the frame was meant to stand. Marks ``index.lost_before``.
    """
    steps = np.diff(seconds)
    usual = float(np.median(steps)) if len(steps) else 0.0
    nowhere = np.zeros((0, 2))
    if (index.position[:, 0] < 0).any():
        return nowhere
    slack = max(256, int(np.median(index.position[:, 1])) // 2)
    suspects = []
    furthest = np.maximum.accumulate(index.position.sum(axis=1))
    for at in np.flatnonzero(steps > 1.5 * usual):
        # Pictures are stored out of order: the loss may be before any packet between the two.
        near, far = sorted((int(index.shown[at]), int(index.shown[at + 1])))
        for number in range(near + 1, far + 1):
            if index.position[number, 0] - furthest[number - 1] > slack:
                suspects.append((at, number))
    if not suspects:
        return nowhere
    others = _all_places(container)
    holes = []
    for at, number in suspects:
        low, high = int(furthest[number - 1]), int(index.position[number, 0])
        inside = [low, *others[(others > low) & (others < high)].tolist(), high]
        if max(np.diff(inside)[::2]) > slack:
            index.lost_before.add(number)
            index.faults.add(number - 1)  # the damage may begin within it
            holes.append((float(seconds[at] + usual), float(seconds[at + 1])))
    return np.unique(np.asarray(holes, dtype=np.float64).reshape(-1, 2), axis=0)


def _all_places(container: InputContainer) -> np.ndarray:
    """Where packets of any stream begin and end in the file: begin, end, begin, end, …"""
    places: list[tuple[int, int]] = []
    read_only(container, None)
    try:
        container.seek(0)
        for packet in container.demux():
            if packet.size and packet.pos is not None:
                places.append((packet.pos, packet.pos + packet.size))
    except av.FFmpegError:
        pass  # what was found so far still explains the bytes that it covers
    places.sort()
    return np.asarray(places, dtype=np.int64).reshape(-1)
