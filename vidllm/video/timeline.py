"""When each frame of a file is shown, how long the file is, and what of it is missing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vidllm.errors import InputError

from .integrity import cut_off
from .stamps import usual_step

if TYPE_CHECKING:
    from av.container.input import InputContainer
    from av.video.stream import VideoStream

    from .packets import PacketIndex
    from .recordings import Recording

# A header's length is believed up to so many times what the bytes that are there lead to expect.
_BELIEVED = 100
_FURTHEST = 1 << 62  # ticks from the first frame to the last
_SLOWEST, _FASTEST = 1 / 3600, 1e5  # frames a second that a header may state
_WAITING = 16  # pictures at most that stand in a file before one that is shown earlier


@dataclass(frozen=True)
class Timeline:
    """What a file holds, known before any picture is decoded.

    Attributes:
        seconds: (n,) float64, when each readable frame is first shown, the first at 0.0; not
            falling, equal where the file gives frames the same time.
        duration: seconds; for a file that was cut off, the length that its header promises.
        end: seconds at which the last readable frame stops.
        size: (height, width) of the pictures with square pixels, before rotation.
        holes: (m, 2) float64, stretches of seconds whose data was lost although frames follow.
        cut: True when the file ends before its header says.
        notes: one line for each thing that is wrong with the file.
    """

    seconds: np.ndarray
    duration: float
    end: float
    size: tuple[int, int]
    holes: np.ndarray
    cut: bool = False
    notes: tuple[str, ...] = ()


def timeline_of(
    recording: Recording,
    container: InputContainer,
    stream: VideoStream,
    index: PacketIndex,
    size: tuple[int, int],
    said: list[str],
) -> Timeline:
    """The timeline that a packet index gives. May read the file again; marks lost packets.

    Args:
        size: (height, width) of the pictures, as in `Timeline`. said: notes on the stream.

    Raises:
        InputError: its time stamps are none.
    """
    base = stream.time_base or Fraction(1, 1_000_000)
    rate = _rate(stream)
    notes = [*said]
    ticks = index.pts[index.shown]
    if index.timed and (len(ticks) == 1 or ticks[0] != ticks[-1]):
        origin = int(ticks[0]) if index.origin is None else index.origin
        if int(ticks[-1]) - min(origin, int(ticks[0])) > _FURTHEST:
            raise InputError(f"{recording.name} has time stamps that are too far apart to be times")
        seconds = (ticks - origin) * (base.numerator / base.denominator)
        first = float(origin * base)
    else:
        seconds, first = np.arange(len(index.shown)) / rate, 0.0
        what = "has one time for all frames" if index.timed else "has no timestamps"
        notes.append(f"the file {what}: {rate:g} frames a second assumed")
    usual = usual_step(seconds)
    last = float(index.duration[index.shown[-1]] * base) if index.timed else 0.0
    end = float(seconds[-1]) + (last if last > 0 else usual or 1 / rate)
    if index.keys[0]:
        notes.append(
            f"the file does not begin with a key frame: {index.keys[0]} frames are left out"
        )
    notes += _join_notes(index, seconds)
    duration, cut, doubt = _promised(recording, container, stream, first, end)
    if doubt:
        notes.append(f"its header promises {doubt:.1f} seconds, far more than the file holds")
    if cut:
        of = f" of {duration:.1f}" if duration - end > 0.05 else ""
        notes.append(f"the file is cut off after {end:.1f}{of} seconds")
    holes = _holes(recording, container, index, seconds, usual, cut)
    if len(holes):
        where = ", ".join(f"{begin:.1f}" for begin, _ in holes[:5])
        more = f" and {len(holes) - 5} more places" if len(holes) > 5 else ""
        notes.append(f"data is missing in the file from second {where}{more} on")
    return Timeline(seconds, duration, end, size, holes, cut, tuple(notes))


def _rate(stream: VideoStream) -> float:
    """Frames a second by the header, for files without times; 25 where that is no rate."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if not stream.average_rate and stream.time_base and rate * stream.time_base == 1:
        return 25.0  # the clock of the file, which is guessed where there is nothing to guess from
    return rate if _SLOWEST <= rate <= _FASTEST else 25.0


