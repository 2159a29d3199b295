"""The course "recognition": actions that only the order of pictures tells (DiST, SqueezeTime).

Clips come in pairs of the same pictures in another order (`vidllm.stage.order_pairs`). None is seen
twice, so that nothing is kept on disk; what is frozen runs without a graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.models.heads.action_namer import ActionNamer
from vidllm.models.heads.head_config import HeadConfig
from vidllm.progress.interruption import Halt
from vidllm.stage.order_pairs import StagePairs

from ..recipe import Recipe
from . import CourseSettings
from .head_loop import Heard, Lesson, teach
from .head_settings import HeadSettings, filled
from .head_start import Start

#: Frames of a clip, and pixels of a side where the encoder does not say.
FRAMES, SIDE = 16, 96
#: The model that has measured what the made world looks like.
GUARD = "vidllm-stage"
#: Clips between those of one training seed and the next.
SEED = 10**6
#: By recipe and size: options of the encoder, and how it is trained.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "dist": {
        "small": {"encoder": {"temporal": 48, "width": 96}, "batch": 16, "lr": 1e-3},
        "tiny": {
            "encoder": {"temporal": 8, "width": 16}, "steps": 20, "batch": 2, "lr": 1e-3,
        },
    },
    "squeezetime": {
        "small": {
            "encoder": {"image_size": SIDE, "widths": (24, 48, 72, 96), "blocks": (1, 2, 2, 1),
                        "expansion": 4, "inner": 16},
            "batch": 16, "lr": 2e-3,
        },
        "tiny": {
            "encoder": {"image_size": 32, "widths": (4, 4, 8, 8), "blocks": (1, 1, 1, 1),
                        "expansion": 2, "inner": 4},
            "steps": 20, "batch": 4, "lr": 2e-3,
        },
    },
}  # fmt: skip


class RecognitionLesson(Lesson):
    """See the head of this file.

    Args:
        recipe: "dist" or "squeezetime" by its vision. settings: what is 0 there comes from `SIZES`
            or the recipe. encoder: {"name": …} and options in place of the recipe's own, for
            ablations; `head` in it names the recognition head.
    """

    system: ActionNamer

    def __init__(
        self,
        recipe: Recipe,
        settings: HeadSettings,
        encoder: dict[str, Any] | None = None,
    ) -> None:
        size = SIZES[recipe.vision or "squeezetime"][settings.size]
        self.settings = filled(settings, recipe, size)
        own = {"name": recipe.vision, **size["encoder"], **dict(settings.head)}
        if recipe.vision == "squeezetime":
            own = {**own, "chunk": FRAMES}
        start = Start(self.settings, "cells") if recipe.start == "stage" else None
        config = HeadConfig(
            recipe.name, "recognition", "" if start is None else start.name,
            "" if start is None else start.mark, frames=FRAMES, reads="cells",
            encoder=encoder or own, labels=StagePairs().labels,
            guard=GUARD if start is None else "",
        )  # fmt: skip
        self.system = ActionNamer(config, None if start is None else start.frozen)
        side = int(self.system.recogniser.encoder.image_size)
        self.clips = StagePairs("train", FRAMES, side, first=self.settings.seed * SEED)

    def prepare(self, heard: Heard, halt: Halt) -> None:
        """Nothing is made before."""

    def batch(self, index: int) -> dict[str, Tensor]:
        first, count = index * self.settings.batch, self.settings.batch
        return stacked([self.clips.clip(first + k) for k in range(count)])

    def card(self) -> str:
        config = self.system.config
        return (
            f"Names one of {len(config.labels)} actions ({', '.join(config.labels)}) that come in "
            f"pairs of the same pictures in another order, from {FRAMES} frames, by the encoder "
            f"`{config.encoder['name']}`. Taught on clips made from seeds, none of which it saw "
            "twice."
        )


def stacked(clips: list[tuple[Tensor, Tensor, int]]) -> dict[str, Tensor]:
    """Clips as `ActionNamer.loss` takes them."""
    frames, seconds, labels = zip(*clips, strict=True)
    return {
        "frames": torch.stack(frames),
        "seconds": torch.stack(seconds),
        "label": torch.tensor(labels),
    }


def check_used(recipe: Recipe, *, clips: bool, features: bool, init: bool) -> None:
    """See that nothing is given that this course does not use.

    Raises:
        InputError: it is; the message says what to leave out.
    """
    for name, given in (("--clips", clips), ("--option features", features)):
        if given:
            raise InputError(
                f"{name} is for recipes that keep features of clips, and {recipe.name} sees none "
                "twice: leave it out"
            )
    if init and recipe.start == "nothing":
        raise InputError(f"{recipe.name} is trained from nothing: leave out --init")


def train(recipe: Recipe, settings: CourseSettings) -> Path:
    """Train the recogniser in a folder; see `head_loop.teach`."""
    own = HeadSettings.of(settings)
    check_used(recipe, clips=settings.clips is not None, features=bool(own.features),
               init=bool(settings.init))  # fmt: skip
    return teach(lambda: RecognitionLesson(recipe, own), own, quiet=settings.quiet)
