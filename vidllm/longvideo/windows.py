"""How a long video is cut into overlapping windows, and which frames each window shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidllm.errors import InputError

#: Seconds of the windows of an index. An event is seen by two windows of each length, and events
#: of seconds as of a minute take a share of some window that models are trained on.
LEVELS: tuple[float, ...] = (120.0, 60.0)


@dataclass(frozen=True)
class Level:
    """Windows of one length, each half a window after the one before.

    Args:
        seconds: length of a window. frames: that it shows at most.
    """

    seconds: float
    frames: int

    def starts(self, duration: float) -> np.ndarray:
        """(n,) seconds at which windows begin; the last one ends with the video."""
        last = max(0.0, duration - self.seconds)
        steps = np.arange(0.0, max(last, 1e-9), self.seconds / 2)
        return np.unique(np.append(steps[steps < last - 1e-6], last))

    def length(self, duration: float) -> float:
        """Seconds of each window: that of a short video is the video."""
        return min(self.seconds, duration)


def levels_for(fps: float, frames: int, duration: float) -> list[Level]:
    """The levels of an index: a shorter one only where it adds windows.

    Args:
        fps: frames a second in the index. frames: that the model takes. duration: seconds.
    """
    found: list[Level] = []
    for seconds in LEVELS:
        if found and duration <= seconds:
            break
        shown = min(frames, max(1, int(min(seconds, max(duration, 1 / fps)) * fps + 1e-6)))
        found.append(Level(seconds, shown))
    return found


def shown(seconds: np.ndarray, start: float, length: float, count: int) -> np.ndarray:
    """Which of the frames at `seconds` a window shows: the nearest to the middles of `count` parts.

    Args:
        seconds: (T,) rising times of all frames. start, length: of the window, in seconds.

    Returns:
        (count,) indices, not falling; a frame comes twice where there are too few.
    """
    if not len(seconds):
        raise InputError("this index holds no frame")
    return nearest(seconds, start + (np.arange(count) + 0.5) * (length / count))


def nearest(seconds: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the time nearest to each wanted one; `seconds` rise."""
    after = np.clip(np.searchsorted(seconds, wanted), 1, max(1, len(seconds) - 1))
    before = after - 1
    after = np.minimum(after, len(seconds) - 1)
    closer = np.abs(seconds[before] - wanted) <= np.abs(seconds[after] - wanted)
    return np.where(closer, before, after)


@dataclass(frozen=True)
class Cuts:
    """Stretches of a video shown one after the other, as if nothing lay between them.

    Args:
        pieces: (start, end) seconds in time order, apart from each other.
    """

    pieces: tuple[tuple[float, float], ...]

    @classmethod
    def around(cls, spans: Sequence[tuple[float, float]], margin: float, duration: float) -> Cuts:
        """The spans with a margin of seconds on both sides, joined where they then touch."""
        joined: list[tuple[float, float]] = []
        for start, end in sorted(spans):
            start, end = max(0.0, start - margin), min(duration, end + margin)
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((start, end))
        return cls(tuple(joined))

    @property
    def edges(self) -> np.ndarray:
        """(pieces + 1,) where each piece begins on the joined time line, in seconds."""
        return np.cumsum([0.0, *(end - start for start, end in self.pieces)])

    @property
    def length(self) -> float:
        """Seconds of all pieces."""
        return float(self.edges[-1])

    def moments(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` evenly spread moments: seconds on the joined time line, and in the video."""
        joined = (np.arange(count) + 0.5) * (self.length / count)
        piece = np.clip(np.searchsorted(self.edges, joined, side="right") - 1, 0, None)
        starts = np.asarray([start for start, _ in self.pieces])
        return joined, starts[piece] + joined - self.edges[piece]

    def back(self, start: float, end: float) -> tuple[float, float]:
        """A span of the joined time line in seconds of the video.

        One that reaches over a cut is kept to the piece that holds its middle.
        """
        edges = self.edges
        piece = int(np.searchsorted(edges, (start + end) / 2, side="right")) - 1
        piece = min(max(piece, 0), len(self.pieces) - 1)
        first, last = self.pieces[piece]
        return (
            min(max(first, first + start - edges[piece]), last),
            max(min(last, first + end - edges[piece]), first),
        )


def clock(seconds: float) -> str:
    """ "1:02:05" or "2:05" for a time."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
