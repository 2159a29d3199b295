"""Reading video: ``load_video`` samples frames of a file with their true seconds.

Frames are chosen on the container's own timestamps before anything is decoded, so that a long
file costs what its sampled frames cost.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.errors import InputError
from vidllm.errors.bounds import check, memory_answered
from vidllm.errors.keywords import known_keywords
from vidllm.errors.paths import input_file
from vidllm.progress import Listener

from .contact_sheet import contact_sheet, show_in_notebook
from .memory_frames import frames_of, length_of, seconds_of
from .reader import Reader
from .readers import open_reader
from .stamps import usual_step
from .timeline import Timeline, missing_notes

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_FRAMES = 64
_FEW = 8  # frames that are looked at together where some have the same time


@dataclass(frozen=True)
class Limits:
    """What reading a video may cost at most; going over is an ``InputError`` naming the limit.

    The defaults refuse what would exhaust an ordinary machine and nothing that people film.

    Attributes:
        max_pixels: pixels of one frame (height x width). Default 8192 x 8192, above 8K video.
        max_seconds: length of the file in seconds. Default 24 hours.
        max_frames: sampled frames of one clip. Default 4096.
        max_bytes: memory of one clip's frames in bytes (T x H x W x 3). Default 4 GiB, for
            example 690 frames of full HD.
    """

    max_pixels: int = 8192 * 8192
    max_seconds: float = 24 * 3600.0
    max_frames: int = 4096
    max_bytes: int = 4 * 1024**3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check(field.name, value, f"limit {field.name}")


@dataclass(frozen=True, eq=False)
class VideoClip:
    """Sampled frames of a video. Immutable: the arrays are read-only.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB, as players show them: upright, with square pixels.
        seconds: (T,) float64, when each frame is first shown, from the container's timestamps;
            the first frame of the file is at 0.0. Frames may share a time.
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

    @classmethod
    @known_keywords()
    def from_frames(
        cls,
        frames: Any,
        *,
        seconds: Sequence[float] | np.ndarray | None = None,
        fps: float | None = None,
        duration: float | None = None,
    ) -> VideoClip:
        """A clip of frames in memory, all of them.

        Args:
            frames: (T, H, W, 3) or (T, 3, H, W) RGB, of numpy or torch, uint8 or floating point in
                [0, 1]; or a list of such pictures, or of PIL's.
            seconds: (T,) when each frame is shown. fps: frames a second instead.
            duration: of the video in seconds; if absent, the last frame is shown for as long as
                most are (a lone one for a second).

        Raises:
            InputError: frames, seconds or a duration that cannot be.
        """
        pictures = frames_of(frames)
        times = seconds_of(len(pictures), seconds, fps)
        length = length_of(times, fps, duration)
        rate = len(pictures) / length if length > 0 else 1.0
        return cls(pictures, times, rate, length, np.arange(len(pictures)), "frames in memory")

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

    def contact_sheet(self, most: int = 12, columns: int = 4) -> Image:
        """A picture of PIL: at most `most` of the frames, each with its seconds."""
        return contact_sheet(self.frames, self.seconds, most, columns)

    def show(self, most: int = 12, columns: int = 4) -> None:
        """Display `contact_sheet` in a notebook. Raises InputError elsewhere."""
        show_in_notebook(self.contact_sheet(most, columns))

    def __repr__(self) -> str:
        notes = f", {len(self.notes)} notes" if self.notes else ""
        span = f"{self.seconds[0]:.3f} to {self.seconds[-1]:.3f} s" if len(self) else "empty"
        return (
            f"VideoClip({Path(self.path).name!r}, {len(self)} frames"
            f" {self.width}x{self.height}, {span} of {self.duration:.3f} s,"
            f" {self.fps:.3f} fps{notes})"
        )


