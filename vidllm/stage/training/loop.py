"""The training loop: three phases, bf16, and a checkpoint that a later run goes on from.

First the vision tower learns to see single frames (`steps_see`); it is then frozen and the cells
of `clips` clips are kept on disk. Then the temporal encoders learn what happens in those cells
(`steps_mix`), and at last they and the LLM learn to answer (`steps_answer`), under a mixture of
token reductions so that a compressed video is nothing new. The weights that are saved are an
exponential moving average. Two CPU cores train the shipped model; a GPU does it faster.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
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
from torch.utils.data import DataLoader

from vidllm.errors import InputError, WorkError
from vidllm.errors.disk import unwritten
from vidllm.progress import Stopped
from vidllm.progress.interruption import Halt, Interrupted, leave_to_parent
from vidllm.timecode import get_timecode

from .average import Average
from .cells import CellCache
from .checkpoint import (
    CHECKPOINT,
    Checkpoint,
    copy_into,
    give_generators,
    take_generators,
    write_checkpoint,
)
from .data import DataSettings, StageBatches
from .optimiser_moments import moments, restore_moments
from .run_folder import TrainingFolder, course
from .settings import PLANS, TrainSettings, build_model
from .start import start_from
from .trainee import Trainee, attend_by_products, planned_method


def _groups(module: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, embeddings and state-space rates do not."""
    plain: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    for name, p in module.named_parameters():
        free = p.dim() < 2 or getattr(p, "_no_weight_decay", False) or "embed" in name
        (plain if free else decayed).append(p)
    return [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def _rate(step: int, settings: TrainSettings) -> float:
    """Learning rate: warm-up at the start of every phase, then half a cosine within it."""
    phase = settings.phase(step)
    starts = {
        "see": 0,
        "mix": settings.steps_see,
        "answer": settings.steps_see + settings.steps_mix,
    }
    lengths = {
        "see": settings.steps_see,
        "mix": 2 * settings.steps_mix,
        "answer": settings.steps_answer,
    }
    along = (step - starts[phase]) / max(1, lengths[phase])
    warm = min(1.0, (step - starts[phase] + 1) / max(1, settings.warmup))
    full = settings.see_lr if phase == "see" else settings.lr
    return full * warm * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, along)))))


def train(settings: TrainSettings, *, quiet: bool = False) -> Path:
    """Train a model and save it (average weights, tokenizer, settings, log) in `settings.out`.

    Returns:
        The folder. `settings.minutes` may end a run early; the folder then holds what there is
        and a checkpoint, from which `resume` goes on.

    Raises:
        InputError: settings that cannot be, a folder that another training uses or that holds
            a model already, or a resume without a checkpoint.
        WorkError: files that cannot be written; the last whole checkpoint is kept.
        Interrupted: it was stopped from outside, between two steps.
    """
    folder = TrainingFolder(Path(settings.out))
    if settings.resume and not folder.path.is_dir():
        raise InputError(f"nothing to resume in {folder.path}: start without --resume")
    with folder.claimed():
        try:
            return _Run(settings, folder, quiet).go()
        except OSError as error:
            raise unwritten(error.filename or folder.path, error) from error


