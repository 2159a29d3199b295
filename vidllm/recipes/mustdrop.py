"""MustDrop (arXiv 2411.10803): fewer tokens in the tower, in the prefill and in the cache."""

from .recipe import Recipe

RECIPE = Recipe(
    "mustdrop",
    "windows merge in the tower, two tests drop tokens in the LLM, early caches follow",
    "MustDrop, arXiv 2411.10803",
    claim="92 % of the tokens gone at comparable answers, and every stage has its share in that",
    compressors="mustdrop:keep=0.5,mustdrop-filter,mustdrop-cache",
    keep=0.08,
    tasks=("stage",),
)
