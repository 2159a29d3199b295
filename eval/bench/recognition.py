"""Action recognition: an encoder with its head, trained to tell the labels of a task.

Settings are ours and for the task of `vidllm bench recognition`; the papers train for 36 (DiST,
AdamW) and 100 epochs (SqueezeTime, SGD) of Kinetics-400.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.encoders.vision.recogniser import Recogniser
from vidllm.errors import InputError


class ClipTask(Protocol):
    """Clips that each have a label: what there is to learn."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    def clip(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Frames (T, 3, size, size) in 0..1, their seconds (T,) and the label, always the same."""
        ...


@dataclass(frozen=True)
class RecognitionSettings:
    """How to train: the encoder by name with its options, and the course of AdamW.

    Args:
        lr: highest learning rate, after `warmup` steps. clip: largest norm of the gradient.
    """

    encoder: str
    options: dict[str, Any]
    steps: int
    lr: float
    warmup: int = 50
    batch: int = 16
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"


def fit_recognition(
    settings: RecognitionSettings, task: ClipTask
) -> tuple[Recogniser, tuple[float, ...]]:
    """Train an encoder and its head to tell the labels of a task.

    Returns:
        The model, in training mode, and the loss of every step.

    Raises:
        InputError: settings that do not fit.
    """
    if min(settings.steps, settings.batch) < 1:
        raise InputError("recognition: steps and batch must be at least 1")
    torch.manual_seed(settings.seed)
    model = Recogniser(settings.encoder, task.labels, settings.options)
    model.to(settings.device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    losses = []
    for step in range(settings.steps):
        first = step * settings.batch
        clips = _stack([task.clip(first + i) for i in range(settings.batch)])
        frames, seconds, label = (part.to(settings.device) for part in clips)
        loss = F.cross_entropy(model(frames, seconds).float(), label)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, settings.clip)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return model, tuple(losses)


@torch.no_grad()
def recognition_logits(
    model: Recogniser, task: ClipTask, number: int, batch: int = 16
) -> tuple[Tensor, Tensor]:
    """Logits (number, classes) float32 and labels (number,) of clips 0 … number − 1, on the CPU.

    The model is in evaluation mode afterwards.
    """
    model.eval()
    device = next(model.parameters()).device
    told, labels = [], []
    for first in range(0, number, batch):
        clips = [task.clip(i) for i in range(first, min(first + batch, number))]
        frames, seconds, label = _stack(clips)
        told.append(model(frames.to(device), seconds.to(device)).float().cpu())
        labels.append(label)
    return torch.cat(told), torch.cat(labels)


def _stack(clips: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    frames, seconds, labels = zip(*clips, strict=True)
    return torch.stack(frames), torch.stack(seconds), torch.tensor(labels)


def _rate(step: int, settings: RecognitionSettings) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))
