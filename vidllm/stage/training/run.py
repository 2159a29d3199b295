"""One training from its first step to its last: log, saves, going on, and ending when asked to.

What is learnt is left to a subclass: `work` makes the steps, `write_model` writes what came of it.
"""

from __future__ import annotations

import ctypes
import io
import json
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.errors.disk import unwritten
from vidllm.progress import Stopped
from vidllm.progress.interruption import Halt, Interrupted

from .average import Average
from .checkpoint import (
    CHECKPOINT,
    Checkpoint,
    copy_into,
    give_generators,
    take_generators,
    write_checkpoint,
)
from .optimiser_moments import moments, restore_moments
from .run_folder import TrainingFolder


class RunSettings(Protocol):
    """What every training is told."""

    @property
    def minutes(self) -> float: ...
    @property
    def resume(self) -> bool: ...
    @property
    def save_every(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def clip(self) -> float: ...


def decay_groups(module: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, embeddings and state-space rates do not."""
    plain: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    for name, p in module.named_parameters():
        free = p.dim() < 2 or getattr(p, "_no_weight_decay", False) or "embed" in name
        (plain if free else decayed).append(p)
    return [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def on_gpu(device: str) -> bool:
    """Whether a training that is told a device, "auto" among them, goes to a GPU."""
    return torch.cuda.is_available() and device in ("auto", "cuda")


def multiplies_bfloat16(cuda: bool) -> bool:
    """Whether a device has instructions for products of bfloat16.

    Where a CPU has none, torch multiplies number by number: a training step takes many times as
    long as in float32.
    """
    if cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def accelerator_for(device: str, threads: int, seed: int, **options: Any) -> Accelerator:
    """A `new_accelerator` with torch's threads (0: as they are) and seed set.

    In bfloat16 where the device multiplies such numbers itself, else in float32.
    """
    if threads:
        torch.set_num_threads(threads)
    cuda = on_gpu(device)
    made = new_accelerator("bf16" if multiplies_bfloat16(cuda) else "no", cuda, **options)
    set_seed(seed)
    return made


def hold_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for what it needs next; whether it could.

    A training step on a CPU frees as much as it takes, and the C library gives large pieces back
    to the system at once: every step then begins with fresh pages. On a virtual machine, where a
    page is slow to come, these were half of a step: 3.8 and 2.2 CPU seconds of `vtg-llm`. For the
    C library of GNU (`man mallopt`); elsewhere nothing is done.
    """
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    pieces_of_their_own, trim_above, more_at_once = -4, -1, -2  # M_MMAP_MAX, M_TRIM_…, M_TOP_PAD
    told = mallopt(pieces_of_their_own, 0), mallopt(trim_above, -1), mallopt(more_at_once, 64 << 20)
    return all(told)


def new_accelerator(mixed_precision: str, cuda: bool, **options: Any) -> Accelerator:
    """An accelerator of its own precision, whatever was trained in this process before.

    The library keeps one precision a process and refuses another. On a CPU the process holds
    what it frees from here on.
    """
    AcceleratorState._reset_state()
    if not cuda:
        hold_freed_memory()
    return Accelerator(mixed_precision=mixed_precision, cpu=not cuda, **options)


def run_in(
    folder: TrainingFolder, begin: Callable[[], TrainingRun], *, resume: bool, alone: bool = True
) -> Path:
    """All of a training, in a folder that no other uses meanwhile; returns the folder.

    Args:
        begin: makes the run, once the folder is claimed.
        alone: false in processes beside the one that claims it.

    Raises:
        InputError: nothing to resume, or another training is at work there.
        WorkError: files that cannot be written.
    """
    if resume and not folder.path.is_dir():
        raise InputError(f"nothing to resume in {folder.path}: start without --resume")
    with folder.claimed() if alone else nullcontext():
        try:
            return begin().go()
        except OSError as error:
            raise unwritten(error.filename or folder.path, error) from error


class TrainingRun(ABC):
    """What lives from step to step.

    Args:
        settings: of the run. total: steps of the whole training. fixed: settings that `--resume`
            must not change.
        plain: what is trained, whose state makes a checkpoint. averaged: has the parameters whose
            average is saved. optimizer: over `plain`.
    """

    #: Of the log, told beside the progress bar.
    headline: tuple[str, ...] = ("total", "iou", "qa")

    def __init__(
        self,
        settings: RunSettings,
        folder: TrainingFolder,
        quiet: bool,
        *,
        total: int,
        fixed: Mapping[str, Any],
        accelerator: Accelerator,
        plain: torch.nn.Module,
        optimizer: Any,
        average: Average,
    ) -> None:
        self.run_settings, self.folder, self.quiet = settings, folder, quiet
        self.total, self.fixed = total, fixed
        self.accelerator, self.plain = accelerator, plain
        self.optimizer, self.average = optimizer, average
        self.done = 0
        self.sums: dict[str, list[Tensor]] = {}
        self.halt = Halt()
        self.began = time.monotonic()

    @property
    def precision(self) -> str:
        """Of the products in a step: "bfloat16" or "float32". Weights are float32 in both."""
        return "bfloat16" if self.accelerator.mixed_precision == "bf16" else "float32"

    @abstractmethod
    def work(self) -> None:
        """Make all steps that are left: `step`, `report` and `stop` for each."""

    @abstractmethod
    def write_model(self) -> None:
        """Write the averaged weights with all that makes them a model folder."""

    def state(self) -> dict[str, Tensor]:
        """What of `plain` makes a checkpoint."""
        return self.plain.state_dict()

    def ends_at(self) -> tuple[int, ...]:
        """Steps behind which a save is due."""
        return (self.total,)

    def take_up(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        path = self.folder.path / CHECKPOINT
        copy_into(self.state(), saved.part("trainee."), path, "weight")
        average = {str(k): v for k, v in enumerate(self.average.values)}
        copy_into(average, saved.part("average."), path, "average")
        restore_moments(self.optimizer, saved.part("optimizer."), path)
        self.sums = {k: list(v) for k, v in saved.part("sum.").items()}
        self.done = saved.step
        give_generators(saved, path)
        if not self.accelerator.is_main_process:
            return
        self.folder.cut_log(saved.step)
        self.write_model()  # it may be missing, or that of an older checkpoint

    def checkpoint(self) -> Checkpoint:
        """All that the next step depends on."""
        tensors = {f"trainee.{k}": v.clone() for k, v in self.state().items()}
        tensors |= {f"average.{k}": v for k, v in enumerate(self.average.values)}
        tensors |= {f"optimizer.{k}": v for k, v in moments(self.optimizer).items()}
        tensors |= {f"sum.{k}": torch.stack(v) for k, v in self.sums.items()}
        made = Checkpoint(self.done, dict(self.fixed), tensors)
        take_generators(made)
        return made

    def save(self) -> None:
        """The checkpoint first: the model can be made of it again."""
        if not self.accelerator.is_main_process:
            return
        try:
            write_checkpoint(self.folder.path, self.checkpoint())
            self.write_model()
        except WorkError as error:
            raise WorkError(f"{error}; {self.folder.kept()}") from error

    def go(self) -> Path:
        """All steps that are left.

        Raises:
            Interrupted: it was stopped from outside, between two steps.
        """
        try:
            with self.halt.heeded():
                self.work()
        except (Stopped, KeyboardInterrupt) as error:
            number = self.halt.number or signal.SIGINT
            raise Interrupted(f"stopped: {self.folder.kept()}", number) from error
        except RuntimeError as error:
            if not self.halt.wanted() or isinstance(error, WorkError):
                raise
            # The signal went to the workers too: the step in hand is lost, not the checkpoint.
            raise Interrupted(f"stopped: {self.folder.kept()}", self.halt.number) from error
        return self.folder.path

    def progress(self) -> Progress:
        """The bar."""
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            disable=self.quiet or not self.accelerator.is_main_process,
        )

    def advance(self, losses: Mapping[str, Tensor], rate: float) -> None:
        """One optimiser step down `losses["total"]`, whose graph is still there."""
        self.accelerator.backward(losses["total"])
        self.descend(rate)

    def descend(self, rate: float) -> None:
        """One optimiser step down the gradients that are there."""
        self.accelerator.clip_grad_norm_(self.plain.parameters(), self.run_settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def note(self, losses: Mapping[str, Tensor]) -> None:
        """Count the losses of a step into the next row of the log."""
        for key, value in losses.items():
            self.sums.setdefault(key, []).append(value.detach().float())

    def report(self, log: TextIO, bar: Progress, task: TaskID) -> None:
        """Write a row of the log where one is due."""
        if self.done % self.run_settings.log_every and self.done != self.total:
            return
        means = {k: float(torch.stack(v).nanmean()) for k, v in sorted(self.sums.items())}
        row = {k: round(v, 4) for k, v in means.items()}
        row |= {"step": self.done, "seconds": round(time.monotonic() - self.began, 1)}
        row |= {"cpu_seconds": round(time.process_time(), 1)}  # of this process, not its workers
        log.write(json.dumps(row) + "\n")
        log.flush()
        short = " ".join(f"{k} {row[k]:.3f}" for k in self.headline if k in row)
        bar.update(task, description=f"train {short}")
        if self.quiet and self.accelerator.is_main_process:
            print(json.dumps(row), flush=True)
        self.sums = {}

    def open_log(self) -> TextIO:
        """The log; of several processes one writes it."""
        if not self.accelerator.is_main_process:
            return io.StringIO()
        return self.folder.log(new=not self.run_settings.resume)

    def _anywhere(self, flag: bool) -> bool:
        """Whether a flag is set in one of the processes, so that all end at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        told = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)

    def stop(self) -> bool:
        """Save when it is time; True when the run must end.

        Raises:
            Stopped: from outside, once it is saved.
        """
        s = self.run_settings
        late = bool(s.minutes) and time.monotonic() - self.began > 60 * s.minutes
        over, halted = self._anywhere(late), self._anywhere(self.halt.wanted())
        ends = self.done in self.ends_at()
        if over or halted or ends or self.done % s.save_every == 0:
            self.save()
        if halted and self.done < self.total:
            raise Stopped
        return over
