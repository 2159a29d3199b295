"""Training and asking the arms, each in a folder of its own, so that all goes on where it stopped.

| folder | what |
|---|---|
| `cells/` | what the frozen tower sees in the training clips, for all trainings |
| `models/ARM.SEED/` | a training, as `vidllm train` leaves it |
| `answers/ARM.SEED/` | a run over the test clips, as `vidllm eval` leaves it |
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidllm.cli.options import CommonOptions, say
from vidllm.errors import InputError
from vidllm.errors.schema import parse
from vidllm.recipes import get_recipe
from vidllm.recipes.courses import find_course
from vidllm.recipes.courses.variant import as_trained
from vidllm.stage.training.checkpoint import CHECKPOINT
from vidllm.stage.training.run_folder import LOG, STAMP

from ...run.evaluate import evaluate
from ...run.journal import Key, Row
from ...run.run_config import Order
from ...run.run_settings import Wanted
from ..methods.measured_scores import kinds_of
from .answers import answers_of
from .arms import START, Arm, Budget
from .entries import Entry, Exam
from .finished import check_size, size_of, start_mark, write_finished

_ADVICE = "delete the folder, to have it trained again"


def stamp_of(entry: Entry) -> dict[str, Any]:
    """What a training says of itself, of a finished arm or its folder; {} where none was begun."""
    return _folder_stamp(entry) if (kept := entry.finished) is None else kept.stamp


def _folder_stamp(entry: Entry) -> dict[str, Any]:
    file = entry.model / STAMP
    if not file.is_file():
        return {}
    found = parse(file.read_bytes(), file, _ADVICE)
    if not isinstance(found, dict):
        raise InputError(f"{file} is no object: {_ADVICE}")
    return found


def is_trained(entry: Entry, budget: Budget, *, here: bool = False) -> bool:
    """Whether the training is over.

    Args:
        here: and its model lies in the folder.

    Raises:
        InputError: the folder holds a training of another budget or mixture.
    """
    told = _folder_stamp(entry) if here else stamp_of(entry)
    have = {**told, "size": size_of(told)}
    wanted = replace(budget, lr=entry.arm.rate(budget))
    for name in ("size", "steps", "batch", "clips", "lr"):
        value = getattr(wanted, name)
        if told and have.get(name) != value:
            raise InputError(
                f"{entry.model} was trained with {name} {have.get(name)}, not {value}: give the "
                "budget of that folder, or another --out"
            )
    if "mixture" in told:  # older stamps do not tell it
        settings = entry.arm.settings(budget, entry.model, entry.home, entry.seed)
        mixture = as_trained(get_recipe(entry.arm.recipe), settings).mixture
        if told["mixture"] != [list(part) for part in mixture]:
            raise InputError(
                f"{entry.label} was trained under another mixture of reductions than it has now: "
                f"delete {entry.model} and its finished file, to train it again"
            )
    return bool(told) and int(told["step"]) >= budget.steps


def _train(entry: Entry, budget: Budget, *, threads: int, workers: int, quiet: bool) -> None:
    """Train an arm, or go on with it, as `vidllm train` does.

    Raises:
        InputError: an arm that cannot be trained. Interrupted: it was stopped from outside.
    """
    recipe = get_recipe(entry.arm.recipe)
    cells = entry.home / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    settings = replace(
        entry.arm.settings(budget, entry.model, cells, entry.seed),
        resume=(entry.model / CHECKPOINT).is_file(),
        threads=threads,
        workers=workers,
        quiet=quiet,
    )
    own = replace(budget, lr=entry.arm.rate(budget))
    say(f"training {entry.label}: {own.told()}, seed {entry.seed}")
    find_course(recipe).train(recipe, settings)


def order_of(entry: Entry, exam: Exam, jobs: int) -> Order:
    """The run that asks an arm.

    The start is asked with all tokens once; a trained arm has its own answers to all tokens.
    """
    spec = entry.arm.asked or None
    pairs = tuple((spec, keep) for keep in exam.keeps if entry.arm.takes(keep))
    return Order(
        task=exam.task,
        wanted=Wanted(pairs, full=bool(entry.arm.recipe) or entry.arm.name == START),
        split=exam.split,
        limit=exam.limit,
        data=exam.data,
        max_new_tokens=exam.max_new_tokens,
        out=entry.answers,
        kinds=kinds_of(exam.task),
        skip_refused=True,
        jobs=jobs,
    )


def ask(entry: Entry, exam: Exam, options: CommonOptions, init: str, jobs: int) -> None:
    """Ask an arm every question, or go on."""
    model = str(entry.model) if entry.arm.recipe else init or None
    say(f"asking {entry.label}: {exam.limit} clips")
    evaluate(order_of(entry, exam, jobs), replace(options, model=model, seed=exam.seed))


@dataclass(frozen=True)
class Cost:
    """What a training took: counts of its stamp, seconds of its log.

    Attributes:
        trained: parameters by part. cpu_seconds: a step, of the training process.
    """

    steps: int
    batch: int
    clips: int
    lr: float
    trained: dict[str, int]
    cpu_seconds: float | None


def cost_of(entry: Entry) -> Cost | None:
    """The cost of a training that is over; None for an arm without one."""
    told = stamp_of(entry)
    if not told:
        return None
    names = ("steps", "batch", "clips")
    counts = {name: int(told.get(name) or 0) for name in names}
    rate = float(told.get("lr") or get_recipe(entry.arm.recipe).lr)
    return Cost(
        **counts, lr=rate, trained=dict(told.get("trained") or {}),
        cpu_seconds=_cpu_seconds(entry),
    )  # fmt: skip


def _cpu_seconds(entry: Entry) -> float | None:
    """Of a step, by the log of the training."""
    if (kept := entry.finished) is not None:
        return kept.cpu_seconds
    parts = [
        (two["cpu_seconds"] - one["cpu_seconds"]) / (two["step"] - one["step"])
        for one, two in pairwise(_log(entry.model / LOG))
        if two["step"] > one["step"] and two["cpu_seconds"] > one["cpu_seconds"]  # one process
    ]
    return statistics.fmean(parts) if parts else None


def _log(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "cpu_seconds" in row:
                yield row


@dataclass(frozen=True)
class Measurement:
    """All arms in one folder, trained and asked one after the other.

    Attributes:
        seeds: trainings of every arm.
        start_run: a run of `vidllm bench methods` or `vidllm eval` that asked the start about the
            same clips (it may go on): its answers are taken, where all are there.
        kept: a folder of finished arms, which are not run again and to which new ones are added.

    Raises:
        InputError: the finished arms are of another size.
    """

    home: Path
    arms: Sequence[Arm]
    budget: Budget
    exam: Exam
    seeds: int = 1
    start_run: Path | None = None
    kept: Path | None = None

    def __post_init__(self) -> None:
        if self.kept is not None:  # also of arms that are not asked for: one table has one size
            check_size(self.kept, self.budget.size)

    @property
    def entries(self) -> list[Entry]:
        """Every arm with every seed, the first seed of all before the second of any."""
        return [
            Entry(arm, seed, self.home, self.start_run, self.kept)
            for seed in range(self.seeds)
            for arm in self.arms
            if arm.recipe or seed == 0
        ]

    def run(
        self, options: CommonOptions, *, train: bool, threads: int, workers: int, jobs: int
    ) -> None:
        """Train what is not trained yet, and ask what is trained and not asked yet.

        Raises:
            InputError: a folder of another budget, or what training and asking raise.
            Interrupted: it was stopped from outside; the same command goes on.
        """
        for entry in self.entries:
            asked = self.is_asked(entry)
            # Of a kept arm that is to answer more there may be no model here.
            if entry.arm.recipe and not asked and not is_trained(entry, self.budget, here=True):
                if not train:
                    continue
                _train(entry, self.budget, threads=threads, workers=workers, quiet=options.json)
            if not asked:
                ask(entry, self.exam, options, self.budget.init, jobs)
            self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        """Add a finished arm to those that are kept, where it is not there with all its answers."""
        if entry.file is None or (found := self.answers(entry)) is None:
            return
        config, rows = found
        kept = entry.finished
        if kept is None or not rows.keys() <= kept.rows.keys():
            start, stamp = start_mark(self.budget.init), stamp_of(entry)
            seconds = _cpu_seconds(entry)
            write_finished(entry.file, start, config, stamp, seconds, rows.values())

    def finished(self) -> tuple[list[Entry], list[Entry]]:
        """Those that are trained and asked, and those that are not."""
        done = [e for e in self.entries if self.is_asked(e)]
        return done, [e for e in self.entries if e not in done]

    def is_asked(self, entry: Entry) -> bool:
        """Whether all answers are there."""
        return self.answers(entry) is not None

    def answers(self, entry: Entry) -> tuple[dict[str, Any], dict[Key, Row]] | None:
        """Configuration and rows of an arm; None where an answer is missing."""
        if entry.arm.recipe and not is_trained(entry, self.budget):
            return None
        return answers_of(entry, self.exam, self.budget.init)

    def told(self) -> dict[str, Any]:
        """The budget and how much is asked, for the table."""
        told = {"told": self.budget.told(), "seeds": self.seeds, "keeps": list(self.exam.keeps)}
        told |= {"max_new_tokens": self.exam.max_new_tokens}
        return {**asdict(self.budget), **told, "borrowed": self.start_run is not None}
