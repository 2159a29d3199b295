"""Recipes: named systems, each a set of options for `VideoLLM.from_pretrained`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatch

from vidllm.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """A named system as far as it acts on a trained model.

    Args:
        compressors, keep: the token reduction.
        summary: one line for `vidllm list recipes`.
        paper: where the system comes from.
        temporal: it reduces behind a temporal encoder, which the model must have.
    """

    name: str
    compressors: str
    keep: float | None
    summary: str
    paper: str = ""
    temporal: bool = False

    def check_model(self, model: str, has_temporal: bool) -> None:
        """See that a model has what the system is made of.

        Args:
            model: its name, for the message. has_temporal: whether it has a temporal encoder.

        Raises:
            InputError: the recipe would run without its temporal encoder.
        """
        if self.temporal and not has_temporal:
            alone = f"--compressor {self.compressors}"
            alone += "" if self.keep is None else f" --keep {self.keep:g}"
            raise InputError(
                f"recipe {self.name!r} reduces behind a temporal encoder, and {model} has none: "
                f"what is left of it is {alone}; ask for that by its name, or use a model with one"
            )


_RECIPES = (
    Recipe("plain", "none", 1.0, "every video token goes to the LLM"),
    Recipe(
        "storm",
        "temporal-pool",
        0.25,
        "temporal pooling by 4 behind the temporal encoder",
        "STORM, arXiv 2503.04130",
        temporal=True,
    ),
    Recipe(
        "storm-sampling",
        "temporal-pool:keep=0.25,frame-sample",
        0.125,
        "temporal pooling by 4 behind the temporal encoder, then every second frame slot",
        "STORM, arXiv 2503.04130",
        temporal=True,
    ),
    Recipe(
        "storm-spatial",
        "spatial-pool",
        0.25,
        "spatial pooling by 4 behind the temporal encoder",
        "STORM, arXiv 2503.04130",
        temporal=True,
    ),
    Recipe("aim-merge", "aim", 0.25, "AIM's merge in rounds of half", "AIM, arXiv 2412.03248"),
)
RECIPES: dict[str, Recipe] = {r.name: r for r in _RECIPES}


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: for a name that is not known, with the close ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or sorted(RECIPES)
    raise InputError(f"no recipe '{name}': did you mean {' or '.join(close)}?")


def list_recipes(pattern: str = "*") -> list[Recipe]:
    """Recipes whose names match a wildcard pattern."""
    return [r for r in _RECIPES if fnmatch(r.name, pattern)]
