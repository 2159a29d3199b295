"""Courses: how systems are trained, one file each, by the name that `Recipe.course` gives.

A course has `train(recipe, settings) -> Path`: it trains in the folder `settings.out`, which may be
resumed, and writes there the model, `training.json`, the log and the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from vidllm.errors import InputError

from ..recipe import Recipe

#: Course to the file of it in this folder; "none" has none.
FILES = {
    "video-llm": "video_llm",
    "retrieval": "retrieval",
    "alignment": "alignment",
    "choice": "choice",
    "recognition": "recognition",
}


@dataclass(frozen=True)
class CourseSettings:
    """How a recipe is trained; what is None is as the recipe or its course has it.

    Attributes:
        out: folder of the result.
        size: "small", or "tiny" for trying out: then the start is a fresh tiny model.
        init: folder or name of the model to start from; "" for the shipped one.
        vision: type of the tower. temporal: name of the temporal encoder. time_code: see `Recipe`.
        compressor: of the result. keep: the share that it keeps. mixture: reductions met in
            training, as "SPEC=WEIGHT;SPEC=WEIGHT".
        data: "stage" for the made world, or a folder of videos with annotations.
        task: whose annotation files those are, see `vidllm list tasks`.
        lora: rank of the adapters, 0 for none.
        steps, batch, frames, clips, lr: of the training; `clips` scenes are gone round in.
        minutes: stop and save after so many; 0 is never. save_every: steps between two saves.
        resume: go on from the last save. seed: of everything random.
        workers: processes that draw. threads: of torch, 0 for all. device: auto, cpu or cuda.
        quiet: no bar, a line of JSON for each row of the log instead.
        more: options of one course alone, by name.
    """

    out: str
    size: str = "small"
    init: str = ""
    vision: str | None = None
    temporal: str | None = None
    time_code: str | None = None
    compressor: str | None = None
    keep: float | None = None
    mixture: str | None = None
    data: str = "stage"
    task: str | None = None
    lora: int | None = None
    steps: int | None = None
    batch: int | None = None
    frames: int | None = None
    clips: int | None = None
    lr: float | None = None
    minutes: float = 0.0
    save_every: int = 100
    log_every: int = 20
    resume: bool = False
    seed: int = 0
    workers: int = 1
    threads: int = 0
    device: str = "auto"
    quiet: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


class TrainingCourse(Protocol):
    """A file of this folder."""

    def train(self, recipe: Recipe, settings: CourseSettings) -> Path:
        """Train a system in `settings.out`, which is returned."""


def find_course(recipe: Recipe) -> TrainingCourse:
    """The course of a recipe.

    Raises:
        InputError: a recipe that trains nothing.
    """
    if recipe.course not in FILES:
        raise InputError(
            f"recipe {recipe.name!r} trains nothing: it works on a model as it is "
            f"(vidllm ask VIDEO QUESTION --recipe {recipe.name})"
        )
    found: Any = import_module(f"{__name__}.{FILES[recipe.course]}")
    return found
