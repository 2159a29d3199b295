"""FlexTok (arXiv 2502.13967): ordered registers, any prefix of which is a valid clip."""

from .recipe import Recipe

RECIPE = Recipe(
    "flextok",
    "ordered registers read the clip, coarse to fine",
    "FlexTok, arXiv 2502.13967",
    claim="with nested dropout one model serves every budget",
    compressors="flextok",
    keep=0.125,
    course="video-llm",
    trained=("projector", "compressor", "llm"),
    mixture=(
        ("none", 0.1),
        ("flextok:keep=0.25", 0.9),
    ),
    steps=1500,
    tasks=("stage",),
)
