"""Tem-Adapter (arXiv 2308.08414): frozen image–text features, two aligners, multiple choice."""

from .recipe import Recipe

RECIPE = Recipe(
    "tem-adapter",
    "frozen features of frames and options, aligned over time and in meaning",
    "Tem-Adapter, arXiv 2308.08414",
    claim="each of the two aligners helps to choose among options",
    head="tem-adapter",
    course="choice",
    trained=("head",),
    steps=6000,
    tasks=("stage-choice",),
)
