"""Recipes: named whole systems, one small file each; `courses` trains them.

Light on purpose: what is heavy is imported by the courses, which are looked up by name.
"""

from __future__ import annotations

from fnmatch import fnmatch

from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean

from . import (
    aim,
    dist,
    flextok,
    lita,
    mrt5,
    mustdrop,
    nasva,
    plain,
    pyra,
    squeezetime,
    storm,
    tem_adapter,
    tempme,
    timesuite,
    vtg_llm,
)
from .recipe import Course, Lora, Part, Recipe

__all__ = ["RECIPES", "Course", "Lora", "Part", "Recipe", "get_recipe", "list_recipes"]

_RECIPES: tuple[Recipe, ...] = (
    plain.RECIPE,
    storm.RECIPE,
    *storm.VARIANTS,
    aim.RECIPE,
    *aim.VARIANTS,
    mustdrop.RECIPE,
    tempme.RECIPE,
    lita.RECIPE,
    vtg_llm.RECIPE,
    timesuite.RECIPE,
    nasva.RECIPE,
    tem_adapter.RECIPE,
    dist.RECIPE,
    squeezetime.RECIPE,
    pyra.RECIPE,
    mrt5.RECIPE,
    flextok.RECIPE,
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: for a name that is not known, with the close ones.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}: {did_you_mean(name, RECIPES, n=3)}")
    return RECIPES[name]


def list_recipes(pattern: str = "*") -> list[Recipe]:
    """Recipes whose names match a wildcard pattern."""
    return [recipe for recipe in _RECIPES if fnmatch(recipe.name, pattern)]
