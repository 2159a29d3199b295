"""The loop that the courses without an LLM share: one lesson, AdamW, a folder that goes on.

A `Lesson` says what is trained and gives batches by their number, so that a resumed run sees what
it would have seen. `Pupil` takes steps in memory (for measurements), `teach` in a folder.
"""

from __future__ import annotations

import json
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from safetensors.torch import save
from torch import Tensor, nn

from vidllm.errors import InputError, WorkError
from vidllm.errors.disk import unwritten
from vidllm.errors.writing import whole_file
from vidllm.models.heads.system import HeadSystem
from vidllm.models.heads.systems import WEIGHTS
from vidllm.progress import Stopped
from vidllm.progress.interruption import Halt, Interrupted
from vidllm.stage.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    copy_into,
    give_generators,
    read_checkpoint,
    take_generators,
    write_checkpoint,
)
from vidllm.stage.training.optimiser_moments import moments, restore_moments
from vidllm.stage.training.run_folder import STAMP, TrainingFolder

from .head_settings import HeadSettings

CARD = "README.md"
#: Told of work that has a length: (done, total).
Heard = Callable[[int, int], None]


class Lesson(ABC):
    """What a course teaches.

    Attributes:
        system: that learns. settings: with all that the course filled in.
    """

    system: HeadSystem
    settings: HeadSettings

    @abstractmethod
    def prepare(self, heard: Heard, halt: Halt) -> None:
        """Do what is done once before the first step; what a stopped run did is kept.

        Raises:
            Stopped: `halt` wants it.
        """

    @abstractmethod
    def batch(self, index: int) -> dict[str, Tensor]:
        """Batch `index`, always the same, on the CPU."""

    @abstractmethod
    def card(self) -> str:
        """What the system was taught, as a paragraph of its card."""

    @property
    def same(self) -> dict[str, Any]:
        """What must not change on the way; `--resume` must have the same."""
        told = asdict(self.settings)
        names = ("size", "steps", "batch", "clips", "seed")
        return {
            "recipe": self.system.config.recipe,
            "mark": self.system.config.mark,
            **{name: told[name] for name in names},
        }


class _Learner(nn.Module):
    """A system whose forward is its loss, for accelerate."""

    def __init__(self, system: HeadSystem) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return cast("dict[str, Tensor]", self.system.loss(batch))  # type: ignore[operator]


