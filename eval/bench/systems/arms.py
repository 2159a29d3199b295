"""What is compared: arms, each a recipe with what an ablation changes, and what each may cost.

An arm without a training is the start itself, asked with a reduction. All others begin at the
start and take the same steps over the same clips; arms of temporal encoders begin with a fresh
encoder, also that of the start's own kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vidllm.compressors import build
from vidllm.encoders.temporal import temporal_names
from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean
from vidllm.recipes import get_recipe
from vidllm.recipes.courses import CourseSettings

#: Steps between two saves of a training: a killed one loses what is newer.
SAVED = 25


@dataclass(frozen=True)
class Budget:
    """What every training gets.

    Attributes:
        steps, batch: of every training; clips: scenes that are gone round in. lr: the highest rate.
        size: "small", or "tiny" for trying out. init: the start; "" for the shipped model.
    """

    steps: int = 360
    batch: int = 4
    clips: int = 1000
    lr: float = 3e-4
    size: str = "small"
    init: str = ""

    def told(self) -> str:
        """In words."""
        return (
            f"{self.steps} steps of {self.batch} clips out of {self.clips} scenes of the split "
            f"train, rate {self.lr:g}"
        )


@dataclass(frozen=True)
class Arm:
    """One system of the table.

    Attributes:
        recipe: that is trained, "" for none. asked: what reduces its tokens at every share, a
            chain as "a+b"; "" for the reduction of the model itself.
        about: what it is, for the table. options: of `CourseSettings`, in place of the recipe's.
    """

    name: str
    recipe: str
    asked: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, keep: float) -> bool:
        """Whether it can be asked at a share: a chain's own parts may not allow one."""
        if "+" not in self.asked:
            return True
        try:
            build(self.asked.replace("+", ","), keep=keep)
        except InputError:
            return False
        return True

    def rate(self, budget: Budget) -> float:
        """The highest learning rate: the budget's, or its own."""
        return float(self.options.get("lr", budget.lr))

    def settings(self, budget: Budget, out: Path, cells: Path, seed: int) -> CourseSettings:
        """How it is trained in `out`; `cells` is a folder that all share."""
        options = {name: value for name, value in self.options.items() if name != "lr"}
        more = {"cells": str(cells), **options.pop("more", {})}
        return CourseSettings(
            out=str(out), size=budget.size, init=budget.init, steps=budget.steps,
            batch=budget.batch, clips=budget.clips, lr=self.rate(budget), seed=seed, more=more,
            save_every=SAVED, **options,
        )  # fmt: skip


START = "start"


def _spoken(
    recipe: str, called: str, parts: Mapping[str, tuple[str, str, Mapping[str, Any]]]
) -> list[Arm]:
    """Arms of a recipe that keep the start's time tokens, at the recipe's own rate.

    In these steps no model learns another way to tell times, and what cannot ground at all shows
    nothing of its parts: they are compared here.

    Args:
        parts: by name what is asked, what it is beside the recipe, and options.
    """
    own = {"time_code": "relative", "lr": get_recipe(recipe).lr}
    return [
        Arm("-".join(filter(None, (recipe, "relative", name))), recipe, asked,
            f"{called} with the start's time tokens{what}", {**own, **options})
        for name, (asked, what, options) in parts.items()
    ]  # fmt: skip