@known_keywords()
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
        fps: frames a second, from ``start`` on; again each frame once. Of frames with the same time
            the last one comes, so that no time comes twice; only at a rate at which the file has
            no more frames than are asked for do they all come.
        times: seconds in [0, duration], in any order; one frame a time, in that order.
        start: seconds; default the first frame.
        end: seconds; default the end of the video. May exceed the video by less than a second
            (people round up), not by more.
        reader: "pyav", or "decord" if it is installed.
        limits: what reading may cost at most; default ``Limits()``.
        listener: may stop the reading, at any packet of the file (with "pyav").

    Returns:
        A clip of T frames, (T, H, W, 3) uint8 RGB, upright and with square pixels.

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
        _check_count(len(moments), line.size, limits)
        chosen, lost = shown_at(line, moments)
    else:
        begin, stop = _checked_range(start, end, line.duration, name)
        chosen, lost = _chosen(line, begin, stop, frames, fps, limits)
    asked = len(chosen) + len(lost)
    _check_count(asked, line.size, limits)
    stack = _Stack(chosen.tolist())
    try:
        read = source.read(stack.indices, stack.put)
    except MemoryError as error:
        raise InputError(
            f"{len(chosen)} frames of {width}x{height} need more memory than there is:"
            " sample fewer, or scale the video down"
        ) from error
    kept = np.asarray([i for i in chosen.tolist() if i in read], dtype=np.int64)
    unread = [i for i in chosen.tolist() if i not in read and i not in source.blank]
    notes = (*line.notes, *source.notes, *missing_notes(line, asked, lost, line.seconds[unread]))
    if blank := asked - len(lost) - len(kept) - len(unread):
        notes += (f"{blank} of {asked} frames have no picture of their own in the file",)
    if not len(kept):
        raise InputError(f"none of the {asked} frames of {name} could be read: {'; '.join(notes)}")
    shown = line.end - float(np.diff(line.holes).sum())
    return VideoClip(
        frames=stack.frames(set(read)),
        seconds=line.seconds[kept],
        fps=len(line.seconds) / (shown if shown > 0 else line.end),
        duration=line.duration,
        indices=kept,
        path=str(file),
        notes=notes,
        start=begin,
        end=None if end is None else stop,
    )


class _Stack:
    """The frames of a clip, each put in its place as it is decoded: none is held twice.

    Args:
        chosen: the frame of each row; one may come more than once.
    """

    def __init__(self, chosen: list[int]) -> None:
        self.indices = sorted(set(chosen))
        self._chosen = chosen
        self._rows: dict[int, int] = {}
        for row, index in enumerate(chosen):
            self._rows.setdefault(index, row)
        self._stack: np.ndarray | None = None
        self._lock = threading.Lock()

    def put(self, index: int, picture: np.ndarray) -> bool:
        """Keep a picture (H, W, 3); decoders on several threads may do so."""
        with self._lock:
            if self._stack is None:
                self._stack = np.empty((len(self._chosen), *picture.shape), dtype=np.uint8)
        self._stack[self._rows[index]] = _fitted(picture, self._stack.shape[1:3])
        return True

    def frames(self, there: set[int]) -> np.ndarray:
        """(T, H, W, 3) of the rows whose frames are there, moved together in place."""
        assert self._stack is not None
        row = 0
        for index in self._chosen:
            if index not in there:
                continue
            if self._rows[index] != row:
                self._stack[row] = self._stack[self._rows[index]]
            self._rows[index] = min(self._rows[index], row)
            row += 1
        return self._stack[:row]


