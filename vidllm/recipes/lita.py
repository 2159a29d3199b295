"""LITA (arXiv 2403.19046): SlowFast tokens, relative time tokens, reasoning localisation."""

from .recipe import Recipe

RECIPE = Recipe(
    "lita",
    "a mean a frame and a few frames in detail; times are relative tokens",
    "LITA, arXiv 2403.19046",
    claim="relative time tokens beat seconds as text, and SlowFast uniform tokens at equal count",
    compressors="lita",
    keep=0.125,
    time_code="relative",
    course="video-llm",
    trained=("projector", "llm"),
    mixture=(
        ("none", 0.15),
        ("lita:keep=0.25", 0.25),
        ("lita:keep=0.125", 0.35),
        ("lita:keep=0.05", 0.25),
    ),
    steps=1500,
    tasks=("stage", "activitynet-rtl"),
    weights="vidllm-lita",
)
