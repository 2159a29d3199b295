"""The start of all comparisons: nothing is reduced."""

from .recipe import Recipe

RECIPE = Recipe(
    "plain",
    "every video token goes to the LLM",
    tasks=("stage",),
)
