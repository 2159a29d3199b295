"""What `load_video` asks of a reader of video files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from vidllm.progress import Listener

from .timeline import Timeline

T = TypeVar("T")


Take = Callable[[int, np.ndarray], T]


class Reader(Protocol):
    """What ``load_video`` asks of a reader; a listener may stop it."""

    timeline: Timeline
    listener: Listener | None
    #: Indices of frames asked for that the file has no picture for, although nothing is damaged.
    blank: set[int]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how the pictures read so far are shown, one line each."""
        ...

    def read(self, indices: list[int], take: Take[T]) -> dict[int, T]:
        """Decode frames and take what is wanted of each; those that cannot be decoded are left out.

        Args:
            indices: presentation indices, ascending, unique.
            take: called with an index and its (H, W, 3) uint8 RGB picture, in any order and
                in the thread that decodes; now and then twice for a frame near a damage.
        """
        ...

    def peek(self) -> None:
        """Look at the first picture, so that ``notes`` tell of it before anything is read."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...
