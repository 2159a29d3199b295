"""AIM (arXiv 2412.03248): merge before the LLM, prune inside it; nothing is trained."""

from dataclasses import replace

from .recipe import Recipe

RECIPE = Recipe(
    "aim",
    "merging before the LLM, then pruning by PageRank in it",
    "AIM, arXiv 2412.03248",
    claim="a seventh of the decoder's FLOPs at small cost, and the measured prefill falls with it",
    compressors="aim:keep=0.25,aim-prune",
    keep=0.03,
    tasks=("stage",),
)
VARIANTS = (
    replace(
        RECIPE,
        name="aim-merge",
        summary="AIM's merge in rounds of half",
        compressors="aim",
        keep=0.25,
    ),
)
