"""STORM (arXiv 2503.04130): a state space over space and time, so that pooling loses little."""

from dataclasses import replace

from .recipe import Recipe

RECIPE = Recipe(
    "storm",
    "temporal pooling by 4 behind the temporal encoder",
    "STORM, arXiv 2503.04130",
    claim="behind the temporal encoder an eighth of the tokens costs little, without it much more",
    temporal=(
        {"name": "ssd", "layers": 2, "scan": "slot", "head_dim": 32},
        {"name": "ssd", "layers": 1, "scan": "raster", "head_dim": 32},
    ),
    compressors="temporal-pool",
    keep=0.25,
    course="video-llm",
    trained=("projector", "temporal", "llm"),
    mixture=(
        ("none", 0.2),
        ("temporal-pool:keep=0.5", 0.1),
        ("temporal-pool:keep=0.25", 0.3),
        ("temporal-pool:keep=0.125", 0.2),
        ("temporal-pool:keep=0.0625", 0.1),
        ("spatial-pool:keep=0.25", 0.1),
    ),
    steps=1500,
    tasks=("stage",),
)
VARIANTS = (
    replace(
        RECIPE,
        name="storm-sampling",
        summary="temporal pooling by 4 behind the temporal encoder, then every second frame slot",
        compressors="temporal-pool:keep=0.25,frame-sample",
        keep=0.125,
    ),
    replace(
        RECIPE,
        name="storm-spatial",
        summary="spatial pooling by 4 behind the temporal encoder",
        compressors="spatial-pool",
    ),
)