def _arms() -> tuple[Arm, ...]:
    aim, mustdrop = (get_recipe(n).compressors.replace(",", "+") for n in ("aim", "mustdrop"))
    even = "mustdrop+mustdrop-filter+mustdrop-cache"
    return (
        Arm(START, "", "", "the start, by its own reduction"),
        Arm("start-pool", "", "temporal-pool", "the start, pooled over time"),
        Arm("start-lita", "", "lita", "the start, by SlowFast tokens"),
        Arm("start-tome", "", "tome", "the start, merging in the tower"),
        Arm("aim", "", aim, "the start, by AIM: nothing is trained"),
        Arm("aim-even", "", "aim+aim-prune", "AIM whose two stages keep equal shares"),
        Arm("mustdrop", "", mustdrop, "the start, by MustDrop: nothing is trained"),
        Arm("mustdrop-even", "", even, "MustDrop whose stages keep equal shares"),
        Arm("mustdrop-window", "", "mustdrop", "MustDrop's merge in the tower alone"),
        Arm("mustdrop-filter", "", "mustdrop-filter", "MustDrop's filter in the LLM alone"),
        Arm("storm", "storm", "temporal-pool", "STORM"),
        Arm("storm-without", "storm", "temporal-pool", "STORM without a temporal encoder",
            {"temporal": "identity"}),
        Arm("plain", "plain", "temporal-pool", "as many steps without any reduction"),
        Arm("plain-without", "plain", "temporal-pool", "the same without a temporal encoder",
            {"temporal": "identity"}),
        Arm("lita", "lita", "lita", "LITA"),
        Arm("lita-text", "lita", "lita", "LITA with times as text", {"time_code": "text"}),
        Arm("lita-uniform", "lita", "uniform", "LITA with evenly spread tokens for SlowFast",
            {"compressor": "uniform"}),
        Arm("vtg-llm", "vtg-llm", "", "VTG-LLM"),
        Arm("vtg-llm-sampling", "vtg-llm", "frame-sample", "VTG-LLM with frames for slots",
            {"compressor": "frame-sample"}),
        Arm("timesuite", "timesuite", "", "TimeSuite"),
        *_spoken("vtg-llm", "VTG-LLM", {
            "": ("", "", {}),
            "sampling": ("frame-sample", " with frames for slots", {"compressor": "frame-sample"}),
            "attention": ("", " with cross-attention for slots",
                          {"compressor": "vtg-llm:sampler=cross-attention"}),
            "untimed": ("", " whose tokens know no frame and second",
                        {"compressor": "vtg-llm:timed=false"}),
        }),
        *_spoken("timesuite", "TimeSuite", {
            "": ("", "", {}),
            "pool": ("spatial-pool", " with pooling for its shuffle",
                     {"compressor": "spatial-pool"}),
            "plain": ("", " without adaptive positions", {"compressor": "timesuite:tape=false"}),
            "uncaptioned": ("", " that is never asked for captions",
                            {"more": {"without": "captions"}}),
        }),
        Arm("pyra", "pyra", "", "PYRA"),
        Arm("mrt5", "mrt5", "", "MrT5"),
        Arm("flextok", "flextok", "", "FlexTok"),
    )  # fmt: skip


ARMS = _arms()
#: The arms of every temporal encoder within the model: as many parameters, the same steps, and
#: STORM's mixture of reductions.
ENCODERS = "encoder-"


def encoder_arms() -> tuple[Arm, ...]:
    """An arm for every temporal encoder, all from fresh weights."""
    return tuple(
        Arm(
            f"{ENCODERS}{name}", "storm", "temporal-pool", f"the temporal encoder {name}",
            {"temporal": name, "more": {"fresh": "temporal"}},
        )
        for name in temporal_names()
    )  # fmt: skip


def chosen(patterns: str) -> list[Arm]:
    """Arms by name or wildcard, with commas between; the start is always the first.

    Args:
        patterns: "" for all but those of the encoders.

    Raises:
        InputError: one that fits no arm; the message has close names.
    """
    every = {arm.name: arm for arm in (*ARMS, *encoder_arms())}
    wanted = [part.strip() for part in patterns.split(",") if part.strip()]
    found = [START]
    for pattern in wanted or [arm.name for arm in ARMS]:
        some = [name for name in every if fnmatch(name, pattern)]
        if not some:
            raise InputError(f"no arm {pattern!r}: {did_you_mean(pattern, every)}")
        found += some
    return [every[name] for name in dict.fromkeys(found)]
