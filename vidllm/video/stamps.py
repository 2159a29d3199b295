"""Time stamps: their usual step, and where they start anew inside a file.

Recordings that were joined byte by byte (transport and program streams, chained Ogg files,
fragments) begin their stamps again at each join; the true time goes on there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_NEVER = np.iinfo(np.int64).min  # the time of a packet that has none
_WINDOW = 8  # packets behind a join that all are earlier than what came before it
_FURTHEST = 1 << 61  # ticks: beyond that sums would not fit
_MOST = 1000  # steps back in a file: with more its times are in no order, not started anew


def usual_step(times: np.ndarray) -> float:
    """From one of (n,) ascending times to the next: the middle step, or else the mean one."""
    if len(times) < 2:
        return 0.0
    return float(np.median(np.diff(times))) or float(times[-1] - times[0]) / (len(times) - 1)


@dataclass(frozen=True)
class Joins:
    """Where time starts anew, and how far the times of each part are to be moved.

    Attributes:
        packets: numbers of the packets that begin a part, the first part's left out.
        shifts: ticks to add to the times of each of these parts.
    """

    packets: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()

    def times(self, stamps: np.ndarray) -> np.ndarray:
        """(p,) int64 stamps of packets as times that go on at every join."""
        if not self.packets:
            return stamps
        moved = np.array(stamps)
        parts = pairwise([*self.packets, len(stamps)])
        for shift, (begin, end) in zip(self.shifts, parts, strict=True):
            part = moved[begin:end]
            part[part != _NEVER] += shift
        return moved

    def visible(self, stamps: np.ndarray, keys: list[int]) -> np.ndarray:
        """(p,) bool: what is not shown before the first key frame of its part."""
        found = np.ones(len(stamps), dtype=bool)
        edges = [0, *self.packets, len(stamps)]
        for begin, end in pairwise(edges):
            at = int(np.searchsorted(keys, begin))
            if at < len(keys) and keys[at] < end:
                found[begin:end] = stamps[begin:end] >= stamps[keys[at]]
            else:
                found[begin:end] = False
        return found


def find_joins(
    stamps: np.ndarray,
    decode: np.ndarray,
    duration: np.ndarray,
    keys: list[int],
    shown: np.ndarray,
    leap: float = np.inf,
    torn: Callable[[int], bool] | None = None,
) -> Joins:
    """Find where time starts anew.

    That is where the decoding time falls and rises on from there, or, where a file has none, where
    a key frame and all that follows are earlier: a packet with one wrong time, or times in no
    order, start nothing anew. In a stream that was made to be cut and joined a leap ahead is a
    join as well.

    Args:
        stamps, decode, duration: (p,) int64 ticks of all packets in file order.
        keys: numbers of key frames. shown: (p,) bool, what is ever shown.
        leap: ticks from one decoding time to a key frame's that no recording holds inside.
        torn: whether the format's own counters do not go on at a packet, where it has some: only
            there a leap is a join.
    """
    if not len(stamps):
        return Joins()
    known = np.flatnonzero(decode != _NEVER)
    order = decode[known]
    falls = (known[1:][np.diff(order) < 0]).tolist()
    marks = np.asarray(keys, dtype=np.int64)
    marks = marks[stamps[marks] != _NEVER]
    leaps = set(known[1:][np.diff(order) > leap].tolist()) & set(keys)
    if torn is not None:
        leaps = {at for at in leaps if torn(at)}
    falls = sorted({*falls, *leaps, *marks[1:][np.diff(stamps[marks]) < 0].tolist()})
    if not falls or len(falls) > _MOST:
        return Joins()
    begins, is_key = [0], set(keys)
    for at in falls:
        place = int(np.searchsorted(known, at))
        first = int(np.searchsorted(known, begins[-1]))
        after, before = order[place : place + _WINDOW], order[max(first, place - _WINDOW) : place]
        enough = len(after) == _WINDOW or at in is_key
        rising = enough and _rises(before) and _rises(after) and len(after) > 0 and len(before) > 0
        falls_back = rising and (at in leaps or after.max() < order[first:place].max())
        if not falls_back and at in is_key:
            falls_back = _key_falls(stamps[begins[-1] : at], stamps[at : at + _WINDOW])
        if falls_back:
            begins.append(at)
    packets = tuple(begins[1:])
    visible = shown & Joins(packets).visible(stamps, keys)
    shifts: list[int] = []
    end = 0
    for begin, until in zip(begins, [*packets, len(stamps)], strict=True):
        part = begin + np.flatnonzero(visible[begin:until])
        shift = 0
        if len(part):
            rows = np.sort(stamps[part])
            shift = end - int(rows[0]) if begin else 0
            last = int(duration[part[np.argmax(stamps[part])]])
            # What stands until a leap is not meant to stand so long.
            last = last if 0 < last <= leap else int(usual_step(rows))
            end = int(rows[-1]) + shift + max(last, 1)
        if max(abs(shift), abs(end)) > _FURTHEST:
            return Joins()
        shifts.append(shift)
    return Joins(packets, tuple(shifts[1:]))


def _rises(times: np.ndarray) -> bool:
    return bool((np.diff(times) >= 0).all())


def _key_falls(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether all packets from a key frame on are shown earlier than what came before it."""
    before, after = before[before != _NEVER], after[after != _NEVER]
    return len(before) > 0 and len(after) == _WINDOW and after.max() < before.max()
