"""Questions with answers about one's own videos; whoever knows annotation files reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from vidllm.errors import InputError


@dataclass(frozen=True)
class Example:
    """A question about a video with its answer.

    Attributes:
        video: the file. start, end: seconds between which it is looked at; None for all of it.
        question: the whole text that the model gets, as a benchmark asks.
        answer: with two `{}` fields a span, in the order of `spans`, (start, end) in seconds of
            the file.
    """

    video: Path
    question: str
    answer: str
    spans: tuple[tuple[float, float], ...] = ()
    start: float | None = None
    end: float | None = None


#: Name of a benchmark, folder of its annotation files, split (None for the usual one).
Reader = Callable[[str, Path, str | None], list[Example]]
_READERS: list[Reader] = []


def read_by(reader: Reader) -> Reader:
    """Decorator of the function that reads annotation files."""
    _READERS.append(reader)
    return reader


def read_examples(task: str, data: Path, split: str | None = None) -> list[Example]:
    """What annotation files in the format of a benchmark teach.

    Args:
        task: whose format it is, see `vidllm list tasks`. data: the folder of files and videos.

    Raises:
        InputError: an unknown benchmark, files that are missing or wrong, or videos that are not
            there.
    """
    for entry in entry_points(group="vidllm.tasks"):  # the benchmarks stand above this room
        entry.load()
    if not _READERS:
        raise InputError("annotation files are read by vidllm.eval, which is not installed")
    return _READERS[-1](task, data, split)
