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


def on_screen(
    seconds: np.ndarray,
    moments: np.ndarray,
    step: float,
    lost: Sequence[Sequence[float]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The frame nearest to each moment, and the second that the model is told of it.

    That is the frame's own. Where a file shows one frame for long (a slide, a time lapse), a
    moment in between has this frame and is told as itself: the frame is on the screen then.

    Args:
        seconds: (T,) rising times of all frames. moments: (count,) seconds, not falling.
        step: seconds between frames as they were read. lost: [start, end] seconds of moments
            that could not be read; what is shown there is not known, and its neighbour keeps
            its own second.

    Returns:
        (count,) indices and (count,) seconds, neither falling; a frame comes twice where there
        are too few.

    Raises:
        InputError: there is no frame.
    """
    if not len(seconds):
        raise InputError("this index holds no frame")
    chosen = nearest(seconds, moments, step)
    told = seconds[chosen]
    held = moments - told > 1.5 * step
    for first, last in lost:
        held &= (moments <= first - step) | (moments >= last + step)
    return chosen, np.maximum.accumulate(np.where(held, moments, told))


def nearest(seconds: np.ndarray, wanted: np.ndarray, reach: float = np.inf) -> np.ndarray:
    """Index of the time nearest to each wanted one; `seconds` rise.

    A later time counts only within `reach`: what is shown for long is shown until it ends.
    """
    after = np.clip(np.searchsorted(seconds, wanted), 1, max(1, len(seconds) - 1))
    before = after - 1
    after = np.minimum(after, len(seconds) - 1)
    late = seconds[after] - wanted
    closer = (np.abs(seconds[before] - wanted) <= np.abs(late)) | (late > reach)
    return np.where(closer, before, after)


@dataclass(frozen=True)
class Cuts:
    """Stretches of a video shown one after the other, as if nothing lay between them.

    Args:
        pieces: (start, end) seconds; of one video in time order and apart from each other.
    """

    pieces: tuple[tuple[float, float], ...]

    @classmethod
    def around(cls, spans: Sequence[tuple[float, float]], margin: float, duration: float) -> Cuts:
        """The spans with a margin of seconds on both sides, joined where they then touch.

        A moment without length becomes a second.
        """
        joined: list[tuple[float, float]] = []
        for start, end in sorted(spans):
            around = max(margin, (1 - (end - start)) / 2)
            start, end = max(0.0, start - around), min(duration, end + around)
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
        """`count` evenly spread moments: seconds in the video, and which piece each is in."""
        joined = (np.arange(count) + 0.5) * (self.length / count)
        piece = np.clip(np.searchsorted(self.edges, joined, side="right") - 1, 0, None)
        piece = np.minimum(piece, len(self.pieces) - 1)
        starts = np.asarray([start for start, _ in self.pieces])
        return starts[piece] + joined - self.edges[piece], piece

    def joined(self, seconds: np.ndarray, piece: np.ndarray) -> np.ndarray:
        """Seconds of the video on the joined time line, kept to the piece that each is in."""
        pieces = np.asarray(self.pieces)[piece]
        return self.edges[piece] + np.clip(seconds, pieces[:, 0], pieces[:, 1]) - pieces[:, 0]

    def back(self, start: float, end: float) -> tuple[float, float]:
        """A span of the joined time line in seconds of the video.

        One that reaches over a cut is kept to the piece that holds its middle.
        """
        piece = self.piece_of(start, end)
        (first, last), edge = self.pieces[piece], float(self.edges[piece])
        return (
            min(max(first, first + start - edge), last),
            max(min(last, first + end - edge), first),
        )

    def piece_of(self, start: float, end: float) -> int:
        """The piece that holds the middle of a span of the joined time line."""
        piece = int(np.searchsorted(self.edges, (start + end) / 2, side="right")) - 1
        return min(max(piece, 0), len(self.pieces) - 1)
