"""What a video file's packets say without decoding: order, key frames, gaps, and a cut-off end."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import av
import numpy as np
from av.container.input import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .integrity import counters_go_on, in_step, index_for_pictures
from .recordings import Recording
from .sample_table import sample_table
from .stamps import Joins, find_joins, unwrapped, usual_step, without_strays

_NEAR = 32  # key frames that are gone back over one by one
_CHECKED = 32  # packets that must agree before a sample table is believed
_SUSPECTS = 10_000  # places at most that are looked at for lost data
# Formats without a time line of their own, in which players take a leap of so many seconds for the
# begin of another recording.
_STREAMED, _LEAP = {"mpegts", "mpeg"}, 10
NEVER = np.iinfo(np.int64).min  # the time of a packet that has none


@dataclass
class PacketIndex:
    """Every packet of a video stream, in file order (packet numbers count from 0).

    A packet is known by its number, never by its time: several may share one.

    Attributes:
        pts: (p,) int64 presentation times in the stream's time base, going on where the file's
            own start anew.
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
        stamps: (p,) int64 presentation times as the demuxer gives them; None: ``pts``.
        joins: packet numbers at which the file's own time starts anew.
        unnamed: packets of streams that the file's header does not name.
        strays: packets whose times were out of order and were put between their neighbours'.
        unkeyed: packets behind a join that are not shown, as no key frame comes before them.
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
    stamps: np.ndarray | None = None
    joins: tuple[int, ...] = ()
    unnamed: int = 0
    strays: int = 0
    unkeyed: int = 0

    def __post_init__(self) -> None:
        self._stamps = self.pts if self.stamps is None else self.stamps
        order = np.argsort(self._stamps, kind="stable")
        # Hours have a million packets: no array twice.
        self._order = self.shown if np.array_equal(order, self.shown) else order

    def stamp(self, number: int) -> int:
        """The time of a packet as the demuxer gives it, `NEVER` without one."""
        return int(self._stamps[number])

    def number(self, packet: Packet[VideoStream], following: int | None) -> int:
        """Which packet the demuxer gave; -1 where that cannot be told.

        Args:
            following: the number that comes next in the file, None if unknown.
        """
        place = -1 if packet.pos is None else packet.pos
        if self.places is not None:
            number = self.places.get(place, -1)
            return following if number < 0 and following is not None else number
        stamp = NEVER if packet.pts is None else packet.pts
        if following is not None and self._is(following, stamp, place):
            return following
        number = -1 if stamp == NEVER else self._find(stamp, place, following)
        return following if number < 0 and following is not None else number

    def _is(self, number: int, stamp: int, place: int) -> bool:
        if number >= len(self._stamps) or self._stamps[number] != stamp:
            return False
        known = int(self.position[number, 0])
        return known < 0 or known == place

    def _find(self, stamp: int, place: int, following: int | None) -> int:
        first = int(np.searchsorted(self._stamps, stamp, sorter=self._order))
        after = int(np.searchsorted(self._stamps, stamp, side="right", sorter=self._order))
        alike = self._order[first:after]
        if len(alike) > 1:  # the place tells them apart, if it is known
            same = alike[self.position[alike, 0] == place] if place >= 0 else alike
            alike = same if len(same) else alike
            if len(alike) > 1 and following is not None:
                alike = alike[alike >= following][:1]
        return int(alike[0]) if len(alike) == 1 else -1

    def start_of(self, packet: int) -> int:
        """The packet to start decoding at, to get the picture of ``packet``."""
        at = bisect_right(self.keys, packet) - 1
        tries = 0
        while at >= 0 and self.pts[self.keys[at]] > self.pts[packet]:
            at -= 1  # a leading frame of an open GOP: it also needs the GOP before
            tries += 1
            if tries == _NEAR:  # times in no order at all: no step by step through the file
                early = np.flatnonzero(self.pts[self.keys[: at + 1]] <= self.pts[packet])
                at = int(early[-1]) if len(early) else -1
        return self.keys[at] if at >= 0 else 0

    def key_before(self, packet: int) -> int:
        """The key frame before ``packet``, or 0."""
        at = bisect_right(self.keys, packet - 1) - 1
        return self.keys[at] if at >= 0 else 0

    def sound(self, packet: int, faults: Collection[int] = ()) -> bool:
        """Whether no fault and no gap lies between the picture and the key frame it needs."""
        start = self.start_of(packet)
        return not (
            any(start <= fault <= packet for fault in self.faults)
            or any(start <= fault <= packet for fault in faults)
            or any(start < lost <= packet for lost in self.lost_before)
        )


