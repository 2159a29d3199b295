"""The training loop: two phases, bf16, checkpoints that a later run takes up where they ended.

First the tower and the temporal encoders learn to see (`steps_see`), then the whole model learns
to answer (`steps_answer`), under a mixture of token reductions so that a compressed video is
nothing new to it. The weights that are saved are an exponential moving average.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from ..errors import InputError
from ..models.native import NativeConfig, NativeVideoLLM
from ..timecode import get_timecode
from .data import DataSettings, StageBatches
from .losses import LossWeights
from .trainee import Trainee
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
    "small": {"width": 256, "layers": 6, "heads": 4, "widths": (32, 64, 128), "blocks": (1, 2, 2)},
    "tiny": {"width": 64, "layers": 2, "heads": 2, "widths": (8, 16, 32), "blocks": (1, 1, 1)},
}
TEMPORAL: dict[str, list[dict[str, Any]]] = {
    "ssd": [
        {"name": "ssd", "layers": 2, "scan": "slot"},
        {"name": "ssd", "layers": 1, "scan": "raster"},
    ],
    "none": [],
}


@dataclass
class TrainSettings:
    """What to train and how; saved beside the weights.

    Args:
        out: folder of the result.
        size: "small" (the shipped model) or "tiny" (tests).
        temporal: "ssd" or "none" (the control).
        reduce: train under the mixture of reductions; False trains on full videos alone.
        minutes: stop and save after so many minutes (0: no limit); `resume` goes on from there.
    """

    out: str
    size: str = "small"
    temporal: str = "ssd"
    reduce: bool = True
    steps_see: int = 1200
    steps_answer: int = 10000
    batch: int = 64
    frames: tuple[int, ...] = (64, 48, 32)
    frame_weights: tuple[float, ...] = (0.8, 0.1, 0.1)
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    workers: int = 2
    minutes: float = 0.0
    resume: bool = False
    log_every: int = 50
    save_every: int = 1000
    device: str = "auto"
    compressors: str = "none"
    keep: float = 1.0
    weights: LossWeights = field(default_factory=LossWeights)


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
        time_code="relative",
        time_tokens=len(code.special_tokens),
        time_token_start=int(tokenizer.convert_tokens_to_ids(code.special_tokens[0])),  # type: ignore[arg-type]
        frames=settings.frames[0],
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
        return [p for p in model.parameters()]

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
    """Share of the full learning rate: warm-up at the start of either phase, then a cosine."""
    see, total = settings.steps_see, settings.steps_see + settings.steps_answer
    begin = step - see if step >= see else step
    warm = min(1.0, (begin + 1) / max(1, settings.warmup))
    along = max(0.0, (step - see) / max(1, total - see))
    return warm * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * along))))


def train(settings: TrainSettings, *, quiet: bool = False) -> Path:
    """Train a model and save it (average weights, tokenizer, settings, log) in `settings.out`.

    Returns:
        The folder. `settings.minutes` may end a run early; the folder then holds what there is
        and `state/`, from which `resume` goes on.

    Raises:
        InputError: settings that cannot be, or a resume without a checkpoint.
    """
    out = Path(settings.out)
    state = out / "state"
    if settings.resume and not state.is_dir():
        raise InputError(f"nothing to resume in {out}: start without --resume")
    out.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available() and settings.device in ("auto", "cuda")
    accelerator = Accelerator(mixed_precision="bf16", cpu=not cuda)
    set_seed(settings.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    model, tokenizer = build_model(settings)
    trainee = Trainee(model, tokenizer, settings.weights)
    optimizer = torch.optim.AdamW(
        _groups(trainee, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.98), fused=cuda
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _rate(s, settings))
    trainee, optimizer = accelerator.prepare(trainee, optimizer)
    average, clock = Average(model, settings.ema), _Clock()
    accelerator.register_for_checkpointing(schedule, average, clock)
    if settings.resume:
        accelerator.load_state(str(state))
    total = settings.steps_see + settings.steps_answer
    data = StageBatches(
        DataSettings(
            "train", settings.batch, settings.frames, settings.frame_weights, seed=settings.seed
        ),
        tokenizer,
        get_timecode("relative"),
        total,
    )
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(clock.step, total),
        num_workers=settings.workers,
        pin_memory=cuda,
        prefetch_factor=4 if settings.workers else None,
    )
    names, shares = zip(*MIXTURE, strict=True)
    began, stopped = time.monotonic(), False
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    log = (out / "log.jsonl").open("a" if settings.resume else "w")
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=quiet or not accelerator.is_main_process,
    )
    with bar, log:
        task = bar.add_task("train", total=total, completed=clock.step)
        for batch in loader:
            batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items()}
            speak = clock.step >= settings.steps_see
            choice = np.random.default_rng([13, settings.seed, clock.step])
            reduction = str(choice.choice(names, p=shares)) if settings.reduce else "none"
            if reduction.startswith("random"):  # another draw every time, from a few plans
                reduction += f":seed={clock.step % 97}"
            result = trainee(batch, speak=speak, reduction=reduction)
            accelerator.backward(result["total"])
            accelerator.clip_grad_norm_(trainee.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            clock.step += 1
            average.update(model, clock.step)
            for key, value in result.items():
                sums[key] = sums.get(key, 0) + value.detach().float()
                counts[key] = counts.get(key, 0) + 1
            bar.advance(task)
            if clock.step % settings.log_every == 0 or clock.step == total:
                row = {k: round(float(v) / counts[k], 4) for k, v in sums.items()}
                row |= {"step": clock.step, "seconds": round(time.monotonic() - began, 1)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                short = " ".join(f"{k} {row[k]:.3f}" for k in ("total", "iou", "qa") if k in row)
                bar.update(task, description=f"train {short}")
                if quiet:
                    print(json.dumps(row), flush=True)
                sums, counts = {}, {}
            stopped = bool(settings.minutes) and time.monotonic() - began > 60 * settings.minutes
            if stopped or clock.step % settings.save_every == 0 or clock.step == total:
                accelerator.save_state(str(state))
                save(model, tokenizer, average, settings, out, clock.step)
            if stopped:
                break
    return out


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