def _fitted(picture: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A picture of a file that changes its shape midway, as large as the first one."""
    if picture.shape[:2] == size:
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0])))


def _chosen(
    line: Timeline,
    begin: float,
    stop: float,
    frames: int | None,
    fps: float | None,
    limits: Limits,
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending frame indices of a range, and the seconds of those that the file lost.

    Frames at bin centres or at a fixed rate; every frame of the range where there are no more.
    """
    if fps is not None:
        number = math.ceil(round(min((stop - begin) * fps, 1e18), 6))
        _check_count(number, line.size, limits, least=True)
        chosen, lost = shown_at(line, begin + np.arange(max(number, 1)) / fps)
        chosen = np.unique(chosen)
        return (
            _with_alike(line, chosen, begin) if _is_dense(line, begin, stop, fps) else chosen
        ), lost
    number = DEFAULT_FRAMES if frames is None else frames
    _check_count(number, line.size, limits, least=True)
    every = _every_frame(line, begin, stop, number)
    if every is not None:
        return every
    moments = begin + (np.arange(number) + 0.5) * ((stop - begin) / number)
    chosen, lost = shown_at(line, moments)
    return np.unique(chosen), lost


def _is_dense(line: Timeline, begin: float, stop: float, fps: float) -> bool:
    """Whether a rate asks for every frame of a range that has frames with the same time.

    As many as there are in all of it, and of any few that follow each other.
    """
    times = line.seconds[np.searchsorted(line.seconds, begin) : np.searchsorted(line.seconds, stop)]
    steps = np.diff(times)
    if steps.all() or (stop - begin) * fps < len(times) - 1e-6:
        return False
    clock = steps[steps > 0].min(initial=np.inf)  # times may have been rounded to so much
    spans = times[_FEW:] - times[:-_FEW] if len(times) > _FEW else times[-1:] - times[:1]
    return bool((spans.min() + clock) * fps >= min(_FEW, len(times)) - 1e-3)


def _with_alike(line: Timeline, chosen: np.ndarray, begin: float) -> np.ndarray:
    """Frames with those of the same times that come before them, none before ``begin``."""
    alike = np.isin(line.seconds, line.seconds[chosen]) & (line.seconds >= begin)
    return np.unique(np.concatenate([chosen, np.flatnonzero(alike)]))


def _every_frame(
    line: Timeline, begin: float, stop: float, number: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Each frame of the range, and lost ones, if together they are no more than ``number``.

    Where the file lost frames, they are taken to have followed at the usual distance.
    """
    first = int(np.searchsorted(line.seconds, begin))
    after = int(np.searchsorted(line.seconds, stop))
    if first and not (first < len(line.seconds) and line.seconds[first] == begin):
        first -= len(shown_at(line, np.asarray([begin]))[0])  # what is shown when the range begins
    if after - first > number:
        return None
    gaps = [(a, b) for a, b in line.holes.tolist()]
    if line.cut:
        gaps.append((line.end, line.duration))
    usual = usual_step(line.seconds) or line.end
    # Half a step short of the end: the frame that ends the gap is there.
    edges = [(max(a, begin), min(b, stop) - usual / 2) for a, b in gaps]
    # Their number comes first: what a file says of its length may ask for any.
    if after - first + sum(max(b - a, 0.0) / usual for a, b in edges) > number:
        return None
    lost = [np.arange(a, b, usual) for a, b in edges]
    return np.arange(first, after), np.concatenate([np.zeros(0), *lost])


def shown_at(line: Timeline, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame indices shown at the moments, and the moments whose frames the file lost.

    Of frames with the same time the last one is shown.
    """
    # A microsecond of tolerance: 0.1 + 0.2 must find the frame at 0.3.
    at = np.searchsorted(line.seconds, moments + 1e-6, side="right") - 1
    gone = np.zeros(len(moments), dtype=bool)
    if line.cut:
        gone |= moments >= line.end
    for begin, stop in line.holes:
        gone |= (moments >= begin) & (moments + 1e-6 < stop)
    return np.maximum(at, 0)[~gone], moments[gone]


def _check_count(
    number: int, size: tuple[int, int], limits: Limits, *, least: bool = False
) -> None:
    """See that so many frames are within the limits.

    Args:
        least: whether fewer may come of it: only the number itself is looked at.
    """
    height, width = size
    if number > limits.max_frames:
        told = str(number) if number < 10**15 else "so many"  # numbers of any length are asked for
        raise InputError(
            f"{told} frames are above the limit of {limits.max_frames}:"
            " sample fewer or raise the limit max_frames"
        )
    needed = number * height * width * 3
    if not least and needed > limits.max_bytes:
        raise InputError(
            f"{number} frames of {width}x{height} need {needed / 2**30:.1f} GiB, above the"
            f" limit of {limits.max_bytes / 2**30:.1f}: sample fewer or raise the limit max_bytes"
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