def index_from_table(
    recording: Recording, container: InputContainer, stream: VideoStream
) -> PacketIndex | None:
    """The index of an MP4 or MOV file from its sample table; None where that cannot be trusted.

    FFmpeg works edit lists into what it demuxes. The table is used if what FFmpeg made of it is
    the same up to one constant: as many samples, and the first packets and the last alike.
    Leaves the demuxer a few packets into the file.
    """
    entries: Any = getattr(stream, "index_entries", ())
    if "mp4" not in container.format.name or not len(entries):
        return None
    table = sample_table(recording, stream.id, len(entries))
    if table is None or not table.keys:
        return None
    last = entries[len(entries) - 1]
    if last.is_discard or last.timestamp - entries[0].timestamp != table.decode[-1]:
        return None
    shift: int | None = None
    keys = set(table.keys)
    packets = (packet for packet in container.demux(stream) if packet.size)
    try:
        for number, packet in enumerate(islice(packets, min(_CHECKED, len(entries)))):
            if packet.pts is None or packet.is_discard or packet.is_keyframe != (number in keys):
                return None
            if shift is None:
                shift = packet.pts - int(table.present[number])
            elif packet.pts != table.present[number] + shift:
                return None
    except av.FFmpegError:
        return None  # what can be read all the same is found packet by packet
    if shift is None:
        return None
    times = table.present + shift
    shown = np.argsort(times, kind="stable")
    if not (np.diff(times[shown]) > 0).all():
        return None  # shared times: packets are then told apart by their places in the file
    shown = shown[times[shown] >= times[table.keys[0]]]
    unknown = np.broadcast_to(np.int64(-1), (len(times), 2))
    duration = table.duration
    if (duration == duration[0]).all():
        duration = np.broadcast_to(duration[0], len(times))
    return PacketIndex(times, duration, unknown, table.keys, shown, True, False)


def list_packets(
    recording: Recording, container: InputContainer, stream: VideoStream
) -> PacketIndex:
    """Read all packets of a stream, without decoding, and put them in order."""
    pts = array("q")
    rows = array("q")  # duration, position, size and decoding time of each packet
    keys: list[int] = []
    never: list[int] = []
    faults: set[int] = set()
    codec = stream.codec_context.name
    unnamed, known = 0, -1
    indexes = index_for_pictures(recording) if container.format.name == "avi" else []
    while len(pts) + unnamed > known:  # after an unreadable stretch go on, as long as more comes
        known = len(pts) + unnamed
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if indexes and any(a < (packet.pos or 0) < b for a, b in indexes):
                    continue
                if packet.is_keyframe:
                    keys.append(len(pts))
                if packet.is_corrupt:
                    faults.add(len(pts))
                if packet.is_discard or _is_hidden(codec, packet):
                    never.append(len(pts))
                position = -1 if packet.pos is None else packet.pos
                decoded = NEVER if packet.dts is None else packet.dts
                pts.append(NEVER if packet.pts is None else packet.pts)
                rows.extend((packet.duration or 0, position, packet.size, decoded))
            break
        except av.FFmpegError:
            continue
        except IndexError:  # PyAV: a packet of a stream that came after the file was opened
            unnamed += 1
    times = np.frombuffer(pts, np.int64)
    columns = np.frombuffer(rows, np.int64).reshape(-1, 4)
    places = _avi_times(container, stream, times, columns[:, 1])
    missing = np.flatnonzero(times == NEVER)
    # A recording may begin in the middle of something: packets without a time then come first.
    leading = bool(len(missing)) and missing[-1] + 1 == len(missing) < len(times)
    timed = leading or len(missing) <= len(times) // 100
    stamps = times
    if not timed:
        stamps = times = np.arange(len(times), dtype=np.int64)
    visible = np.ones(len(times), dtype=bool)
    visible[never] = False
    keys = keys or [0]
    if timed and len(times):
        visible &= times != NEVER
    joins, strays, unkeyed = Joins(), 0, 0
    if timed and len(times) and container.format.name != "avi":
        base, decode = stream.time_base, columns[:, 3]
        leap = np.inf
        torn: Callable[[int], bool] | None = None
        if container.format.name in _STREAMED and base:
            leap = float(_LEAP / base)
            times, decode, strays = without_strays(*unwrapped(times, decode))
        if container.format.name == "mpegts":
            at = columns[:, 1]

            def torn(packet: int) -> bool:
                return not counters_go_on(recording, int(at[packet - 1]), int(at[packet]))

        if container.format.name == "mpeg":
            times = _without_leaps(times, decode, leap)
        joins = find_joins(times, decode, columns[:, 0], keys, visible, leap, torn)
        # Counters of a transport stream jump at a join: its last packets are not damaged by that.
        faults -= {number - back for number in joins.packets for back in (1, 2)}
    if timed and len(times):
        headless = visible & ~joins.visible(times, keys)
        visible &= ~headless
        unkeyed = int(headless[joins.packets[0] :].sum()) if joins.packets else 0
    times = joins.times(times)
    shown = np.flatnonzero(visible)
    shown = shown[np.argsort(times[shown], kind="stable")]
    return PacketIndex(
        times,
        columns[:, 0],
        columns[:, 1:3],
        keys,
        shown,
        timed,
        counted=not timed,
        faults=faults,
        places=places,
        origin=stream.index_entries[0].timestamp if places is not None else None,
        stamps=None if stamps is times else stamps,
        joins=joins.packets,
        unnamed=unnamed,
        strays=strays,
        unkeyed=unkeyed,
    )


