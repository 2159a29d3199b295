"""Readers of video files behind ``vidllm.load_video``: what a file holds, and chosen frames of it.

A reader first gives a ``Timeline`` without decoding a picture, then decodes only the frames it is
asked for. PyAV is the default: a demux-only pass lists every packet, frames are then reached from
the nearest key frame. decord is optional.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vidllm.errors import InputError
from vidllm.progress import Listener, check

from .reader import Reader, T, Take
from .recordings import Recording, recordings_in
from .stamps import usual_step
from .timeline import Timeline

_BATCH = 32  # frames that decord gives at once


class DecordReader:
    """decord's reader: fast, but it opens neither cut-off files nor everything else that PyAV does.

    Raises:
        InputError: decord is not installed, or cannot open the file.
    """

    listener: Listener | None = None

    def __init__(self, path: Path) -> None:
        try:
            import decord
        except ImportError as error:
            raise InputError(
                "reader 'decord' is not installed: pip install vidllm[decord], or use reader 'pyav'"
            ) from error
        self.blank: set[int] = set()
        size, notes = self._looked_at(path)
        reader = open_reader("pyav", path)
        known = reader.timeline.seconds
        reader.close()
        self.notes: tuple[str, ...] = ()
        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader: Any = decord.VideoReader(str(path), ctx=decord.cpu(0))
            stamps = self._reader.get_frame_timestamp(range(len(self._reader)))
            height, width = self._reader[0].shape[:2]
            self._reader.seek(0)
        except Exception as error:  # decord raises its own DECORDError, or IndexError when empty
            raise InputError(
                f"decord cannot read {path.name}: it is no video or is damaged; try reader 'pyav'"
            ) from error
        stamps = np.asarray(stamps, dtype=np.float64)
        stamps = stamps - stamps[0, 0]
        if not (np.isfinite(stamps).all() and (np.diff(stamps[:, 0]) > 0).all()):
            raise InputError(
                f"decord mixes up the frames of {path.name}, whose times are shared or start anew:"
                " use reader 'pyav'"
            )
        if not _agree(stamps[:, 0], known):
            raise InputError(
                f"decord finds other frames in {path.name} than are to be shown"
                f" ({len(stamps)}, not {len(known)}, or other times): use reader 'pyav'"
            )
        turned = height > width if size[0] < size[1] else height < width
        self._size = size[::-1] if turned else size
        end = float(stamps[-1, 1])
        self.timeline = Timeline(
            stamps[:, 0], end, end, self._size, np.zeros((0, 2)), notes=tuple(notes)
        )

    def _looked_at(self, path: Path) -> tuple[tuple[int, int], list[str]]:
        """(height, width) of the pictures before turns, and notes.

        Raises:
            InputError: what is wrong with the file (decord prints warnings), or what decord does
                not undo.
        """
        from .demuxer import Source
        from .display import display_matrix, frame_notes, is_mirrored

        source = Source(Recording(path))
        with source.container as container:
            if container.streams.best("video") != source.stream:
                raise InputError(
                    f"decord reads the thumbnail of {path.name} for its video: use reader 'pyav'"
                )
            frame = None
            with contextlib.suppress(Exception):  # a damaged start: decord says what it can
                frame = next(container.decode(source.stream), None)
            if frame is None:
                return source.size, source.notes
            if is_mirrored(display_matrix(frame)):
                raise InputError(
                    f"{path.name} is to be shown mirrored, which decord does not do:"
                    " use reader 'pyav'"
                )
            return source.size, [*source.notes, *frame_notes(frame)]

    def read(self, indices: list[int], take: Take[T]) -> dict[int, T]:
        """Decode frames; a frame that decord cannot decode is left out."""
        found: dict[int, T] = {}
        for start in range(0, len(indices), _BATCH):
            check(self.listener)
            some = indices[start : start + _BATCH]
            for index, picture in self._decoded(some).items():
                found[index] = take(index, self._square(picture))
        return found

    def peek(self) -> None:
        """Nothing: the first picture was looked at when the file was opened."""

    def _square(self, picture: np.ndarray) -> np.ndarray:
        """The picture with square pixels."""
        if picture.shape[:2] == self._size:
            return picture
        from PIL import Image

        return np.asarray(Image.fromarray(picture).resize(self._size[::-1]))

    def _decoded(self, indices: list[int]) -> dict[int, np.ndarray]:
        try:
            batch = self._reader.get_batch(indices).asnumpy()
            return dict(zip(indices, batch, strict=True))
        except Exception:  # one bad frame fails the whole batch: ask one at a time
            found: dict[int, np.ndarray] = {}
            for index in indices:
                try:
                    found[index] = self._reader[index].asnumpy()
                except Exception as error:
                    warnings.warn(f"decord: frame {index}: {error}", stacklevel=2)
            return found

    def close(self) -> None:
        """Give the file back."""
        del self._reader


def _agree(seconds: np.ndarray, known: np.ndarray) -> bool:
    """Whether frames are as many as known ones and nearer to each of them than to the next."""
    if len(seconds) != len(known):
        return False
    slack = max(usual_step(known) / 2, 2e-3)
    return bool((np.abs(seconds - known) <= slack).all())


def open_reader(name: str, path: Path) -> Reader:
    """The reader of that name on a file. Raises ``InputError`` for an unknown name."""
    if name == "pyav":
        from .joined_reader import MOST, JoinedReader
        from .pyav_reader import PyAVReader

        recordings = recordings_in(path, MOST + 1)
        return PyAVReader(recordings[0]) if len(recordings) == 1 else JoinedReader(recordings)
    if name == "decord":
        return DecordReader(path)
    raise InputError(f"unknown reader {name!r}: use 'pyav' or 'decord'")