def _join_notes(index: PacketIndex, seconds: np.ndarray) -> list[str]:
    """What is to be said of recordings that were joined, and of streams that come late."""
    notes = []
    if index.joins:
        # Edits may take from a file what lies further back: its times go on all the same.
        anew = [at for at in index.joins if index.pts[at] != index.stamp(at)]
        begins = [int(np.argmax(index.shown >= join)) for join in anew]
        notes += [join_note(seconds[begins].tolist())] if begins else []
    if index.unkeyed:
        notes.append(
            f"{index.unkeyed} frames behind a join have no key frame before them: they are left out"
        )
    if index.strays:
        of = f"the times of {index.strays} of the frames"
        notes.append(f"{of} are out of order: shown between their neighbours")
    if index.unnamed:
        notes.append("the file holds a stream that its header does not name: it is not read")
    return notes


def join_note(begins: list[float]) -> str:
    """What is said of recordings that were joined.

    Args:
        begins: seconds at which each but the first one begins.
    """
    where = ", ".join(f"{begin:.1f}" for begin in begins[:5])
    more = f" and {len(begins) - 5} more places" if len(begins) > 5 else ""
    return f"time starts anew in the file at second {where}{more}: taken to go on there"


def _promised(
    recording: Recording, container: InputContainer, stream: VideoStream, first: float, end: float
) -> tuple[float, bool, float]:
    """The length in seconds, whether the file was cut off, and a length that is not believed.

    What a header says is believed only where the file shows that it is not whole; else the
    frames themselves say how long the video is.
    """
    spoken = _spoken(container, stream)
    spoken -= first if spoken else 0.0
    cut, _, stated = cut_off(recording)
    if not cut and spoken <= end + 1:
        return end, False, 0.0
    promised = [float((stream.duration or 0) * (stream.time_base or 0))]
    if stream.average_rate:
        promised.append(stream.frames / float(stream.average_rate))
    if not any(promised):
        promised.append(spoken or (container.duration or 0) / 1_000_000 - first)
    length = max(end, *promised)
    if length <= _BELIEVED * end * max(1.0, stated / recording.size):
        return length, True, 0.0
    return end, cut, length


def _spoken(container: InputContainer, stream: VideoStream) -> float:
    """When the video ends by the header of a file without a table of frames; 0.0 if unsaid."""
    name = container.format.name
    if len(container.streams) == 1 and (name == "flv" or "matroska" in name):
        return (container.duration or 0) / 1_000_000
    clock = stream.metadata.get("DURATION", "") if "matroska" in name else ""
    with contextlib.suppress(ValueError):
        hours, minutes, seconds = (float(part) for part in clock.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    return 0.0


def _holes(
    recording: Recording,
    container: InputContainer,
    index: PacketIndex,
    seconds: np.ndarray,
    usual: float,
    cut: bool,
) -> np.ndarray:
    """(m, 2) float64 seconds whose frames are lost although later frames are there."""
    from .packets import find_holes  # after the file is open: it needs PyAV

    found: list[np.ndarray] = []
    if not index.timed:
        return np.zeros((0, 2))
    # The sample table of an MP4 file lists every frame; other demuxers drop what is damaged.
    if "mp4" not in container.format.name:
        found.append(find_holes(recording, container, index, seconds))
    if seconds[0] > 0:
        found.append(np.asarray([[0.0, seconds[0]]]))
    if cut and len(seconds) > 1:
        # The last frames that are there may be shown after frames that are not.
        late = index.shown[1:] >= len(index.pts) - _WAITING
        steps = np.diff(seconds)
        at = np.flatnonzero(late & (steps > 1.5 * usual))
        found.append(np.stack([seconds[at] + usual, seconds[at + 1]], axis=1))
    holes = np.concatenate([np.zeros((0, 2)), *found])
    return np.asarray(np.unique(holes, axis=0), dtype=np.float64)


def missing_notes(
    line: Timeline, asked: int, lost: np.ndarray, unread: np.ndarray
) -> tuple[str, ...]:
    """What could not be read, one line each.

    Args:
        asked: frames wanted. lost: seconds of those that the file lacks; unread: of those that
            could not be decoded.
    """
    after_cut = int((lost >= line.end).sum()) if line.cut else 0
    damaged = np.concatenate([lost[lost < line.end] if line.cut else lost, unread])
    notes = []
    if after_cut:
        notes.append(f"{after_cut} of {asked} frames could not be read: they lie after the cut")
    if len(damaged):
        low, high = float(damaged.min()), float(damaged.max())
        where = f"at {low:.3f} s" if low == high else f"between {low:.3f} s and {high:.3f} s"
        notes.append(
            f"{len(damaged)} of {asked} frames could not be read: the file is damaged {where}"
        )
    return tuple(notes)
