"""The training loop: three phases, bf16, and a checkpoint that a later run goes on from.

First the vision tower learns to see single frames (`steps_see`); it is then frozen and the cells
of `clips` clips are kept on disk. Then the temporal encoders learn what happens in those cells
(`steps_mix`), and at last they and the LLM learn to answer (`steps_answer`), under a mixture of
token reductions so that a compressed video is nothing new. The weights that are saved are an
exponential moving average. Two CPU cores train the shipped model; a GPU does it faster.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vidllm.progress.interruption import leave_to_parent
from vidllm.timecode import get_timecode

from .average import Average
from .cells import CellCache
from .data import DataSettings, StageBatches
from .run import TrainingRun, accelerator_for, decay_groups, on_gpu, run_in
from .run_folder import TrainingFolder, course
from .settings import PLANS, TrainSettings, build_model
from .start import start_from, start_gate
from .trainee import Trainee, attend_by_blocks, planned_method


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
    return run_in(folder, lambda: _Run(settings, folder, quiet), resume=settings.resume)


class _Run(TrainingRun):
    """One call of `train`."""

    def __init__(self, settings: TrainSettings, folder: TrainingFolder, quiet: bool) -> None:
        self.settings = settings
        fixed = course(settings)
        saved = folder.begun(fixed, settings.total, resume=settings.resume)
        accelerator = accelerator_for(settings.device, settings.threads, settings.seed)
        self.model, self.tokenizer = build_model(settings)
        self.plan = PLANS[settings.vision]
        for spec, _ in self.plan.mixture:
            planned_method(spec)
        if settings.init:
            start_from(self.model, self.tokenizer, settings.init)
        # Three times as fast on a CPU.
        self.model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not on_gpu(settings.device):  # the fused kernel's way back is slow
            attend_by_blocks(self.model)
        trainee = Trainee(self.model, self.tokenizer, settings.weights)
        if settings.init:
            start_gate(trainee.heads.gate, settings.init)
        optimizer = torch.optim.AdamW(
            decay_groups(trainee, settings.weight_decay), lr=1.0, betas=(0.9, 0.98), fused=True
        )
        self.trainee, optimizer = accelerator.prepare(trainee, optimizer)
        super().__init__(
            settings,
            folder,
            quiet,
            total=settings.total,
            fixed=fixed,
            accelerator=accelerator,
            plain=trainee,
            optimizer=optimizer,
            average=Average(self.model, settings.ema),
        )
        if saved is not None:
            self.take_up(saved)

    def write_model(self) -> None:
        """The averaged weights in bfloat16 with tokenizer and settings, as a model folder."""
        self.average.swap(self.model)
        state = {
            k: v.detach().to("cpu", torch.bfloat16) for k, v in self.model.state_dict().items()
        }
        self.average.swap(self.model)
        trainee = cast(Trainee, self.plain)
        gate = trainee.heads.gate.state_dict()
        learned = {"mrt5": {k: v.detach().cpu().contiguous() for k, v in gate.items()}}
        told = {**asdict(self.settings), "step": self.done, "precision": self.precision}
        told |= {name: Path(told[name]).name for name in ("init", "cells")}
        self.folder.write_model(self.model, self.tokenizer, state, learned, told)

    def ends_at(self) -> tuple[int, ...]:
        return (self.settings.total, self.settings.steps_see)

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

    def work(self) -> None:
        s = self.settings
        bar = self.progress()
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
        self.advance(result, _rate(self.done, s))
        self.average.update(self.model, self.done)
        self.note(result)

    def short(self) -> float:
        """How often a step takes every other frame: always at first, later now and then."""
        s = self.settings
        along = (self.done - s.steps_see) / max(1, s.total - s.steps_see)
        first = self.plan.short if s.half_clips is None else s.half_clips
        return 1.0 if along < first else 0.15


def _every_other(batch: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    return {k: batch[k][:, first::2] for k in ("state", "seconds", "clock", "action", "cells")}
