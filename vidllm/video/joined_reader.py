"""Several recordings that were joined into one file, read one behind the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vidllm.errors import InputError
from vidllm.progress import Listener

from .display import SIZES_NOTE
from .pyav_reader import PyAVReader
from .reader import T, Take
from .recordings import Recording
from .timeline import Timeline, join_note

MOST = 100  # recordings of one file that are read


class JoinedReader:
    """Reads each recording by itself, so that it may be of another size or coding than the first.

    Time goes on at every join. A recording that cannot be read is left out and told.

    Raises:
        InputError: none of them can be read; one line says why the first cannot.
    """

    listener: Listener | None = None

    def __init__(self, recordings: list[Recording]) -> None:
        self.blank: set[int] = set()
        self._readers: list[PyAVReader] = []
        failures: list[InputError] = []
        notes: list[str] = []
        try:
            for number, recording in enumerate(recordings[:MOST], start=1):
                try:
                    self._readers.append(PyAVReader(recording))
                except InputError as error:
                    failures.append(error)
                    notes.append(f"recording {number} of {len(recordings)} is left out: {error}")
            if len(recordings) > MOST:
                notes.append(f"the file holds more than {MOST} recordings: the rest is left out")
            if not self._readers:
                raise failures[0]
            self.timeline = _one_behind_the_other([r.timeline for r in self._readers], notes)
        except BaseException:
            self.close()
            raise
        counts = [len(reader.timeline.seconds) for reader in self._readers]
        self._begins = [0, *np.cumsum(counts).tolist()]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how the pictures read so far are shown, one line each."""
        return tuple(dict.fromkeys(note for reader in self._readers for note in reader.notes))

    def read(self, indices: list[int], take: Take[T]) -> dict[int, T]:
        """Decode frames; those that cannot be decoded are left out."""
        found: dict[int, T] = {}
        for number, reader in enumerate(self._readers):
            begin, after = self._begins[number : number + 2]
            reader.listener = self.listener
            own = [index - begin for index in indices if begin <= index < after]
            if own:
                taken = reader.read(own, _shifted(take, begin))
                found.update({begin + i: what for i, what in taken.items()})
                self.blank |= {begin + i for i in reader.blank}
        return found

    def peek(self) -> None:
        """Look at the first picture of each recording."""
        for reader in self._readers:
            reader.peek()

    def close(self) -> None:
        """Give the file back."""
        for reader in self._readers:
            reader.close()


def _shifted(take: Take[T], begin: int) -> Take[T]:
    """Takes the frames of a recording whose first frame is ``begin`` in the file."""

    def taken(index: int, picture: np.ndarray) -> T:
        return take(begin + index, picture)

    return taken


def _one_behind_the_other(lines: list[Timeline], notes: list[str]) -> Timeline:
    """One timeline of several; of a recording that was cut off what is there counts."""
    begins = [0.0, *np.cumsum([line.end for line in lines]).tolist()]
    last, size = lines[-1], max((line.size for line in lines), key=lambda size: size[0] * size[1])
    told = [join_note(begins[1:-1])] if len(lines) > 1 else []
    for number, line in enumerate(lines, start=1):
        told += [f"recording {number}: {note}" for note in line.notes]
    if any(line.size != lines[0].size for line in lines):
        told.append(SIZES_NOTE)
    shifted = list(zip(begins, lines, strict=False))
    return replace(
        last,
        seconds=np.concatenate([begin + line.seconds for begin, line in shifted]),
        duration=begins[-2] + last.duration,
        end=begins[-1],
        size=size,
        holes=np.concatenate([begin + line.holes for begin, line in shifted]),
        notes=(*told, *notes),
    )
