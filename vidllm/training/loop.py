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
from dataclasses import asdict, dataclass, field
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
from ..models.native import NativeConfig, NativeVideoLLM
from ..timecode import get_timecode
from .data import DataSettings, StageBatches
from .losses import LossWeights
from .trainee import Trainee, paint
from .words import build_tokenizer

#: Reductions met in training, as (compressor spec, weight).
MIXTURE: tuple[tuple[str, float], ...] = (
    ("none", 0.36),
    ("temporal-pool:keep=0.5", 0.06),
    ("temporal-pool:keep=0.25", 0.16),
    ("temporal-pool:keep=0.125", 0.05),
    ("spatial-pool:keep=0.25", 0.16),
    ("spatial-pool:keep=0.125", 0.05),
    ("frame-sample:keep=0.5", 0.04),
    ("frame-sample:keep=0.25", 0.04),
    ("random:keep=0.5", 0.04),
    ("random:keep=0.25", 0.04),
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 192, "layers": 4, "heads": 6, "widths": (24, 64, 128), "blocks": (1, 2, 2)},
    "tiny": {"width": 32, "layers": 2, "heads": 2, "widths": (8, 16, 16), "blocks": (1, 1, 1)},
}
TEMPORAL: dict[str, list[dict[str, Any]]] = {
    "ssd": [
        {"name": "ssd", "layers": 2, "scan": "slot", "head_dim": 32},
        {"name": "ssd", "layers": 1, "scan": "raster", "head_dim": 32},
    ],
    "identity": [],
}


@dataclass
class TrainSettings:
    """What to train and how; saved beside the weights.

    Args:
        out: folder of the result.
        size: "small" (the shipped model) or "tiny" (tests).
        temporal: "ssd" or "none" (the control).
        reduce: train under the mixture of reductions; False trains on full videos alone.
        see_batch: scenes in a batch while it learns to see, four frames of each.
        batch: clips in a batch afterwards; frames: frames of a clip.
        clips: clips whose cells are kept on disk (25 KB a frame for 1000 clips of 64 frames).
        minutes: stop and save after so many minutes (0: no limit); `resume` goes on from there.
        init: folder of a trained model to start from (its tower, and all else that fits).
        cells: file of the kept cells, so that runs with one tower share it; default in `out`.
    """

    out: str
    size: str = "small"
    temporal: str = "ssd"
    reduce: bool = True
    steps_see: int = 2000
    steps_mix: int = 300
    steps_answer: int = 8000
    see_batch: int = 32
    batch: int = 8
    frames: int = 64
    clips: int = 12000
    see_lr: float = 2e-3
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    workers: int = 1
    threads: int = 0
    minutes: float = 0.0
    resume: bool = False
    init: str = ""
    cells: str = ""
    log_every: int = 50
    save_every: int = 500
    device: str = "auto"
    compressors: str = "none"
    keep: float = 1.0
    weights: LossWeights = field(default_factory=LossWeights)

    @property
    def total(self) -> int:
        return self.steps_see + self.steps_mix + self.steps_answer

    def phase(self, step: int) -> str:
        """What is learnt at a step: "see", "mix" or "answer"."""
        if step < self.steps_see:
            return "see"
        return "mix" if step < self.steps_see + self.steps_mix else "answer"


