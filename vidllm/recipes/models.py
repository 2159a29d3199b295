"""Which model a recipe is asked of, and whether that one can carry it."""

from __future__ import annotations

import os
from pathlib import Path

from vidllm.models.shipped import default_model, find_model, shipped_models, weights_dir

from .recipe import Recipe


def ships(recipe: Recipe) -> bool:
    """Whether trained weights of a recipe are among those that ship."""
    return bool(recipe.weights) and recipe.weights in shipped_models()


def model_of(recipe: Recipe | None, name: str | os.PathLike[str] | None = None) -> str:
    """The folder or hub name of the model that is asked.

    Args:
        recipe: a system, or None. name: the model that a caller named; without one it is the
            recipe's own where that ships, else the shipped default.

    Raises:
        InputError: no such model. WorkError: no shipped model.
    """
    if name is not None:
        return find_model(str(name))
    if recipe is not None and ships(recipe):
        return str(weights_dir() / recipe.weights)
    return str(default_model())


def check_carries(recipe: Recipe, folder: str, name: str | os.PathLike[str] | None = None) -> None:
    """See that a model can carry a system, by its config alone.

    Args:
        folder: of `model_of`. name: of the model, for the message.

    Raises:
        InputError: it lacks a part; the message says which.
    """
    from vidllm.models.loading import model_parts

    told = str(name or Path(folder).name)
    recipe.check_model(told, model_parts(folder), ships=ships(recipe))
