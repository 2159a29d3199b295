"""Recipes: named whole systems, one small file each; `courses` trains them.

Light on purpose: what is heavy is imported by the courses, which are looked up by name.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.outside import OutsideEntries
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

__all__ = [
    "RECIPES",
    "Course",
    "Lora",
    "Part",
    "Recipe",
    "get_recipe",
    "list_recipes",
    "package_of_recipe",
]

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


def _misfit(name: str, value: Any) -> str:
    if not isinstance(value, Recipe):
        return f"is a {type(value).__name__}, and must be a vidllm.recipes.Recipe"
    if value.name != name:
        return f"is recipe {value.name!r}: give it one name"
    return ""


#: Recipes of other packages.
_OUTSIDE = OutsideEntries("vidllm.recipes", "recipe", lambda: RECIPES, _misfit)


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: for a name that is not known, with the close ones, or one of another package
            that cannot be used.
    """
    _OUTSIDE.warn_if_taken(name)
    if name in RECIPES:
        return RECIPES[name]
    if _OUTSIDE.has(name):
        found: Recipe = _OUTSIDE.load(name)
        return found
    known = [*RECIPES, *_OUTSIDE.usable()]
    raise InputError(f"no recipe {name!r}: {did_you_mean(name, known, n=3)}")


def list_recipes(pattern: str = "*") -> list[Recipe]:
    """Recipes whose names match a wildcard pattern; those of other packages come last."""
    every = [*RECIPES.values(), *map(_OUTSIDE.load, _OUTSIDE.usable())]
    return [recipe for recipe in every if fnmatch(recipe.name, pattern)]


def package_of_recipe(name: str) -> str:
    """The package that a recipe is from."""
    return _OUTSIDE.package(name) or "vidllm"
