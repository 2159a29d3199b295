"""What a benchmark is to the harness: items to ask, replies to read, scores to give.

A task never sees a model: the runner asks, the rows are kept, and scores are made from rows alone,
so that they can be made again without the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError
from vidllm.errors.registry import Registry
from vidllm.errors.schema import Anything, Array, Number, Schema

from ..scores.common import Interval, Scores

#: What tasks are about; the report groups by it.
FAMILIES = ("grounding", "captions", "highlights", "alignment", "retrieval", "choice", "made")

#: [begin, end] in seconds, as `Item.truth`.
TRUE_SPAN = Array(Number(), 2, 2)


@dataclass(frozen=True)
class Item:
    """One thing to ask about one video.

    Args:
        id: unique in the task.
        vid: the official id of the video; confidence intervals are clustered by it.
        video: its file below the folder of videos, with or without extension.
        prompt: the whole text that the model gets, frozen by a snapshot test.
        truth: what the official file says, JSON.
        kind: of question, where a task has several.
        duration: seconds by the official file, None where it does not say.
        start, end: seconds between which to look; None for the whole video.
        choices: texts of the options of a multiple choice; their letters are A, B, ….
        groups: categories by name, e.g. {"duration": "short"}; the report has bars for each.
    """

    id: str
    vid: str
    video: str
    prompt: str
    truth: Any
    kind: str = ""
    duration: float | None = None
    start: float | None = None
    end: float | None = None
    choices: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.choices)])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Item:
        """The item of `as_dict`; other entries are left aside."""
        given = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        return cls(**{**given, "choices": tuple(given.get("choices", ()))})


@dataclass(frozen=True)
class Response:
    """What came back for an item.

    Args:
        text: the answer with its times as seconds.
        raw: the model's own words, time tokens and all.
        spans: times that the model's own time code found in it, in seconds of the video.
        letters: natural log-probability of each option's letter as the answer's first token,
            over these letters and all other tokens; None where it was not measured.
        duration: seconds of the file that was read; None where none was.
        error: why there is no answer (a broken video, …), in one line; None where there is one.
    """

    text: str = ""
    raw: str = ""
    spans: tuple[Interval, ...] = ()
    letters: Mapping[str, float] | None = None
    duration: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Response:
        """The response of `as_dict`; other entries are left aside."""
        given = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        spans = tuple((float(s), float(e)) for s, e in given.get("spans", ()))
        return cls(**{**given, "spans": spans})


class Task(ABC):
    """A benchmark; one file each, registered by name.

    Attributes:
        family: one of `FAMILIES`. summary: one line. headline: the score that stands for all.
        splits: names, the usual one first. files: official annotation files by split, relative to
            the data folder; alternatives are tried in order.
        citation: the paper. licence: of the annotations, and what to mind. home: where the
            official files are. hub: data set on the Hugging Face hub with the same records, or "".
        max_new_tokens: the longest answer. truth: what `Item.truth` must be.
    """

    name: ClassVar[str] = ""
    family: ClassVar[str]
    summary: ClassVar[str]
    headline: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    files: ClassVar[Mapping[str, tuple[str, ...]]]
    citation: ClassVar[str]
    licence: ClassVar[str]
    home: ClassVar[str] = ""
    hub: ClassVar[str] = ""
    max_new_tokens: ClassVar[int] = 64
    truth: ClassVar[Schema] = Anything()

    def truth_schema(self, item: Item) -> Schema:
        """What `Item.truth` of such a question must be."""
        return self.truth

    @abstractmethod
    def items(self, data: Path, split: str) -> list[Item]:
        """Everything that the benchmark asks, in the order of its files.

        Args:
            data: folder with the official annotation files.
            split: one of `splits`.

        Raises:
            InputError: a file that is missing or not in the official format; one line that names
                the file and the field.
        """

    @abstractmethod
    def read(self, item: Item, response: Response) -> Any:
        """What a response says, as JSON; None where it cannot be read (a parse failure).

        Never raises for what a model says.
        """

    @abstractmethod
    def value(self, item: Item, response: Response) -> float | None:
        """What one answer earns in [0, 1]: for the running score, intervals and worst cases.

        A failure earns 0. None where a single answer has no score of its own.
        """

    @abstractmethod
    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """All scores of a run, the headline and `parse_failures` among them.

        Args:
            items, responses: one of each, in the order of the files; failed ones are there too.
            official: as the benchmark's own script scores, with its defects.
        """


TASKS: Registry[Task] = Registry("task")


def check_split(task: type[Task] | Task, split: str | None) -> str:
    """The split, or the task's usual one. Raises InputError for one that the task has not."""
    if split is None:
        return task.splits[0]
    if split not in task.splits:
        known = ", ".join(task.splits)
        raise InputError(f"--split of {task.name} must be one of {known}, got {split!r}")
    return split
