"""Reading video: ``load_video`` samples frames of a file with their true seconds.

Frames are chosen on the container's own timestamps before anything is decoded, so that a long
file costs what its sampled frames cost.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidllm.budget import Limits
from vidllm.errors import InputError
from vidllm.limits import check, memory_answered
from vidllm.listening import Listener
from vidllm.paths import input_file
from vidllm.readers import Reader, open_reader
from vidllm.timeline import Timeline, missing_notes

DEFAULT_FRAMES = 64


@dataclass(frozen=True, eq=False)
class VideoClip:
    """Sampled frames of a video. Immutable: the arrays are read-only.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB, upright.
        seconds: (T,) float64, when each frame is first shown, from the container's timestamps;
            the first frame of the file is at 0.0.
        fps: average frames a second of the file.
        duration: seconds of the whole file (for a file that was cut off, what its header says).
        indices: (T,) int64 numbers of the frames in the file, in presentation order from 0;
            in a damaged file only frames that are still there count.
        path: where the frames come from.
        notes: what is missing or was repaired, one line each; empty for a healthy file.
        start, end: the range that was sampled, in seconds; end is None for the end of the file.
        read_seconds: wall seconds that reading took.
    """

    frames: np.ndarray
    seconds: np.ndarray
    fps: float
    duration: float
    indices: np.ndarray
    path: str
    notes: tuple[str, ...] = ()
    start: float = 0.0
    end: float | None = None
    read_seconds: float = 0.0

    def __post_init__(self) -> None:
        frames = _frozen(self.frames, np.uint8)
        if frames.ndim != 4 or frames.shape[3] != 3:
            raise InputError(f"frames must be (T, H, W, 3) uint8, got shape {frames.shape}")
        seconds = _frozen(self.seconds, np.float64)
        indices = _frozen(self.indices, np.int64)
        if seconds.shape != (len(frames),) or indices.shape != (len(frames),):
            raise InputError(
                f"{len(frames)} frames need as many seconds and indices,"
                f" got {seconds.shape} and {indices.shape}"
            )
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "notes", tuple(self.notes))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return int(self.frames.shape[2])

    def __repr__(self) -> str:
        notes = f", {len(self.notes)} notes" if self.notes else ""
        span = f"{self.seconds[0]:.3f} to {self.seconds[-1]:.3f} s" if len(self) else "empty"
        return (
            f"VideoClip({Path(self.path).name!r}, {len(self)} frames"
            f" {self.width}x{self.height}, {span} of {self.duration:.3f} s,"
            f" {self.fps:.3f} fps{notes})"
        )


def load_video(
    path: str | os.PathLike[str],
    *,
    frames: int | None = None,
    fps: float | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    start: float | None = None,
    end: float | None = None,
    reader: str = "pyav",
    limits: Limits | None = None,
    listener: Listener | None = None,
) -> VideoClip:
    """Read chosen frames of a video file.

    Give one of ``frames``, ``fps`` and ``times``; without any, ``frames=64``. The frame shown at
    a time is the last one whose timestamp is not later. Frames that the file no longer holds or
    that cannot be decoded are left out and counted in ``notes``; no other frame takes their place.
    (VP8 and VP9 have no check of their own: what is damaged inside a packet decodes to something.)

    Args:
        path: a video file.
        frames: that many frames, at the centres of as many equal parts of [start, end). A frame
            comes once, also where it is shown for longer than a part or the file has fewer.
        fps: frames a second, from ``start`` on; again each frame once.
        times: seconds in [0, duration], in any order; one frame a time, in that order.
        start: seconds; default the first frame.
        end: seconds; default the end of the video. May exceed the video by less than a second
            (people round up), not by more.
        reader: "pyav", or "decord" if it is installed.
        limits: what reading may cost at most; default ``Limits()``.
        listener: may stop the reading, at any packet of the file (with "pyav").

    Returns:
        A clip of T frames, (T, H, W, 3) uint8 RGB, rotated upright.

    Raises:
        InputError: not a readable video, or wrong options; one line says which.
        Stopped: the listener wanted it.
    """
    began = time.perf_counter()
    limits = limits or Limits()
    file = input_file(path, "video file")
    _check_options(frames, fps, times, start, end)
    source = open_reader(reader, file)
    source.listener = listener
    try:
        with memory_answered(file.name):
            clip = _sample(source, file, frames, fps, times, start, end, limits)
    finally:
        source.close()
    return replace(clip, read_seconds=time.perf_counter() - began)


def _sample(
    source: Reader,
    file: Path,
    frames: int | None,
    fps: float | None,
    times: Sequence[float] | np.ndarray | None,
    start: float | None,
    end: float | None,
    limits: Limits,
) -> VideoClip:
    line = source.timeline
    name, (height, width) = file.name, line.size
    if height * width > limits.max_pixels:
        raise InputError(
            f"{name} has frames of {width}x{height}, above the limit of {limits.max_pixels}"
            " pixels: scale it down or raise the limit max_pixels"
        )
    if line.duration > limits.max_seconds:
        raise InputError(
            f"{name} is {line.duration:.0f} seconds long, above the limit of"
            f" {limits.max_seconds:g}: cut it or raise the limit max_seconds"
        )
    begin, stop = 0.0, line.duration
    if times is not None:
        moments = _checked_times(times, line.duration, name)
    else:
        begin, stop = _checked_range(start, end, line.duration, name)
        count = frames if frames is not None or fps is not None else DEFAULT_FRAMES
        moments = _moments(line, begin, stop, count, fps, limits)
    if len(moments) > limits.max_frames:
        raise _too_many(len(moments), limits)
    needed = len(moments) * height * width * 3
    if needed > limits.max_bytes:
        raise InputError(
            f"{len(moments)} frames of {width}x{height} need {needed / 2**30:.1f} GiB, above the"
            f" limit of {limits.max_bytes / 2**30:.1f}: sample fewer or raise the limit max_bytes"
        )
    chosen, lost = shown_at(line, moments)
    if times is None:
        chosen = np.unique(chosen)
    pictures = source.read(sorted({int(i) for i in chosen}), lambda _, picture: picture)
    kept = np.asarray([i for i in chosen.tolist() if i in pictures], dtype=np.int64)
    unread = [i for i in chosen.tolist() if i not in pictures]
    asked = len(chosen) + len(lost)
    notes = line.notes + missing_notes(line, asked, lost, line.seconds[unread])
    if not len(kept):
        raise InputError(f"none of the {asked} frames of {name} could be read: {'; '.join(notes)}")
    shape = pictures[int(kept[0])].shape
    stack = np.empty((len(kept), *shape), dtype=np.uint8)
    for row, index in enumerate(kept.tolist()):
        stack[row] = pictures[index]
    return VideoClip(
        frames=stack,
        seconds=line.seconds[kept],
        fps=len(line.seconds) / (line.end - float(np.diff(line.holes).sum())),
        duration=line.duration,
        indices=kept,
        path=str(file),
        notes=notes,
        start=begin,
        end=None if end is None else stop,
    )


def _moments(
    line: Timeline, begin: float, stop: float, count: int | None, fps: float | None, limits: Limits
) -> np.ndarray:
    """The seconds at which to look: bin centres, a fixed rate, or every frame if there are few."""
    if fps is not None:
        number = math.ceil(round((stop - begin) * fps, 6))
        if number > limits.max_frames:
            raise _too_many(number, limits)
        return np.asarray(begin + np.arange(max(number, 1)) / fps)
    number = count if count is not None else DEFAULT_FRAMES
    if number > limits.max_frames:
        raise _too_many(number, limits)
    every = _every_frame(line, begin, stop, number)
    if every is not None:
        return every
    return begin + (np.arange(number) + 0.5) * ((stop - begin) / number)


def _every_frame(line: Timeline, begin: float, stop: float, number: int) -> np.ndarray | None:
    """When each frame in the range is shown, if there are no more than ``number``.

    Where the file lost frames, they are taken to have followed at the usual distance.
    """
    first = max(int(np.searchsorted(line.seconds, begin, side="right")) - 1, 0)
    after = int(np.searchsorted(line.seconds, stop, side="left"))
    if after - first > number:
        return None
    gaps = [(a, b) for a, b in line.holes.tolist()]
    if line.cut:
        gaps.append((line.end, line.duration))
    usual = float(np.median(np.diff(line.seconds))) if len(line.seconds) > 1 else line.end
    # Half a step short of the end: the frame that ends the gap is there.
    lost = [np.arange(max(a, begin), min(b, stop) - usual / 2, usual) for a, b in gaps]
    moments = np.sort(np.concatenate([np.clip(line.seconds[first:after], begin, None), *lost]))
    return moments if len(moments) <= number else None


def shown_at(line: Timeline, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame indices shown at the moments, and the moments whose frames the file lost."""
    # A microsecond of tolerance: 0.1 + 0.2 must find the frame at 0.3.
    at = np.searchsorted(line.seconds, moments + 1e-6, side="right") - 1
    gone = np.zeros(len(moments), dtype=bool)
    if line.cut:
        gone |= moments >= line.end
    for begin, stop in line.holes:
        gone |= (moments >= begin) & (moments + 1e-6 < stop)
    return np.maximum(at, 0)[~gone], moments[gone]


