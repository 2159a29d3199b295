"""A video as blocks of frames at a fixed rate: constant memory, the next block read meanwhile."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidllm.budget import Limits
from vidllm.encoders.vision import to_pixels
from vidllm.errors import InputError, WorkError
from vidllm.readers import open_reader
from vidllm.video import shown_at

#: Moments in a block: what one call of the vision tower sees, whatever is read at once.
BLOCK = 64
#: Seconds from one thumbnail to the next, and their width in pixels.
THUMB_EVERY, THUMB_WIDTH = 10.0, 160
_BYTES = 128 * 1024**2  # of decoded frames that are held at once


@dataclass
class Block:
    """Frames of `BLOCK` moments in a row.

    Attributes:
        pixels: (F, 3, S, S) float, as the vision tower takes them. seconds: (F,) float64.
        thumbs: (seconds, JPEG) of some. lost: seconds of moments whose frames are not there.
    """

    pixels: Tensor
    seconds: np.ndarray
    thumbs: list[tuple[float, bytes]]
    lost: list[float]


class Frames:
    """The frames of a file at a fixed rate.

    Args:
        path: of the video. fps: frames a second. size: pixels of a side for the vision tower.
        reader: "pyav" or "decord". chunk: frames read at once; changes nothing but memory.
        limits: as for `load_video`; its `max_frames` and `max_bytes` do not apply.

    Raises:
        InputError: no readable video, or one beyond the limits.
    """

    def __init__(
        self,
        path: Path,
        fps: float,
        size: int,
        *,
        reader: str = "pyav",
        chunk: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        self.path, self.size, limits = path, size, limits or Limits()
        self._reader = open_reader(reader, path)
        line = self._reader.timeline
        height, width = line.size
        if height * width > limits.max_pixels:
            raise InputError(
                f"{path.name} has frames of {width}x{height}, above the limit of "
                f"{limits.max_pixels} pixels: scale it down or raise the limit max_pixels"
            )
        if line.duration > limits.max_seconds:
            raise InputError(
                f"{path.name} is {line.duration:.0f} seconds long, above the limit of "
                f"{limits.max_seconds:g}: raise the limit max_seconds"
            )
        self.duration, self.notes = line.duration, line.notes
        self._line = line
        count = max(1, int(np.ceil(round(line.duration * fps, 6))))
        self._moments = np.arange(count) / fps
        self._chunk = min(BLOCK, chunk or max(1, _BYTES // max(1, 3 * height * width)))

    def __len__(self) -> int:
        """Blocks."""
        return -(-len(self._moments) // BLOCK)

    def close(self) -> None:
        """Give the file back."""
        self._reader.close()

    def end_of(self, block: int) -> float:
        """The second up to which the blocks before and with this one reach."""
        last = (block + 1) * BLOCK
        return float(self._moments[last]) if last < len(self._moments) else self.duration

    def blocks(self, first: int = 0) -> Iterator[Block]:
        """Block after block; while one is in work the next is read.

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
        moments = self._moments[number * BLOCK : (number + 1) * BLOCK]
        if not self.path.is_file():
            raise WorkError(f"{self.path.name} is gone")
        chosen, gone = shown_at(self._line, moments)
        before = shown_at(self._line, self._moments[max(0, number * BLOCK - 1)][None])[0]
        wanted = [int(i) for i in np.unique(chosen) if number == 0 or i not in before]
        pixels, seconds, lost = [], [], [float(t) for t in gone]
        thumbs: list[tuple[float, bytes]] = []
        for start in range(0, len(wanted), self._chunk):
            part = wanted[start : start + self._chunk]
            try:
                found = self._reader.read(part)
            except (OSError, InputError) as error:
                raise WorkError(f"{self.path.name} cannot be read any more") from error
            here = [i for i in part if i in found]
            lost += [float(self._line.seconds[i]) for i in part if i not in found]
            if not here:
                continue
            pictures = np.stack([found[i] for i in here])
            pixels.append(to_pixels(torch.from_numpy(pictures), self.size))
            times = self._line.seconds[here]
            seconds.append(times)
            thumbs += self._thumbs(pictures, times)
        shape = (0, 3, self.size, self.size)
        return Block(
            torch.cat(pixels) if pixels else torch.zeros(shape),
            np.concatenate(seconds) if seconds else np.zeros(0),
            thumbs,
            sorted(lost),
        )

    def _thumbs(self, pictures: np.ndarray, times: np.ndarray) -> list[tuple[float, bytes]]:
        """The first frame of every `THUMB_EVERY` seconds, small."""
        found = []
        for picture, time in zip(pictures, times, strict=True):
            step = 1e-6 + float(np.diff(self._moments[:2])[0]) if len(self._moments) > 1 else 1e9
            if (time + 1e-6) % THUMB_EVERY < step:
                found.append((float(time), jpeg(picture)))
        return found


def jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) as a small JPEG."""
    from PIL import Image

    image = Image.fromarray(picture)
    width = min(THUMB_WIDTH, image.width)
    image = image.resize((width, max(1, round(image.height * width / image.width))))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=70)
    return data.getvalue()
