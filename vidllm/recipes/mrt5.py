"""MrT5 (arXiv 2410.20771): a learned gate deletes tokens."""

from .recipe import Recipe

RECIPE = Recipe(
    "mrt5",
    "a learned gate deletes tokens behind the temporal encoder",
    "MrT5, arXiv 2410.20771",
    claim="a gate that is trained with the answers deletes tokens at less cost than pooling",
    compressors="mrt5",
    keep=0.125,
    course="video-llm",
    trained=("projector", "temporal", "compressor", "llm"),
    mixture=(
        ("none", 0.15),
        ("mrt5:keep=0.25", 0.25),
        ("mrt5:keep=0.125", 0.35),
        ("mrt5:keep=0.05", 0.25),
    ),
    steps=1500,
    tasks=("stage",),
    weights="vidllm-stage",  # the gate was trained with it, and 0.125 is its default
)