def _too_many(number: int, limits: Limits) -> InputError:
    return InputError(
        f"{number} frames are above the limit of {limits.max_frames}:"
        " sample fewer or raise the limit max_frames"
    )


def _check_options(
    frames: int | None,
    fps: float | None,
    times: Sequence[float] | np.ndarray | None,
    start: float | None,
    end: float | None,
) -> None:
    if sum(option is not None for option in (frames, fps, times)) > 1:
        raise InputError("give only one of frames, fps and times")
    if times is not None and (start is not None or end is not None):
        raise InputError("times are absolute: give them without start and end")
    for name, value in (("frames", frames), ("fps", fps), ("start", start), ("end", end)):
        if value is not None:
            check(name, value)
    if start is not None and end is not None and start >= end:
        raise InputError(f"start ({start:g} s) must come before end ({end:g} s)")


def _checked_times(times: Sequence[float] | np.ndarray, duration: float, name: str) -> np.ndarray:
    try:
        moments = np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("times must be a list of seconds") from error
    if moments.ndim != 1 or not len(moments):
        raise InputError("times must be a list of at least one number of seconds")
    outside = ~((moments >= 0) & (moments <= duration))  # also catches NaN
    if outside.any():
        raise InputError(
            f"time {moments[outside][0]:g} s is outside {name}, which is {duration:.3f} s long"
        )
    return moments


def _checked_range(
    start: float | None, end: float | None, duration: float, name: str
) -> tuple[float, float]:
    begin = 0.0 if start is None else float(start)
    if begin >= duration:
        raise InputError(f"start ({begin:g} s) lies after {name} ends ({duration:.3f} s)")
    if end is not None and end >= duration + 1:
        raise InputError(f"end ({end:g} s) lies after {name} ends ({duration:.3f} s)")
    return begin, duration if end is None else min(float(end), duration)


def _frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    """The array as ``dtype`` and read-only; the caller's own array stays as it is."""
    view: np.ndarray = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view
