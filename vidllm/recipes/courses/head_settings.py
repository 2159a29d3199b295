"""Settings of the courses that train a system without an LLM, with all that a course fills in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean

from ..recipe import Recipe
from . import CourseSettings

SIZES = ("small", "tiny")
#: Settings of a course that say how an LLM is trained, or with what.
_ELSEWHERE = (
    "vision", "temporal", "time_code", "compressor", "keep", "mixture", "data", "task", "lora",
    "frames",
)  # fmt: skip
#: Settings that `CourseSettings.more` may give: all that it has no field for.
OWN = ("features", "warmup", "weight_decay", "clip", "ema")


@dataclass(frozen=True)
class HeadSettings:
    """How to train; the course fills in what is 0 or empty.

    Args:
        out: folder of the result.
        size: "small" (what ships), or "tiny" for trying out: a small head on a fresh random model.
        init: folder or shipped name of the model to stand on; "" for the shipped default.
        steps, batch, lr: of AdamW: warm-up, then half a cosine down to 2 %.
        clips: training clips whose frozen features are kept on disk.
        features: file of these, so that runs on one frozen model share it; default in `out`.
        head: options of the head or encoder, in place of the course's, for ablations.
        minutes: stop and save after so many (0: no limit); `resume` goes on from there.
    """

    out: str
    size: str = "small"
    init: str = ""
    steps: int = 0
    batch: int = 0
    lr: float = 0.0
    clips: int = 0
    features: str = ""
    head: tuple[tuple[str, Any], ...] = ()
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    minutes: float = 0.0
    resume: bool = False
    threads: int = 0
    device: str = "auto"
    log_every: int = 50
    save_every: int = 250

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InputError(f"size must be one of {', '.join(SIZES)}, not {self.size!r}")
        least = {"steps": 0, "batch": 0, "clips": 0, "warmup": 0, "log_every": 1, "save_every": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} must be at least {value}, not {getattr(self, name)}")
        if self.lr < 0 or self.minutes < 0:
            raise InputError("lr and minutes must not be below 0")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device must be auto, cpu or cuda, not {self.device!r}")

    @classmethod
    def of(cls, settings: CourseSettings) -> HeadSettings:
        """From the settings of any course.

        What nobody gives is left to the course.

        Raises:
            InputError: something that these courses do not take.
        """
        usual = {item.name: item.default for item in fields(CourseSettings)}
        for name in _ELSEWHERE:
            if getattr(settings, name) != usual[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} is for recipes with an LLM: leave it out here"
                )
        counts = {n: getattr(settings, n) or 0 for n in ("steps", "batch", "clips", "lr")}
        same = ("out", "size", "init", "minutes", "resume", "seed", "threads", "device")
        given = {name: getattr(settings, name) for name in same}
        given |= {"save_every": settings.save_every, "log_every": settings.log_every}
        more = dict(settings.more)
        for name, value in more.items():
            if name not in OWN:
                raise InputError(f"no setting {name!r} here: {did_you_mean(name, OWN)}")
            if isinstance(value, str):
                more[name] = _read(name, value, type(getattr(cls, name, "")))
        return cls(**{**given, **counts, **more})


def _read(name: str, text: str, kind: type) -> Any:
    """A setting as the command line gives it."""
    if kind not in (int, float, str):
        raise InputError(f"setting {name!r} has no form on the command line: leave it out")
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f"setting {name!r} must be a number, not {text!r}") from error


def filled(settings: HeadSettings, recipe: Recipe, size: Mapping[str, Any]) -> HeadSettings:
    """The settings with what is 0 taken from a size of the course, or else from the recipe."""
    usual = {"steps": recipe.steps, "lr": recipe.lr, **size}
    names = ("steps", "batch", "lr", "clips")
    return replace(settings, **{n: getattr(settings, n) or usual.get(n, 0) for n in names})
