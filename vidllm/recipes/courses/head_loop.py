"""The loop that the courses without an LLM share: one lesson, AdamW, a folder that goes on.

A `Lesson` says what is trained and gives batches by their number, so that a resumed run sees what
it would have seen. `teach` takes all steps in a folder, `learn` in memory, for measurements.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors.torch import save
from torch import Tensor, nn

from vidllm.errors.disk import unwritten
from vidllm.errors.writing import whole_file
from vidllm.models.heads.system import HeadSystem
from vidllm.models.heads.systems import WEIGHTS
from vidllm.progress.interruption import Halt
from vidllm.stage.training.average import Average
from vidllm.stage.training.run import TrainingRun, decay_groups, new_accelerator, on_gpu, run_in
from vidllm.stage.training.run_folder import STAMP, TrainingFolder

from .head_settings import OWN, HeadSettings

CARD = "README.md"
#: What the hub files a card under, by course.
_TAGS = {
    "alignment": "temporal-grounding",
    "choice": "video-question-answering",
    "recognition": "action-recognition",
}
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
        names = ("size", "steps", "batch", "clips", "lr", "seed", "warmup", "weight_decay", "clip",
                 "ema")  # fmt: skip
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
        return self.system.loss(batch)


class HeadRun(TrainingRun):
    """A lesson from step to step.

    Args:
        lesson: what is learnt. folder: where it is kept by `go`; nothing is written without it.
    """

    headline = ("total", "recall", "accuracy")

    def __init__(self, lesson: Lesson, folder: TrainingFolder, quiet: bool) -> None:
        s, self.lesson = lesson.settings, lesson
        saved = folder.checkpoint(lesson.same, s.steps) if s.resume else None
        cuda = on_gpu(s.device)
        # bfloat16 on a CPU gains nothing at these sizes.
        accelerator = new_accelerator("bf16" if cuda else "no", cuda)
        learner = _Learner(lesson.system).train()
        groups = decay_groups(learner, s.weight_decay)
        for group in groups:  # what is frozen has no moments
            group["params"] = [p for p in group["params"] if p.requires_grad]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))
        self.learner, optimizer = accelerator.prepare(learner, optimizer)
        super().__init__(
            s,
            folder,
            quiet,
            total=s.steps,
            fixed=lesson.same,
            accelerator=accelerator,
            plain=lesson.system,
            optimizer=optimizer,
            average=Average(lesson.system, s.ema),
        )
        self.spent = 0.0
        if saved is not None:
            self.spent = _seconds_of(folder.path)
            self.take_up(saved)

    def state(self) -> dict[str, Tensor]:
        """The weights that change, by name."""
        state, elsewhere = self.plain.state_dict(), self.lesson.system.elsewhere
        return {k: v for k, v in state.items() if not k.startswith(elsewhere)}

    def step(self) -> dict[str, Tensor]:
        """One step; its losses."""
        s, main = self.lesson.settings, self.accelerator
        batch = self.lesson.batch(self.done * main.num_processes + main.process_index)
        told = self.learner({k: v.to(main.device) for k, v in batch.items()})
        self.advance(told, s.lr * rate(self.done, s.steps, s.warmup))
        self.average.update(self.plain, self.done)
        return {name: value.detach().float() for name, value in told.items()}

    def work(self) -> None:
        with self.progress() as bar, self.folder.log(new=not self.lesson.settings.resume) as log:
            before = bar.add_task("features", total=None, visible=False)
            self.lesson.prepare(
                lambda done, total: bar.update(before, completed=done, total=total, visible=True),
                self.halt,
            )
            bar.update(before, visible=False)
            task = bar.add_task("train", total=self.total, completed=self.done)
            while self.done < self.total:
                self.note(self.step())
                bar.advance(task)
                self.report(log, bar, task)
                if self.stop():
                    return

    def write_model(self) -> None:
        """Config, words, card, averaged weights and stamp, each in one piece, the stamp last."""
        system, s = self.lesson.system, self.lesson.settings
        seconds = round(self.spent + time.monotonic() - self.began, 1)
        stamp = {**asdict(s), **self.lesson.same, "seconds": seconds}
        stamp |= {"init": Path(s.init).name, "features": Path(s.features).name}
        stamp |= {"out": self.folder.path.name, "step": self.done, "precision": self.precision}
        self.average.swap(system)
        weights = save(system.kept(), {"format": "pt"})
        self.average.swap(system)
        files = {
            **system.files(),
            CARD: self._card(seconds).encode(),
            WEIGHTS: weights,
            STAMP: json.dumps(stamp, indent=1).encode() + b"\n",
        }
        for name, data in files.items():
            path = self.folder.path / name
            try:
                with whole_file(path) as part:
                    part.write_bytes(data)
            except OSError as error:
                raise unwritten(path, error) from error

    def _card(self, seconds: float) -> str:
        s, config = self.lesson.settings, self.lesson.system.config
        count = sum(p.numel() for p in self.plain.parameters() if p.requires_grad)
        start = Path(config.start).name  # where it lies is nobody's business
        stands = f"the frozen model `{start}`" if start else "nothing"
        toy = " Toy: it stands on random weights, and what it says means nothing."
        told = [f"--{key} {getattr(s, key)}" for key in ("size", "steps", "batch")]
        told += [f"--lr {s.lr:g}", f"--seed {s.seed}"]
        told += [f"--clips {s.clips}"] * bool(s.clips) + [f"--init {start}"] * bool(s.init)
        told += [f"--option {name}={value}" for name, value in _own(s).items()]
        return (
            "---\nlicense: apache-2.0\nlibrary_name: vidllm\n"
            f"tags: [video, {_TAGS[config.course]}]\n---\n\n"
            f"# {config.recipe}\n\n{self.lesson.card()}{toy if s.size == 'tiny' else ''}\n\n"
            f"Stands on {stands}; {count / 1e6:.2f} M parameters were trained in {self.done} of "
            f"{s.steps} steps of {s.batch}, seed {s.seed}, {seconds:.0f} s. The losses are in "
            "`log.jsonl`; what it is worth is measured by "
            f"`vidllm bench claim {config.recipe}`.\n\n"
            f"Made by `vidllm train {config.recipe} {' '.join(told)}`; ask it with `--model` and "
            "this folder.\n"
        )


def _own(settings: HeadSettings) -> dict[str, Any]:
    """What `--option` gave; of a file its last part."""
    usual = {item.name: item.default for item in fields(HeadSettings)}
    given = {name: getattr(settings, name) for name in OWN}
    given["features"] = Path(settings.features).name
    return {name: value for name, value in given.items() if value != usual[name]}


def _seconds_of(folder: Path) -> float:
    """What a training took so far, as its stamp says."""
    try:
        return float(json.loads((folder / STAMP).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def rate(step: int, steps: int, warmup: int) -> float:
    """The share of the highest rate: linear warm-up, then half a cosine down to 2 %."""
    warmup = min(warmup, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def learn(lesson: Lesson, heard: Heard | None = None) -> list[dict[str, float]]:
    """All steps of a lesson in memory, for measurements; the losses of every step.

    The system ends in evaluation mode with averaged weights.
    """
    set_seed(lesson.settings.seed)
    lesson.prepare(heard or (lambda done, total: None), Halt())
    run = HeadRun(lesson, TrainingFolder(Path(lesson.settings.out)), quiet=True)
    told = [run.step() for _ in range(lesson.settings.steps)]
    run.average.swap(lesson.system)
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
    if settings.threads:
        torch.set_num_threads(settings.threads)

    def begin() -> HeadRun:
        if not settings.resume:
            folder.check_empty()
        set_seed(settings.seed)
        return HeadRun(lesson(), folder, quiet)

    return run_in(folder, begin, resume=settings.resume)