def _without_leaps(times: np.ndarray, decoded: np.ndarray, leap: float) -> np.ndarray:
    """(p,) times, where they are a leap later than decoding: as late as others at most are.

    A demuxer may give the last picture before a join the time of the first one behind it.
    """
    known = (times != NEVER) & (decoded != NEVER)
    waits = np.where(known, times - decoded, 0)
    stray = waits > leap
    return np.where(stray, decoded + waits[~stray].max(initial=0), times) if stray.any() else times


def _is_hidden(codec: str, packet: Packet[VideoStream]) -> bool:
    """Whether a packet holds no picture that is shown."""
    if codec == "vp8":  # pictures that are only referred to (RFC 6386, 9.1: the show_frame bit)
        return not memoryview(packet)[0] & 0x10
    # The headers of a recording that was joined on (Theora specification, 6.1).
    return codec == "theora" and bool(memoryview(packet)[0] & 0x80)


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


def find_holes(
    recording: Recording, container: InputContainer, index: PacketIndex, seconds: np.ndarray
) -> np.ndarray:
    """Stretches where a demuxer dropped damaged data: (m, 2) float64 seconds.

    A long time between two frames is a hole only if bytes lie between them in the file that
    belong to no packet; otherwise the frame was meant to stand. Marks ``index.lost_before``.
    """
    steps, usual = np.diff(seconds), usual_step(seconds)
    nowhere = np.zeros((0, 2))
    if (index.position[:, 0] < 0).any():
        return nowhere
    slack = max(256, int(np.median(index.position[:, 1])) // 2)
    suspects: list[tuple[int, int, int]] = []
    furthest = np.maximum.accumulate(index.position.sum(axis=1))
    jumps = 1 + np.flatnonzero(index.position[1:, 0] - furthest[:-1] > slack)
    padded = container.format.name == "asf"  # in packets of one size, filled up with nothing
    if padded and len(jumps):
        apart = np.diff(index.position[:, 0])
        jumps = jumps[apart[jumps - 1] != apart[apart > 0].min()]
    for at in np.flatnonzero(steps > 1.5 * usual).tolist() if len(jumps) else ():
        # Pictures are stored out of order: the loss may be before any packet between the two.
        near, far = sorted((int(index.shown[at]), int(index.shown[at + 1])))
        first, after = np.searchsorted(jumps, (near + 1, far + 1))
        suspects += [(at, int(number), int(number)) for number in jumps[first:after]]
        if padded and after < len(jumps):
            # What follows a damage is told to stand where the damage begins.
            ahead = int(jumps[after])
            if index.position[ahead - 1, 0] == index.position[far, 0]:
                suspects.append((at, far, ahead))
        if len(suspects) > _SUSPECTS:
            break
    if not suspects:
        return nowhere
    others = _all_places(container)
    counted = container.format.name == "mpegts"  # its packets are numbered: what is lost shows
    holes = []
    for at, number, jump in suspects:
        low, high = int(furthest[jump - 1]), int(index.position[jump, 0])
        sure = counted and index.faults.isdisjoint((number - 1, number))
        if sure and in_step(recording, low, high):
            continue  # tables and stuffing: they belong to no packet either
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
    except (av.FFmpegError, IndexError):
        pass  # what was found so far still explains the bytes that it covers
    places.sort()
    return np.asarray(places, dtype=np.int64).reshape(-1)
