"""Time stamps: their usual step, and where they start anew inside a file.

Recordings that were joined byte by byte (transport and program streams, chained Ogg files,
fragments) begin their stamps again at each join; the true time goes on there.
"""

from __future__ import annotations

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
) -> Joins:
    """Find where time starts anew.

    That is where the decoding time falls and rises on from there: a packet with one wrong time,
    or times in no order, start nothing anew.

    Args:
        stamps, decode, duration: (p,) int64 ticks of all packets in file order.
        keys: numbers of key frames. shown: (p,) bool, what is ever shown.
    """
    known = np.flatnonzero(decode != _NEVER)
    order = decode[known]
    falls = np.flatnonzero(np.diff(order) < 0) + 1
    if not len(falls) or len(falls) > _MOST:
        return Joins()
    begins, first, is_key = [0], 0, set(keys)
    for at in falls.tolist():
        after, before = order[at : at + _WINDOW], order[max(first, at - _WINDOW) : at]
        rising = (np.diff(after) >= 0).all() and (np.diff(before) >= 0).all()
        enough = len(after) == _WINDOW or int(known[at]) in is_key
        if rising and enough and after.max() < order[first:at].max():
            begins.append(int(known[at]))
            first = at
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
            last = int(duration[part[np.argmax(stamps[part])]]) or int(usual_step(rows))
            end = int(rows[-1]) + shift + max(last, 1)
        if max(abs(shift), abs(end)) > _FURTHEST:
            return Joins()
        shifts.append(shift)
    return Joins(packets, tuple(shifts[1:]))