def build_model(settings: TrainSettings) -> tuple[NativeVideoLLM, PreTrainedTokenizerFast]:
    """A fresh model and its tokenizer.

    Raises:
        InputError: for a size or temporal encoder that is not known.
    """
    if settings.size not in SIZES or settings.temporal not in TEMPORAL:
        raise InputError(
            f"size must be one of {', '.join(SIZES)} and temporal one of {', '.join(TEMPORAL)}, "
            f"not '{settings.size}' and '{settings.temporal}'"
        )
    code = get_timecode("relative")
    tokenizer = build_tokenizer(code)
    size = SIZES[settings.size]
    width = size["width"]
    config = NativeConfig(
        vision={
            "type": "conv",
            "hidden_size": width,
            "widths": list(size["widths"]),
            "blocks": list(size["blocks"]),
        },
        text={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "num_key_value_heads": size["heads"],
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        temporal=TEMPORAL[settings.temporal],
        downsample=2,
        time_code="relative",
        time_tokens=len(code.special_tokens),
        time_token_start=int(tokenizer.convert_tokens_to_ids(code.special_tokens[0])),  # type: ignore[arg-type]
        frames=settings.frames,
        compressors=settings.compressors,
        keep=settings.keep,
    )
    return NativeVideoLLM(config), tokenizer


class Average:
    """Exponential moving average of a model's floating-point state."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [v.detach().clone() for v in self._live(model)]

    @staticmethod
    def _live(model: torch.nn.Module) -> list[Tensor]:
        return list(model.parameters())

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self._live(model), 1 - decay)  # type: ignore[attr-defined]

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchange the model's values with the average's; a second call undoes it."""
        for mine, live in zip(self.values, self._live(model), strict=True):
            held = live.detach().clone()
            live.copy_(mine)
            mine.copy_(held)

    @torch.no_grad()
    def hold(self, model: torch.nn.Module) -> None:
        """Take the live values of parameters that are frozen from now on."""
        for mine, live in zip(self.values, self._live(model), strict=True):
            if not live.requires_grad:
                mine.copy_(live)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.values, state["values"], strict=True):
            mine.copy_(saved)


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
    plain, decayed = [], []
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


class CellCache:
    """The tower's cells of the first `clips` training scenes, in one file of bfloat16 numbers."""

    def __init__(self, path: Path, settings: TrainSettings, model: NativeVideoLLM) -> None:
        shape = (settings.clips, settings.frames, model.vision.side**2, model.vision.hidden_size)
        self.path = path
        new = not path.exists()
        self.data = np.memmap(path, dtype=np.int16, mode="w+" if new else "r+", shape=shape)
        self.done = path.with_suffix(".done")

    def ready(self) -> bool:
        return self.done.exists()

    @torch.no_grad()
    def fill(self, trainee: Trainee, loader: Any, device: torch.device, bar: Progress) -> None:
        """Render every clip and run the frozen tower over it."""
        model = trainee.model
        model.vision.eval()
        task = bar.add_task("cells", total=len(self.data))
        for batch in loader:
            batch = {k: v.to(device) for k, v in batch.items()}
            with torch.autocast(device.type, torch.bfloat16):
                cells = model.vision(paint(batch, model.vision.image_size, noisy=True))
            cells = cells.unflatten(0, batch["seconds"].shape).to(torch.bfloat16)
            self.data[batch["scene"].cpu().numpy()] = cells.cpu().view(torch.int16).numpy()
            bar.advance(task, len(cells))
        self.data.flush()
        self.done.touch()
        bar.remove_task(task)

    def __getitem__(self, scenes: Tensor) -> Tensor:
        rows = torch.from_numpy(np.asarray(self.data[scenes.numpy()]))
        return rows.view(torch.bfloat16).float()


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
        self.model.vision.to(memory_format=torch.channels_last)  # three times as fast on a CPU
        trainee = Trainee(self.model, self.tokenizer, settings.weights)
        optimizer = torch.optim.AdamW(
            _groups(trainee, settings.weight_decay), lr=1.0, betas=(0.9, 0.98), fused=cuda
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
        elif phase == "cells":
            data = DataSettings("train", 8, s.frames, clips=s.clips)
            steps = range(-(-s.clips // 8))
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
            for phase in ("see", "answer"):
                if phase == "answer":
                    self.model.vision.requires_grad_(False).eval()
                    self.average.hold(self.model)
                    path = Path(s.cells) if s.cells else self.out / "cells.bin"
                    cache = CellCache(path, s, self.model)
                    if not cache.ready():
                        cache.fill(
                            self.accelerator.unwrap_model(self.trainee),
                            self.loader("cells"),
                            self.accelerator.device,
                            bar,
                        )
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
