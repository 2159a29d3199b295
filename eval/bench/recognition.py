"""Action recognition: an encoder with its head, and a task on the stage that needs time.

A clip of the stage task shows one actor (two that meet) do one thing, among distractors; which
one it is must be told. "appear" and "leave" are each other played backwards, so that no encoder
whose head forgets the order of frames can part them. Settings are ours and for this task; the
papers train for 36 (DiST, AdamW) and 100 epochs (SqueezeTime, SGD) of Kinetics-400.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.stage.render import render
from vidllm.stage.scenes import Scene, make_scene
from vidllm.stage.tracks import tracks
from vidllm.stage.words import ACTION_INDEX

from .recogniser import Recogniser

#: Scene seeds that belong to one clip of the task: the first with its action is shown.
_SEEDS = 1000


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
class StageActions:
    """Clips of the stage with one action each; clip i has label i modulo the actions.

    Args:
        split: of the stage ("train", "val", …): splits share no scene.
        actions: names of the classes, out of `vidllm.stage.words.ACTIONS`.
        frames: of a clip, evenly over the action and `margin` of its length before and after.
        size: pixels of a side.
        crowd: whether the other actors of the scene stand there too.
    """

    split: str = "train"
    actions: tuple[str, ...] = tuple(ACTION_INDEX)
    frames: int = 16
    size: int = 64
    margin: float = 0.1
    crowd: bool = False

    def __post_init__(self) -> None:
        for action in self.actions:
            if action not in ACTION_INDEX:
                raise InputError(
                    f"no stage action {action!r}: use some of {', '.join(ACTION_INDEX)}"
                )
        if self.frames < 1 or self.size < 1 or self.margin < 0:
            raise InputError("stage clips need a frame, a pixel and no negative margin or more")

    @property
    def labels(self) -> tuple[str, ...]:
        """The actions."""
        return self.actions

    def scene(self, index: int) -> Scene:
        """The scene of clip `index`: a drawn one, with all events but one taken out."""
        action = self.actions[index % len(self.actions)]
        for seed in count(_SEEDS * index):
            scene = make_scene(self.split, seed)
            found = [e for e, event in enumerate(scene.events) if event.action == action]
            if found:
                return self._only(scene, found[0])
        raise AssertionError  # count() does not end

    def _only(self, scene: Scene, event: int) -> Scene:
        told = scene.events[event]
        cast_ = [told.actor] if told.other < 0 else [told.actor, told.other]
        actors = []
        for who, actor in enumerate(scene.actors):
            home = actor.home
            for earlier in scene.events:  # it stands where it last crossed to
                if earlier.actor == who and earlier.action == "cross" and earlier.end <= told.start:
                    home = earlier.target
            shown = who in cast_ or self.crowd
            hidden = not shown or (who == told.actor and told.action == "appear")
            actors.append(replace(actor, home=home, hidden=hidden))
        return replace(scene, actors=tuple(actors), events=(replace(told, cause=-1),))

    def clip(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Frames (T, 3, size, size) in 0..1, their seconds (T,) and the label."""
        scene = self.scene(index)
        event = scene.events[0]
        edge = self.margin * (event.end - event.start)
        start, end = event.start - edge, event.end + edge
        times = start + (np.arange(self.frames) + 0.5) / self.frames * (end - start)
        shown = tracks(scene, times)
        every = self.frames
        seconds = torch.from_numpy(times.astype(np.float32))
        frames = render(
            torch.from_numpy(shown.state),
            torch.from_numpy(shown.glyph).expand(every, -1),
            torch.from_numpy(shown.background).expand(every, -1, -1),
            torch.full((every,), shown.noise),
            seconds,
            size=self.size,
            generator=torch.Generator().manual_seed(index),
        )
        return frames, seconds, index % len(self.actions)

    def batch(self, first: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clips first … first + number − 1: (B, T, 3, size, size), (B, T), labels (B,)."""
        return _stack([self.clip(first + i) for i in range(number)])


@dataclass(frozen=True)
class RecognitionSettings:
    """What to train on the stage task, and how.

    Args:
        encoder: name; options: of the encoder; head: "mean", "query", or the encoder's own.
        clips: different training clips, gone round in; 0 draws new ones for ever.
        tested: clips of the split "val" that are told at the end.
    """

    encoder: str
    options: dict[str, Any] = field(default_factory=dict)
    actions: tuple[str, ...] = tuple(ACTION_INDEX)
    frames: int = 16
    size: int = 64
    crowd: bool = False
    steps: int = 1000
    batch: int = 16
    clips: int = 0
    tested: int = 360
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.05
    smoothing: float = 0.1
    clip: float = 1.0
    seed: int = 0
    head: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class RecognitionResult:
    """What came of it: `losses` a step, `accuracy` on new scenes, and what guessing gives."""

    losses: tuple[float, ...]
    accuracy: float
    chance: float
    parameters: int
    seconds: float
    settings: dict[str, Any]


def train_recognition(
    settings: RecognitionSettings, report: Callable[[int, float], None] | None = None
) -> tuple[Recogniser, RecognitionResult]:
    """Train an encoder and its head on the stage task, then test it on scenes of another split.

    Args:
        report: called with the step and its loss.

    Raises:
        InputError: settings that do not fit.
    """
    began = time.perf_counter()
    model, losses = fit_recognition(settings, _task(settings, "train"), report)
    test = _task(settings, "val")
    result = RecognitionResult(
        losses=losses,
        accuracy=evaluate_recognition(model, test, settings.tested, settings.batch),
        chance=1 / len(test.labels),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=time.perf_counter() - began,
        settings=asdict(settings),
    )
    return model, result


def fit_recognition(
    settings: RecognitionSettings,
    task: ClipTask,
    report: Callable[[int, float], None] | None = None,
) -> tuple[Recogniser, tuple[float, ...]]:
    """Train an encoder and its head to tell the labels of a task.

    Args:
        settings: of these the actions, frames, size and crowd are not looked at: the task is given.
        report: called with the step and its loss.

    Returns:
        The model, in training mode, and the loss of every step.

    Raises:
        InputError: settings that do not fit.
    """
    if min(settings.steps, settings.batch, settings.tested) < 1:
        raise InputError("recognition: steps, batch and tested must be at least 1")
    torch.manual_seed(settings.seed)
    model = Recogniser(settings.encoder, task.labels, settings.options, settings.head)
    model.to(settings.device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    losses = []
    for step, (frames, seconds, label) in enumerate(_batches(settings, task)):
        logits = model(frames, seconds)
        loss = F.cross_entropy(logits.float(), label, label_smoothing=settings.smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, settings.clip)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if report is not None:
            report(step, losses[-1])
    return model, tuple(losses)


def evaluate_recognition(model: Recogniser, task: ClipTask, number: int, batch: int = 16) -> float:
    """The share of clips 0 … number − 1 of a task whose label `model` tells rightly."""
    logits, labels = recognition_logits(model, task, number, batch)
    return float((logits.argmax(1) == labels).float().mean())


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


def _task(settings: RecognitionSettings, split: str) -> StageActions:
    return StageActions(
        split, settings.actions, settings.frames, settings.size, crowd=settings.crowd
    )


def _batches(
    settings: RecognitionSettings, task: ClipTask
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    device = settings.device
    kept: dict[int, tuple[Tensor, Tensor, int]] = {}
    rng = np.random.default_rng([5, settings.seed])
    waiting: list[int] = []
    for step in range(settings.steps):
        if settings.clips:
            while len(waiting) < settings.batch:
                waiting += rng.permutation(settings.clips).tolist()
            mine, waiting = waiting[: settings.batch], waiting[settings.batch :]
            kept |= {i: task.clip(i) for i in mine if i not in kept}
            clips = [kept[i] for i in mine]
        else:
            clips = [task.clip(step * settings.batch + i) for i in range(settings.batch)]
        frames, seconds, label = _stack(clips)
        yield frames.to(device), seconds.to(device), label.to(device)


def _rate(step: int, settings: RecognitionSettings) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * share))
