"""Claims of DiST and SqueezeTime: actions that the order of pictures tells.

DiST beside a frozen tower:

| arm | what it is |
|---|---|
| frozen | the frozen tower's frames, averaged |
| frozen-query | the same under DiST's own pooling, which learns places in time |
| tuned | the tower trained with the head, frames averaged |
| dist | the side network |

SqueezeTime beside a convolutional tower of single frames with about as many parameters:

| arm | what it is |
|---|---|
| framewise | every frame by itself |
| squeezetime | 16 frames folded into channels |

`accuracy` is over ten actions, `order` which of a pair it is when the pair is given (chance 50 %).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidllm.models.cost.memory import tensor_peak
from vidllm.recipes import get_recipe
from vidllm.recipes.courses.head_loop import learn
from vidllm.recipes.courses.recognition import (
    FRAMES,
    SIDE,
    RecognitionLesson,
    check_used,
    stacked,
)
from vidllm.stage.order_pairs import StagePairs

from .claim_rows import ClaimSettings, Ledger, Row

ARMS: dict[str, dict[str, dict[str, Any] | None]] = {
    "dist": {
        "frozen": {"name": "framewise", "head": "mean"},
        "frozen-query": {"name": "framewise", "head": "query"},
        "tuned": {"name": "framewise", "head": "mean", "frozen": False},
        "dist": None,
    },
    "squeezetime": {"framewise": {"name": "framewise"}, "squeezetime": None},
}
#: The tower of single frames beside SqueezeTime, by size.
TOWERS: dict[str, dict[str, Any]] = {
    "small": {"type": "conv", "image_size": SIDE, "hidden_size": 192},
    "tiny": {
        "type": "conv", "image_size": 32, "hidden_size": 16, "widths": (4, 8, 8),
        "blocks": (1, 1, 1),
    },
}  # fmt: skip
#: Clips of the test come in tens: both of a pair, of every kind.
TEN = 10
_TIMED = 5  # runs, of which the median counts


def measure_recognition(
    name: str, settings: ClaimSettings, save: Callable[[list[Row]], None] | None = None
) -> list[Row]:
    """Train every arm of "dist" or "squeezetime" and test it; rows as `claim_rows.Ledger`'s."""
    recipe, arms = get_recipe(name), settings.chosen(tuple(ARMS[name]))
    check_used(recipe, clips=bool(settings.clips), features=False, init=bool(settings.init))
    ledger = Ledger(name, settings, save, arms)
    for arm in arms:
        for seed in range(settings.seeds):
            encoder = ARMS[name][arm]
            if encoder is not None and name == "squeezetime":
                encoder = {**encoder, "tower": TOWERS[settings.size]}
            lesson = RecognitionLesson(recipe, settings.training(seed), encoder)
            ledger.begin(lesson.settings.steps)
            _cost(ledger, arm, seed, lesson)
            learn(lesson)
            _test(ledger, arm, seed, lesson, settings.tested)
            ledger.save()
    return ledger.rows


@torch.no_grad()
def _test(ledger: Ledger, arm: str, seed: int, lesson: RecognitionLesson, tested: int) -> None:
    number = -(-tested // TEN) * TEN
    clips = StagePairs("val", FRAMES, lesson.clips.size)
    right: list[bool] = []
    order: list[bool] = []
    for first in range(0, number, 2):  # a pair at a time
        batch = stacked([clips.clip(first), clips.clip(first + 1)])
        logits = lesson.system.recogniser(
            batch["frames"].to(lesson.system.device), batch["seconds"].to(lesson.system.device)
        ).cpu()
        label = batch["label"]
        two = logits.unflatten(1, (-1, 2))[torch.arange(2), label // 2]
        right += (logits.argmax(1) == label).tolist()
        order += (two.argmax(1) == label % 2).tolist()
    pairs = [str(k // 2) for k in range(number)]
    ledger.shares(arm, seed, "accuracy", right, pairs)
    ledger.shares(arm, seed, "order", order, pairs)


def _cost(ledger: Ledger, arm: str, seed: int, lesson: RecognitionLesson) -> None:
    """What a training step and an answer take on this machine, before anything is learnt."""
    system = lesson.system
    cuda = torch.cuda.is_available() and lesson.settings.device in ("auto", "cuda")
    device = torch.device("cuda" if cuda else "cpu")
    system.to(device).train()
    batch = {k: v.to(device) for k, v in lesson.batch(0).items()}

    def step() -> None:
        system.zero_grad(set_to_none=True)
        system.loss(batch)["total"].backward()
        if cuda:
            torch.cuda.synchronize()

    step()
    ledger.fact(arm, seed, "seconds a step", _median(step))
    system.zero_grad(set_to_none=True)
    with tensor_peak(device) as peak:
        step()
    ledger.fact(arm, seed, "MB of a step", peak.megabytes)
    tower = _tower(system.recogniser.encoder)
    reached = sum(p.grad is not None for p in tower.parameters()) if tower is not None else 0
    ledger.fact(arm, seed, "tower weights with a gradient", reached)
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    ledger.fact(arm, seed, "parameters trained", trained)
    system.zero_grad(set_to_none=True)
    system.eval()
    frames, seconds = batch["frames"], batch["seconds"]

    @torch.no_grad()
    def answer() -> Tensor:
        found: Tensor = system.recogniser(frames, seconds)
        if cuda:
            torch.cuda.synchronize()
        return found

    learning = [p for p in system.parameters() if p.requires_grad]
    for weight in learning:  # the counter follows graphs, also where there are none
        weight.requires_grad_(False)
    with FlopCounterMode(display=False) as counted:
        answer()
    for weight in learning:
        weight.requires_grad_(True)
    ledger.fact(arm, seed, "GFLOPs a clip", counted.get_total_flops() / len(frames) / 1e9)
    ledger.fact(arm, seed, "clips a second", len(frames) / _median(answer))


def _median(work: Callable[[], Any]) -> float:
    spent = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def _tower(encoder: Any) -> Any:
    return getattr(encoder, "vit", getattr(encoder, "tower", None))
