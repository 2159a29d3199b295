"""NaSVA (arXiv 2312.14055): sentences as queries over per-second features."""

from .recipe import Recipe

RECIPE = Recipe(
    "nasva",
    "sentences find their seconds in per-second features; also chooses frames by the question",
    "NaSVA, arXiv 2312.14055",
    claim="the trained head aligns better than similarity alone, and chooses frames better than an "
    "even spread",
    head="nasva",
    course="alignment",
    trained=("head",),
    steps=4000,
    weights="vidllm-nasva",
    tasks=("stage-align", "htm-align"),
)
