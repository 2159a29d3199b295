"""What is asked of all, and where an arm with one seed of its training stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidllm.errors import InputError

from ...tasks.stage import Stage
from .arms import Arm
from .finished import Finished, read_finished


@dataclass(frozen=True)
class Exam:
    """What all are asked: clips of one split and seed, at shares of the video tokens.

    Attributes:
        keeps: below 1; all tokens are asked in any case. data: where the videos are made.
        max_new_tokens: the longest answer; the benchmark's where None.
    """

    split: str = "test"
    version: int = 2
    seed: int = 21
    limit: int = 200
    keeps: tuple[float, ...] = (0.25, 0.125, 0.05)
    data: Path | None = None
    max_new_tokens: int | None = None

    @property
    def task(self) -> Stage:
        """The benchmark."""
        return Stage(version=self.version)

    def check(self, config: Mapping[str, Any], place: Path | None) -> None:
        """See that a run is of this benchmark.

        Raises:
            InputError: it is not; the message says in what.
        """
        told: dict[str, Any] = {"task": self.task.name, "options": {"version": self.version}}
        told |= {"split": self.split, "seed": self.seed}
        for name, value in told.items():
            if config.get(name) != value:
                raise InputError(
                    f"{place} is a run with {name} {config.get(name)}, not {value}: give that "
                    "one, or another folder"
                )


@dataclass(frozen=True)
class Entry:
    """An arm with one seed of its training.

    Attributes:
        home: the folder of everything. model, answers: those of this arm; an arm that is not
            trained has no model of its own.
        start_run: a run that may have the answers of arms without a training; None for none.
        kept: a folder of finished arms, see `finished`; None for none.
    """

    arm: Arm
    seed: int
    home: Path
    start_run: Path | None = None
    kept: Path | None = None

    @property
    def label(self) -> str:
        return f"{self.arm.name}.{self.seed}" if self.arm.recipe else self.arm.name

    @property
    def model(self) -> Path:
        return self.home / "models" / self.label

    @property
    def answers(self) -> Path:
        return self.home / "answers" / self.label

    @property
    def file(self) -> Path | None:
        """Of the finished arm."""
        return None if self.kept is None else self.kept / f"{self.label}.jsonl.gz"

    @property
    def finished(self) -> Finished | None:
        """The arm as it was once finished; None where it was not, or nothing is kept."""
        return None if self.file is None else read_finished(self.file)
