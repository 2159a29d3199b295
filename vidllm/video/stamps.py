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
_STRAYS = 20  # one packet in so many may have a wrong time: with more the times are in no order
_WINDOW = 8  # packets behind a join that all are earlier than what came before it
_CLOCK = 1 << 33  # ticks at which the times of MPEG-2 streams begin anew (ISO/IEC 13818-1, 2.4.3.7)
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
        unbroken: those packets at which the pictures go on although the times do not.
    """

    packets: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()
    unbroken: frozenset[int] = frozenset()

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
            if begin in self.unbroken:
                continue
            at = int(np.searchsorted(keys, begin))
            if at < len(keys) and keys[at] < end:
                found[begin:end] = stamps[begin:end] >= stamps[keys[at]]
            else:
                found[begin:end] = False
        return found


def unwrapped(stamps: np.ndarray, decode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p,) presentation and decoding times of a clock of 33 bits: no step is over half of it."""
    known = np.flatnonzero(decode != _NEVER)
    steps = np.diff(decode[known])
    if not (np.abs(steps) > _CLOCK // 2).any():
        return stamps, decode
    turns = np.zeros(len(decode), dtype=np.int64)
    turns[known[1:]] = (steps < -_CLOCK // 2).astype(int) - (steps > _CLOCK // 2)
    moved = np.cumsum(turns) * _CLOCK
    return (
        np.where(stamps == _NEVER, stamps, stamps + moved),
        np.where(decode == _NEVER, decode, decode + moved),
    )


def without_strays(stamps: np.ndarray, decode: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(p,) presentation and decoding times without single ones that are out of order, and how many.

    Decoding times do not fall. One of them that does, or after which the others go on as if it had
    not been, is wrong: the packet belongs in the middle between its neighbours.
    """
    before, at, after = decode[:-2], decode[1:-1], decode[2:]
    known = (before != _NEVER) & (at != _NEVER) & (after != _NEVER) & (stamps[1:-1] != _NEVER)
    stray = 1 + np.flatnonzero(known & (before <= after) & ((at < before) | (at > after)))
    if not 0 < len(stray) <= 1 + len(decode) // _STRAYS:
        return stamps, decode, 0
    stamps, moved = np.array(stamps), np.array(decode)
    moved[stray] = (decode[stray - 1] + decode[stray + 1]) // 2
    stamps[stray] += moved[stray] - decode[stray]
    return stamps, moved, len(stray)


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
    begins, is_key, usual = [0], set(keys), usual_step(np.sort(order))
    streamed, unbroken = np.isfinite(leap), set[int]()
    for at in falls:
        place = int(np.searchsorted(known, at))
        first = int(np.searchsorted(known, begins[-1]))
        after, before = order[place : place + _WINDOW], order[max(first, place - _WINDOW) : place]
        enough = len(after) == _WINDOW or at in is_key
        rising = enough and _rises(before) and _rises(after) and len(after) > 0 and len(before) > 0
        falls_back = rising and (
            at in leaps
            or after.max() < order[first:place].max()
            or (streamed and order[place - 1] - order[place] > usual)
        )
        if not falls_back and at in is_key:
            falls_back = _key_falls(stamps[begins[-1] : at], stamps[at : at + _WINDOW])
        if falls_back:
            begins.append(at)
            if torn is not None and order[place] < order[place - 1] and not torn(at):
                unbroken.add(at)
    packets = tuple(begins[1:])
    visible = shown & Joins(packets, unbroken=frozenset(unbroken)).visible(stamps, keys)
    shifts: list[int] = []
    end = 0
    for begin, until in zip(begins, [*packets, len(stamps)], strict=True):
        part = begin + np.flatnonzero(visible[begin:until])
        shift = 0
        if len(part):
            rows = np.sort(stamps[part])
            if begin in unbroken:
                place = int(np.searchsorted(known, begin))
                shift = int(order[place - 1] - order[place] + usual) + shifts[-1]
            else:
                shift = end - int(rows[0]) if begin else 0
            last = int(duration[part[np.argmax(stamps[part])]])
            # What stands until a leap is not meant to stand so long.
            last = last if 0 < last <= leap else int(usual_step(rows))
            end = int(rows[-1]) + shift + max(last, 1)
        if max(abs(shift), abs(end)) > _FURTHEST:
            return Joins()
        shifts.append(shift)
    return Joins(packets, tuple(shifts[1:]), frozenset(unbroken))


def _rises(times: np.ndarray) -> bool:
    return bool((np.diff(times) >= 0).all())


def _key_falls(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether all packets from a key frame on are shown earlier than what came before it."""
    before, after = before[before != _NEVER], after[after != _NEVER]
    return len(before) > 0 and len(after) == _WINDOW and after.max() < before.max()
