"""DiST (arXiv 2309.07911): a temporal side network on a frozen image transformer."""

from .recipe import Recipe

RECIPE = Recipe(
    "dist",
    "a side network over time beside a frozen tower recognises actions",
    "DiST, arXiv 2309.07911",
    claim="actions that depend on order need the side network; no gradient goes through the tower",
    vision="dist",
    course="recognition",
    trained=("head",),
    steps=3000,
    tasks=("stage-actions",),
    weights="vidllm-dist",
)