class _Run:
    """One call of `train`: what has to live from step to step."""

    def __init__(self, settings: TrainSettings, folder: TrainingFolder, quiet: bool) -> None:
        self.settings = settings
        self.folder = folder
        saved = folder.checkpoint(settings) if settings.resume else None
        if saved is None:
            folder.check_empty()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        cuda = torch.cuda.is_available() and settings.device in ("auto", "cuda")
        self.accelerator = Accelerator(mixed_precision="bf16", cpu=not cuda)
        set_seed(settings.seed)
        self.model, self.tokenizer = build_model(settings)
        self.plan = PLANS[settings.vision]
        for spec, _ in self.plan.mixture:
            planned_method(spec)
        if settings.init:
            start_from(self.model, self.tokenizer, settings.init)
        # Three times as fast on a CPU.
        self.model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not cuda:  # a quarter to a third of a step: the fused kernel's way back is slow there
            attend_by_products(self.model)
        trainee = Trainee(self.model, self.tokenizer, settings.weights)
        optimizer = torch.optim.AdamW(
            _groups(trainee, settings.weight_decay), lr=1.0, betas=(0.9, 0.98), fused=True
        )
        self.plain = trainee
        self.trainee, self.optimizer = self.accelerator.prepare(trainee, optimizer)
        self.average = Average(self.model, settings.ema)
        self.done = 0
        self.sums: dict[str, list[Tensor]] = {}
        self.halt = Halt()
        self.quiet = quiet
        self.began = time.monotonic()
        if saved is not None:
            self.take_up(saved)

    def take_up(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        path = self.folder.path / CHECKPOINT
        copy_into(self.plain.state_dict(), saved.part("trainee."), path, "weight")
        average = {str(k): v for k, v in enumerate(self.average.values)}
        copy_into(average, saved.part("average."), path, "average")
        restore_moments(self.optimizer, saved.part("optimizer."), path)
        self.sums = {k: list(v) for k, v in saved.part("sum.").items()}
        self.done = saved.step
        give_generators(saved, path)
        self.folder.cut_log(saved.step)
        self.write_model()  # it may be missing, or that of an older checkpoint

    def checkpoint(self) -> Checkpoint:
        """All that the next step depends on."""
        tensors = {f"trainee.{k}": v.clone() for k, v in self.plain.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in enumerate(self.average.values)}
        tensors |= {f"optimizer.{k}": v for k, v in moments(self.optimizer).items()}
        tensors |= {f"sum.{k}": torch.stack(v) for k, v in self.sums.items()}
        made = Checkpoint(self.done, course(self.settings), tensors)
        take_generators(made)
        return made

    def write_model(self) -> None:
        """The averaged weights in bfloat16 with tokenizer and settings, as a model folder."""
        self.average.swap(self.model)
        state = {
            k: v.detach().to("cpu", torch.bfloat16) for k, v in self.model.state_dict().items()
        }
        self.average.swap(self.model)
        gate = self.plain.heads.gate.state_dict()
        learned = {"mrt5": {k: v.detach().cpu().contiguous() for k, v in gate.items()}}
        self.folder.write_model(
            self.model, self.tokenizer, state, learned, self.settings, self.done
        )

    def save(self) -> None:
        """The checkpoint first: the model can be made of it again."""
        if not self.accelerator.is_main_process:
            return
        try:
            write_checkpoint(self.folder.path, self.checkpoint())
            self.write_model()
        except WorkError as error:
            raise WorkError(f"{error}; {self.folder.kept()}") from error

    def loader(self, phase: str) -> DataLoader[dict[str, Tensor]]:
        """Batches of a phase, from where the run is."""
        s = self.settings
        code = get_timecode("relative")
        if phase == "see":
            data = DataSettings(
                "train",
                s.see_batch,
                4,
                True,
                first=1_000_000,
                seed=s.seed,
                versions=self.plan.versions,
            )
            steps = range(self.done, s.steps_see)
        else:
            data = DataSettings(
                "train", s.batch, s.frames, clips=s.clips, seed=s.seed, versions=self.plan.versions
            )
            steps = range(self.done - s.steps_see, s.total - s.steps_see)
        return DataLoader(
            StageBatches(data, self.tokenizer, code, s.total),
            batch_size=None,
            sampler=steps,
            num_workers=s.workers,
            prefetch_factor=4 if s.workers else None,
            worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # else a new loader would draw from the run's own
        )

    def go(self) -> Path:
        """All steps that are left."""
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

    def work(self) -> None:
        s = self.settings
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            disable=self.quiet or not self.accelerator.is_main_process,
        )
        with bar, self.folder.log(new=not s.resume) as log:
            task = bar.add_task("train", total=s.total, completed=self.done)
            cache: CellCache | None = None
            code = get_timecode("relative")
            for phase in ("see", "answer"):
                if phase == "answer":
                    self.model.vision.requires_grad_(False).eval()
                    self.average.hold(self.model)
                    if self.done >= s.total:
                        break
                    path = Path(s.cells) if s.cells else self.folder.path / "cells.bin"
                    cache = CellCache(path, s, self.model)
                    data = DataSettings("train", frames=s.frames, versions=self.plan.versions)
                    clips = StageBatches(data, self.tokenizer, code, s.clips)
                    cache.fill(clips, bar, self.halt)
                elif self.done >= s.steps_see:
                    continue
                for batch in self.loader(phase):
                    self.step(batch, cache)
                    bar.advance(task)
                    self.report(log, bar, task)
                    if self.stop():
                        return
        if not s.total:
            self.save()

    def step(self, batch: dict[str, Tensor], cache: CellCache | None) -> None:
        """One optimiser step."""
        s, device = self.settings, self.accelerator.device
        if cache is not None:
            batch["cells"] = cache[batch["scene"]]
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        choice = np.random.default_rng([13, s.seed, self.done])
        names, shares = zip(*self.plan.mixture, strict=True)
        reduction = str(choice.choice(names, p=shares)) if s.reduce else "none"
        if reduction.startswith("random"):  # another draw every time, from a few plans
            reduction += f":seed={self.done % 97}"
        if cache is not None and choice.random() < self.short():  # a clip of half as many frames
            batch = {**batch, **_every_other(batch, int(choice.integers(2)))}
        if cache is not None and reduction == "none":  # a clip costs two to three of any other
            few = max(1, round(self.plan.uncompressed * s.batch))
            batch = {k: v[:few] for k, v in batch.items()}
        result = self.trainee(batch, phase=s.phase(self.done), reduction=reduction)
        self.accelerator.backward(result["total"])
        self.accelerator.clip_grad_norm_(self.trainee.parameters(), s.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(self.done, s)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.average.update(self.model, self.done)
        for key, value in result.items():
            self.sums.setdefault(key, []).append(value.detach().float())

    def short(self) -> float:
        """How often a step takes every other frame: always at first, later now and then."""
        s = self.settings
        along = (self.done - s.steps_see) / max(1, s.total - s.steps_see)
        return 1.0 if along < self.plan.short else 0.15

    def report(self, log: TextIO, bar: Progress, task: TaskID) -> None:
        s = self.settings
        if self.done % s.log_every and self.done != s.total:
            return
        means = {k: float(torch.stack(v).nanmean()) for k, v in sorted(self.sums.items())}
        row = {k: round(v, 4) for k, v in means.items()}
        row |= {"step": self.done, "seconds": round(time.monotonic() - self.began, 1)}
        log.write(json.dumps(row) + "\n")
        log.flush()
        short = " ".join(f"{k} {row[k]:.3f}" for k in ("total", "iou", "qa") if k in row)
        bar.update(task, description=f"train {short}")
        if self.quiet:
            print(json.dumps(row), flush=True)
        self.sums = {}

    def stop(self) -> bool:
        """Save when it is time; True when the run must end.

        Raises:
            Stopped: from outside, once it is saved.
        """
        s = self.settings
        over = bool(s.minutes) and time.monotonic() - self.began > 60 * s.minutes
        halted, ends = self.halt.wanted(), self.done in (s.total, s.steps_see)
        if over or halted or ends or self.done % s.save_every == 0:
            self.save()
        if halted and self.done < s.total:
            raise Stopped
        return over


def _every_other(batch: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    return {k: batch[k][:, first::2] for k in ("state", "seconds", "clock", "action", "cells")}
