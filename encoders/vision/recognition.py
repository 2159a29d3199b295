"""Action recognition: an encoder with its head, and a task on the stage that needs time.

A clip of the stage task shows one actor (two that meet) do one thing, among distractors; which
one it is must be told. "appear" and "leave" are each other played backwards, so that no encoder
whose head forgets the order of frames can part them. Settings are ours and for this task; the
papers train for 36 (DiST, AdamW) and 100 epochs (SqueezeTime, SGD) of Kinetics-400.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.stage.render import render
from vidllm.stage.scenes import Scene, make_scene
from vidllm.stage.tracks import tracks
from vidllm.stage.words import ACTION_INDEX

from .base import VisionEncoder, get_vision
from .heads import build_head

_CONFIG, _WEIGHTS = "recogniser.json", "model.safetensors"
#: Scene seeds that belong to one clip of the task: the first with its action is shown.
_SEEDS = 1000


class Recogniser(nn.Module):
    """A vision encoder and the head that belongs to it.

    Args:
        encoder: name of `vision_names`; options: of the encoder.
        labels: names of the classes.
        head: "mean" or "query"; by default the encoder's own.

    Raises:
        InputError: an encoder or options that are not known, or fewer than two labels.
    """

    def __init__(
        self,
        encoder: str,
        labels: Sequence[str],
        options: dict[str, Any] | None = None,
        head: str = "",
    ) -> None:
        super().__init__()
        if len(set(labels)) < 2 or len(set(labels)) != len(labels):
            raise InputError("recognition needs two different labels or more")
        self.config = {
            "encoder": encoder,
            "labels": list(labels),
            "options": dict(options or {}),
            "head": head,
        }
        self.encoder: VisionEncoder = get_vision(encoder, **(options or {}))
        self.head = build_head(self.encoder, len(labels), head)

    def forward(self, frames: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of clips, arguments as for a `VisionEncoder`."""
        return cast(Tensor, self.head(self.encoder(frames, seconds, mask)))

    def save(self, folder: str | Path) -> None:
        """Write the config and all weights (safetensors) to a folder."""
        from safetensors.torch import save_file

        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / _CONFIG).write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, out / _WEIGHTS)

    @classmethod
    def load(cls, folder: str | Path) -> Recogniser:
        """What `save` wrote, in evaluation mode.

        Raises:
            InputError: a folder without a recogniser.
        """
        from safetensors.torch import load_file

        home = Path(folder)
        if not (home / _CONFIG).is_file() or not (home / _WEIGHTS).is_file():
            raise InputError(f"no recogniser in {home}: it needs {_CONFIG} and {_WEIGHTS}")
        model = cls(**json.loads((home / _CONFIG).read_text(encoding="utf-8")))
        model.load_state_dict(load_file(home / _WEIGHTS))
        return model.eval()


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
    if min(settings.steps, settings.batch, settings.tested) < 1:
        raise InputError("recognition: steps, batch and tested must be at least 1")
    began = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = Recogniser(settings.encoder, settings.actions, settings.options, settings.head)
    model.to(settings.device)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    model.train()
    losses = []
    for step, (frames, seconds, label) in enumerate(_batches(settings)):
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
    result = RecognitionResult(
        losses=tuple(losses),
        accuracy=evaluate_recognition(
            model, _task(settings, "val"), settings.tested, settings.batch
        ),
        chance=1 / len(settings.actions),
        parameters=sum(p.numel() for p in weights),
        seconds=time.perf_counter() - began,
        settings=asdict(settings),
    )
    return model, result


@torch.no_grad()
def evaluate_recognition(
    model: Recogniser, task: StageActions, number: int, batch: int = 16
) -> float:
    """The share of clips 0 … number − 1 of a task whose action `model` tells rightly."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for first in range(0, number, batch):
        frames, seconds, label = task.batch(first, min(batch, number - first))
        told = model(frames.to(device), seconds.to(device)).argmax(1)
        right += int((told.cpu() == label).sum())
    return right / number


def _stack(clips: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    frames, seconds, labels = zip(*clips, strict=True)
    return torch.stack(frames), torch.stack(seconds), torch.tensor(labels)


def _task(settings: RecognitionSettings, split: str) -> StageActions:
    return StageActions(
        split, settings.actions, settings.frames, settings.size, crowd=settings.crowd
    )


def _batches(settings: RecognitionSettings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    task, device = _task(settings, "train"), settings.device
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