class Pupil:
    """A system with its optimiser, from step to step.

    Args:
        lesson: what it learns.
    """

    def __init__(self, lesson: Lesson) -> None:
        s = lesson.settings
        self.lesson = lesson
        cuda = torch.cuda.is_available() and s.device in ("auto", "cuda")
        # bfloat16 on a CPU gains nothing at these sizes.
        self.accelerator = Accelerator(mixed_precision="bf16" if cuda else "no", cpu=not cuda)
        self.weights = [p for p in lesson.system.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.weights if p.dim() > 1], "weight_decay": s.weight_decay},
            {"params": [p for p in self.weights if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))
        learner = _Learner(lesson.system).train()
        self.learner, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.done = 0

    def step(self) -> dict[str, Tensor]:
        """One step; its losses, without a graph."""
        s, rank = self.lesson.settings, self.accelerator.process_index
        number = self.done * self.accelerator.num_processes + rank
        batch = self.lesson.batch(number)
        told = self.learner({k: v.to(self.accelerator.device) for k, v in batch.items()})
        self.accelerator.backward(told["total"])
        self.accelerator.clip_grad_norm_(self.learner.parameters(), s.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * rate(self.done, s.steps, s.warmup)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return {name: value.detach().float() for name, value in told.items()}


def rate(step: int, steps: int, warmup: int) -> float:
    """The share of the highest rate: linear warm-up, then half a cosine down to 2 %."""
    warmup = min(warmup, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def learn(lesson: Lesson) -> list[dict[str, float]]:
    """All steps of a lesson in memory; the losses of every step. The system ends in eval mode."""
    set_seed(lesson.settings.seed)
    lesson.prepare(lambda done, total: None, Halt())
    pupil = Pupil(lesson)
    told = [pupil.step() for _ in range(lesson.settings.steps)]
    lesson.system.eval()
    return [{name: float(value) for name, value in one.items()} for one in told]


def teach(lesson: Callable[[], Lesson], settings: HeadSettings, *, quiet: bool = False) -> Path:
    """Train in a folder: all steps, or those that are left.

    Args:
        lesson: makes the lesson, once the folder is claimed and torch is seeded.

    Returns:
        The folder; `settings.minutes` may end a run early, and `resume` goes on.

    Raises:
        InputError: settings that cannot be, a folder that another training uses or that holds a
            model already, or a resume without a checkpoint.
        WorkError: files that cannot be written; the last whole checkpoint is kept.
        Interrupted: it was stopped from outside, between two steps.
    """
    folder = TrainingFolder(Path(settings.out))
    if settings.resume and not folder.path.is_dir():
        raise InputError(f"nothing to resume in {folder.path}: start without --resume")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with folder.claimed():
        if not settings.resume:
            folder.check_empty()
        try:
            set_seed(settings.seed)
            return _Run(lesson(), folder, quiet).go()
        except OSError as error:
            raise unwritten(error.filename or folder.path, error) from error


class _Run:
    """One call of `teach`."""

    def __init__(self, lesson: Lesson, folder: TrainingFolder, quiet: bool) -> None:
        self.lesson, self.folder, self.quiet = lesson, folder, quiet
        self.settings = lesson.settings
        self.halt, self.began = Halt(), time.monotonic()
        saved = self._saved() if self.settings.resume else None
        self.pupil = Pupil(lesson)
        self.sums: dict[str, list[Tensor]] = {}
        self.spent = 0.0
        self.last: dict[str, float] = {}
        if saved is not None:
            self._take_up(saved)

    def _saved(self) -> Checkpoint:
        found = read_checkpoint(self.folder.path)
        for name, value in self.lesson.same.items():
            if found.settings.get(name) != value:
                raise InputError(
                    f"{self.folder.path} is trained with {name} {found.settings.get(name)}, not "
                    f"{value}: give the options of that training"
                )
        return found

    def _own(self) -> dict[str, Tensor]:
        """The weights that change, by name."""
        system = self.lesson.system
        state = system.state_dict()
        return {k: v for k, v in state.items() if not k.startswith(system.elsewhere)}

    def _take_up(self, saved: Checkpoint) -> None:
        path = self.folder.path / CHECKPOINT
        copy_into(self._own(), saved.part("system."), path, "weight")
        restore_moments(self.pupil.optimizer, saved.part("optimizer."), path)
        self.sums = {k: list(v) for k, v in saved.part("sum.").items()}
        self.pupil.done = saved.step
        self.spent = float(saved.settings.get("seconds", 0.0))
        self.last = dict(saved.settings.get("last", {}))
        give_generators(saved, path)
        self.folder.cut_log(saved.step)
        self._write_model()

    def _seconds(self) -> float:
        return round(self.spent + time.monotonic() - self.began, 1)

    def save(self) -> None:
        """The checkpoint first: the model can be made of it again."""
        if not self.pupil.accelerator.is_main_process:
            return
        tensors = {f"system.{k}": v.clone() for k, v in self._own().items()}
        tensors |= {f"optimizer.{k}": v for k, v in moments(self.pupil.optimizer).items()}
        tensors |= {f"sum.{k}": torch.stack(v) for k, v in self.sums.items()}
        told = {**self.lesson.same, "seconds": self._seconds(), "last": self.last}
        made = Checkpoint(self.pupil.done, told, tensors)
        take_generators(made)
        try:
            write_checkpoint(self.folder.path, made)
            self._write_model()
        except WorkError as error:
            raise WorkError(f"{error}; {self.folder.kept()}") from error

    def _write_model(self) -> None:
        """Config, words, card, weights and stamp, each in one piece, the stamp last."""
        system, s = self.lesson.system, self.settings
        stamp = {**asdict(s), "out": self.folder.path.name, "step": self.pupil.done}
        stamp |= {"seconds": self._seconds(), **self.lesson.same}
        files = {
            **system.files(),
            CARD: self._card().encode(),
            WEIGHTS: save(system.kept(), {"format": "pt"}),
            STAMP: json.dumps(stamp, indent=1).encode() + b"\n",
        }
        for name, data in files.items():
            path = self.folder.path / name
            try:
                with whole_file(path) as part:
                    part.write_bytes(data)
            except OSError as error:
                raise unwritten(path, error) from error

    def _card(self) -> str:
        s, config = self.settings, self.lesson.system.config
        count = sum(p.numel() for p in self.pupil.weights)
        losses = ", ".join(f"{k} {v:.3f}" for k, v in self.last.items())
        stands = f"the frozen model `{config.start}`" if config.start else "nothing"
        toy = " Toy: it stands on random weights, and what it says means nothing."
        return (
            f"# {config.recipe}\n\n{self.lesson.card()}{toy if s.size == 'tiny' else ''}\n\n"
            f"Stands on {stands}; {count / 1e6:.2f} M parameters were trained in "
            f"{self.pupil.done} of {s.steps} steps of {s.batch}, seed {s.seed}, "
            f"{self._seconds():.0f} s. At the end: {losses or 'not logged yet'}.\n\n"
            f"Made by `vidllm train {config.recipe} --size {s.size} --steps {s.steps} --seed "
            f"{s.seed}`; ask it with `--model` and this folder.\n"
        )

    def go(self) -> Path:
        """All steps that are left."""
        try:
            with self.halt.heeded():
                self._work()
        except (Stopped, KeyboardInterrupt) as error:
            number = self.halt.number or signal.SIGINT
            raise Interrupted(f"stopped: {self.folder.kept()}", number) from error
        return self.folder.path

    def _work(self) -> None:
        s, main = self.settings, self.pupil.accelerator.is_main_process
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            disable=self.quiet or not main,
        )
        with bar, self.folder.log(new=not s.resume) as log:
            before = bar.add_task("features", total=None, visible=False)
            self.lesson.prepare(
                lambda done, total: bar.update(before, completed=done, total=total, visible=True),
                self.halt,
            )
            bar.update(before, visible=False)
            task = bar.add_task("train", total=s.steps, completed=self.pupil.done)
            while self.pupil.done < s.steps:
                for name, value in self.pupil.step().items():
                    self.sums.setdefault(name, []).append(value)
                bar.advance(task)
                self._report(log)
                if self.last:
                    bar.update(task, description=f"train {self.last.get('total', 0.0):.3f}")
                if self._stop():
                    return

    def _report(self, log: TextIO) -> None:
        s, done = self.settings, self.pupil.done
        if done % s.log_every and done != s.steps:
            return
        means = {k: float(torch.stack(v).nanmean()) for k, v in sorted(self.sums.items())}
        self.last = {k: round(v, 4) for k, v in means.items() if math.isfinite(v)}
        log.write(json.dumps({**self.last, "step": done, "seconds": self._seconds()}) + "\n")
        log.flush()
        self.sums = {}

    def _stop(self) -> bool:
        """Save when it is time; True when the run must end."""
        s, done = self.settings, self.pupil.done
        over = bool(s.minutes) and time.monotonic() - self.began > 60 * s.minutes
        if over or self.halt.wanted() or done == s.steps or done % s.save_every == 0:
            self.save()
        if self.halt.wanted() and done < s.steps:
            raise Stopped
        return over
