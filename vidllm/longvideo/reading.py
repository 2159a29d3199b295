"""A video as blocks of frames at a fixed rate: constant memory, the next block read meanwhile."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import input_file
from vidllm.video import Limits, Reader, T, Take, open_reader, shown_at

#: Moments in a block: what one call of the vision tower sees, whatever is read at once.
BLOCK = 64
#: Seconds from one thumbnail to the next, and their width in pixels.
THUMB_EVERY, THUMB_WIDTH = 10.0, 160
_BYTES = 128 * 1024**2  # of decoded frames that are held at once

#: From a picture (H, W, 3) of bytes to (1, ...), what is kept of it until it is encoded.
Preparing = Callable[[np.ndarray], Tensor]


class GoneError(WorkError):
    """The file is not where it was."""


@dataclass
class Block:
    """Frames of `BLOCK` moments in a row.

    Attributes:
        pixels: (F, ...) as they were prepared. seconds: (F,) float64.
        thumbs: (seconds, JPEG) of some. lost: seconds of moments whose frames are not there.
    """

    pixels: Tensor
    seconds: np.ndarray
    thumbs: list[tuple[float, bytes]]
    lost: list[float]


class Frames:
    """The frames of a file at a fixed rate.

    Args:
        path: of the video. fps: frames a second. prepare: what is kept of a picture.
        reader: "pyav" or "decord". chunk: frames read at once; changes nothing but memory.
        limits: as for `load_video`; its `max_frames` and `max_bytes` do not apply.

    Attributes:
        size: height and width of the pictures. block: moments in a block.

    Raises:
        InputError: no readable video, or one beyond the limits.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        prepare: Preparing,
        *,
        reader: str = "pyav",
        chunk: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be at least 1 frame, got {chunk}")
        self.path, limits = input_file(path, "video file"), limits or Limits()
        self._prepare = prepare
        opened = open_reader(reader, path)
        self._reader: Reader | None = opened
        line = opened.timeline
        self.size = height, width = line.size
        try:
            _check_limits(path.name, height, width, line.duration, limits)
        except InputError:
            self.close()
            raise
        opened.peek()
        self.notes = (*line.notes, *opened.notes)
        #: Seconds that can be read: of a file that was cut off what is there, not what it promises.
        self.duration = line.end if line.cut else line.duration
        self._line = line
        count = max(1, int(np.ceil(round(self.duration * fps, 6))))
        self._moments = np.arange(count) / fps
        self._chunk = min(BLOCK, chunk or max(1, _BYTES // max(1, 3 * height * width)))
        self.block = BLOCK

    def __len__(self) -> int:
        """Blocks."""
        return -(-len(self._moments) // self.block)

    @property
    def count(self) -> int:
        """Moments."""
        return len(self._moments)

    def close(self) -> None:
        """Give the file back, and the memory that its tables take; length and notes stay."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def end_of(self, block: int) -> float:
        """The second up to which the blocks before and with this one reach; 0.0 for block -1."""
        last = (block + 1) * self.block
        return float(self._moments[last]) if last < len(self._moments) else self.duration

    def peek(self, count: int) -> Tensor:
        """At most `count` frames (F, ...), evenly spread over the video.

        Raises:
            WorkError: the file is gone, or cannot be read any more.
        """
        moments = (np.arange(count) + 0.5) * (self.duration / count)
        chosen, _ = shown_at(self._line, moments)

        def take(_number: int, picture: np.ndarray) -> Tensor:
            return self._prepare(picture)

        found = self._pictures([int(i) for i in np.unique(chosen)], take)
        return torch.cat([self._none(), *found.values()])

    def blocks(self, first: int = 0) -> Generator[Block, None, None]:
        """Block after block; while one is in work the next is read.

        To be closed (`contextlib.closing`) before the frames are: a read may be under way.

        Raises:
            WorkError: the file is gone, or cannot be read any more.
        """
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._read, first) if first < len(self) else None
            for number in range(first, len(self)):
                assert coming is not None
                block = coming.result()
                if number + 1 < len(self):
                    coming = ahead.submit(self._read, number + 1)
                yield block

    def _read(self, number: int) -> Block:
        begin = number * self.block
        moments = self._moments[begin : begin + self.block]
        if not self.path.is_file():
            raise GoneError(f"{self.path.name} is gone")
        chosen, gone = shown_at(self._line, moments)
        before, _ = shown_at(self._line, self._moments[max(0, begin - 1) : begin])
        wanted = [int(i) for i in np.unique(chosen) if i not in before]
        firsts = self._firsts(wanted, before)

        def take(i: int, picture: np.ndarray) -> tuple[Tensor, bytes | None]:
            # A turned picture is a view that runs backwards, which torch does not take.
            picture = np.ascontiguousarray(picture)
            return self._prepare(picture), jpeg(picture) if i in firsts else None

        found: dict[int, tuple[Tensor, bytes | None]] = {}
        for start in range(0, len(wanted), self._chunk):
            found |= self._pictures(wanted[start : start + self._chunk], take)
        here = sorted(found)
        thumbs = {i: thumb for i, (_, thumb) in found.items() if thumb is not None}
        for i in sorted(self._firsts(here, before) - set(thumbs)):  # the one before it was lost
            thumbs |= self._pictures([i], lambda _, picture: jpeg(picture))
        times = self._line.seconds
        missing = [float(times[i]) for i in wanted if i not in found]
        return Block(
            torch.cat([found[i][0] for i in here]) if here else self._none(),
            times[here],
            [(float(times[i]), thumbs[i]) for i in sorted(thumbs)],
            sorted([*gone.tolist(), *missing]),
        )

    def shown_size(self) -> tuple[int, int]:
        """Height and width of the pictures as they are shown, which may be turned.

        Raises:
            WorkError: the file is gone, or cannot be read any more.
        """
        found = self._pictures([0], lambda _, picture: (picture.shape[0], picture.shape[1]))
        self.size = found.get(0, self.size)
        return self.size

    def _none(self) -> Tensor:
        return self._prepare(np.zeros((*self.size, 3), np.uint8))[:0]

    def _pictures(self, frames: list[int], take: Take[T]) -> dict[int, T]:
        assert self._reader is not None
        try:
            return self._reader.read(frames, take)
        except (OSError, InputError) as error:
            raise WorkError(f"{self.path.name} cannot be read any more ({error})") from error

    def _firsts(self, frames: list[int], before: np.ndarray) -> set[int]:
        """Those of frames (ascending) with which a stretch of `THUMB_EVERY` seconds begins."""
        found = set()
        step = _step_of(float(self._line.seconds[before[0]])) if len(before) else -1
        for i in frames:
            if _step_of(float(self._line.seconds[i])) != step:
                step = _step_of(float(self._line.seconds[i]))
                found.add(i)
        return found


def _check_limits(name: str, height: int, width: int, duration: float, limits: Limits) -> None:
    if height * width > limits.max_pixels:
        raise InputError(
            f"{name} has frames of {width}x{height}, above the limit of "
            f"{limits.max_pixels} pixels: scale it down or raise the limit max_pixels"
        )
    if duration > limits.max_seconds:
        raise InputError(
            f"{name} is {duration:.0f} seconds long, above the limit of "
            f"{limits.max_seconds:g}: raise the limit max_seconds"
        )


def _step_of(seconds: float) -> int:
    """Which stretch of `THUMB_EVERY` seconds a frame is in; its first frame is the thumbnail."""
    return int((seconds + 1e-6) // THUMB_EVERY)


def jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) as a small JPEG."""
    from PIL import Image

    image = Image.fromarray(picture)
    width = min(THUMB_WIDTH, image.width)
    image = image.resize((width, max(1, round(image.height * width / image.width))))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=70)
    return data.getvalue()
