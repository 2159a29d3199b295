"""TimeSuite (arXiv 2410.19702): token shuffle, adaptive positions, temporally grounded captions."""

from .recipe import Lora, Recipe

RECIPE = Recipe(
    "timesuite",
    "neighbouring tokens join on their channels, with adaptive positions; times are text",
    "TimeSuite, arXiv 2410.19702",
    claim="shuffle beats pooling at equal count, adaptive positions and grounded captions help",
    compressors="timesuite",
    keep=0.25,
    time_code="text",
    course="video-llm",
    trained=("projector", "compressor", "embeddings", "lora"),
    lora=Lora(16, 32, dropout=0.1),
    mixture=(
        ("none", 0.1),
        ("timesuite:keep=0.25", 0.5),
        ("timesuite:keep=0.125", 0.25),
        ("timesuite:keep=0.05", 0.15),
    ),
    steps=1500,
    lr=2e-3,
    tasks=("stage", "charades", "qvhighlights-highlights"),
)
