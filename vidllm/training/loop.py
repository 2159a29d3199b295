"""The training loop: three phases, bf16, checkpoints that a later run takes up where they ended.

First the vision tower learns to see single frames (`steps_see`); it is then frozen and the cells
of `clips` clips are kept on disk. Then the temporal encoders learn what happens in those cells
(`steps_mix`), and at last they and the LLM learn to answer (`steps_answer`), under a mixture of
token reductions so that a compressed video is nothing new. The weights that are saved are an
exponential moving average. Two CPU cores train the shipped model; a GPU does it faster.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
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
from transformers import PreTrainedTokenizerFast

from ..errors import InputError
from ..models.native import NativeVideoLLM
from ..timecode import get_timecode
from .average import Average
from .cells import CellCache
from .data import DataSettings, StageBatches
from .settings import MIXTURE, TrainSettings, build_model
from .trainee import Trainee


class _Clock:
    """How far the run is; saved with the checkpoint."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


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
        and `state/`, from which `resume` goes on.

    Raises:
        InputError: settings that cannot be, or a resume without a checkpoint.
    """
    return _Run(settings, quiet).go()


class _Run:
    """One call of `train`: what has to live from step to step."""

    def __init__(self, settings: TrainSettings, quiet: bool) -> None:
        self.settings = settings
        self.out = Path(settings.out)
        self.state = self.out / "state"
        if settings.resume and not self.state.is_dir():
            raise InputError(f"nothing to resume in {self.out}: start without --resume")
        self.out.mkdir(parents=True, exist_ok=True)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        cuda = torch.cuda.is_available() and settings.device in ("auto", "cuda")
        self.accelerator = Accelerator(mixed_precision="bf16", cpu=not cuda)
        set_seed(settings.seed)
        self.model, self.tokenizer = build_model(settings)
        if settings.init:
            _start_from(self.model, settings.init)
        # Three times as fast on a CPU.
        self.model.vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainee = Trainee(self.model, self.tokenizer, settings.weights)
        optimizer = torch.optim.AdamW(
            _groups(trainee, settings.weight_decay), lr=1.0, betas=(0.9, 0.98), fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, settings))
        self.trainee, self.optimizer = self.accelerator.prepare(trainee, optimizer)
        self.average, self.clock = Average(self.model, settings.ema), _Clock()
        self.accelerator.register_for_checkpointing(self.schedule, self.average, self.clock)
        if settings.resume:
            self.accelerator.load_state(str(self.state))
        self.quiet = quiet
        self.began = time.monotonic()
        self.sums: dict[str, list[Tensor]] = {}

    def loader(self, phase: str) -> DataLoader[dict[str, Tensor]]:
        """Batches of a phase, from where the run is."""
        s = self.settings
        code = get_timecode("relative")
        if phase == "see":
            data = DataSettings("train", s.see_batch, 4, True, first=1_000_000, seed=s.seed)
            steps = range(self.clock.step, s.steps_see)
        else:
            data = DataSettings("train", s.batch, s.frames, clips=s.clips, seed=s.seed)
            steps = range(self.clock.step - s.steps_see, s.total - s.steps_see)
        return DataLoader(
            StageBatches(data, self.tokenizer, code, s.total),
            batch_size=None,
            sampler=steps,
            num_workers=s.workers,
            prefetch_factor=4 if s.workers else None,
        )

    def go(self) -> Path:
        s = self.settings
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            disable=self.quiet or not self.accelerator.is_main_process,
        )
        log = (self.out / "log.jsonl").open("a" if s.resume else "w")
        with bar, log:
            task = bar.add_task("train", total=s.total, completed=self.clock.step)
            cache: CellCache | None = None
            code = get_timecode("relative")
            for phase in ("see", "answer"):
                if phase == "answer":
                    self.model.vision.requires_grad_(False).eval()
                    self.average.hold(self.model)
                    path = Path(s.cells) if s.cells else self.out / "cells.bin"
                    cache = CellCache(path, s, self.model)
                    data = DataSettings("train", frames=s.frames)
                    cache.fill(StageBatches(data, self.tokenizer, code, s.clips), bar)
                elif self.clock.step >= s.steps_see:
                    continue
                for batch in self.loader(phase):
                    self.step(batch, cache)
                    bar.advance(task)
                    self.report(log, bar, task)
                    if self.stop():
                        return self.out
        return self.out

    def step(self, batch: dict[str, Tensor], cache: CellCache | None) -> None:
        """One optimiser step."""
        s, device = self.settings, self.accelerator.device
        if cache is not None:
            batch["cells"] = cache[batch["scene"]]
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        choice = np.random.default_rng([13, s.seed, self.clock.step])
        names, shares = zip(*MIXTURE, strict=True)
        reduction = str(choice.choice(names, p=shares)) if s.reduce else "none"
        if reduction.startswith("random"):  # another draw every time, from a few plans
            reduction += f":seed={self.clock.step % 97}"
        if cache is not None and choice.random() < 0.15:  # a clip of half as many frames
            batch = {**batch, **_every_other(batch, int(choice.integers(2)))}
        result = self.trainee(batch, phase=s.phase(self.clock.step), reduction=reduction)
        self.accelerator.backward(result["total"])
        self.accelerator.clip_grad_norm_(self.trainee.parameters(), s.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.step += 1
        self.average.update(self.model, self.clock.step)
        for key, value in result.items():
            self.sums.setdefault(key, []).append(value.detach().float())

    def report(self, log: TextIO, bar: Progress, task: TaskID) -> None:
        s = self.settings
        if self.clock.step % s.log_every and self.clock.step != s.total:
            return
        row = {k: round(float(torch.stack(v).nanmean()), 4) for k, v in self.sums.items()}
        row |= {"step": self.clock.step, "seconds": round(time.monotonic() - self.began, 1)}
        log.write(json.dumps(row) + "\n")
        log.flush()
        short = " ".join(f"{k} {row[k]:.3f}" for k in ("total", "iou", "qa") if k in row)
        bar.update(task, description=f"train {short}")
        if self.quiet:
            print(json.dumps(row), flush=True)
        self.sums = {}

    def stop(self) -> bool:
        """Save when it is time; True when the run must end."""
        s = self.settings
        over = bool(s.minutes) and time.monotonic() - self.began > 60 * s.minutes
        if over or self.clock.step % s.save_every == 0 or self.clock.step in (s.total, s.steps_see):
            self.accelerator.save_state(str(self.state))
            save(self.model, self.tokenizer, self.average, s, self.out, self.clock.step)
        return over


def _every_other(batch: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    return {k: batch[k][:, first::2] for k in ("state", "seconds", "action", "cells")}


def _start_from(model: NativeVideoLLM, folder: str) -> None:
    """Take over every weight of a trained model that has a place here."""
    trained = NativeVideoLLM.from_pretrained(folder).state_dict()
    own = model.state_dict()
    fitting = {k: v for k, v in trained.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise InputError(f"no weight of {folder} fits the model to be trained: use the same size")
    model.load_state_dict(fitting, strict=False)


def save(
    model: NativeVideoLLM,
    tokenizer: PreTrainedTokenizerFast,
    average: Average,
    settings: TrainSettings,
    out: Path,
    step: int,
) -> None:
    """Write the averaged weights in bfloat16 with tokenizer and settings."""
    average.swap(model)
    state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    average.swap(model)
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(
        json.dumps({**asdict(settings), "out": out.name, "step": step}, indent=1) + "\n"
    )
