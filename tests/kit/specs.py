"""Compressor specs that stand for every method, and for the ways of combining them."""

from vidllm.compressors import names

SPECS = [
    *(name for name in names() if name not in ("none", "mustdrop-cache")),
    "mustdrop-filter,mustdrop-cache",
    "temporal-pool,fastv",
    "visionzip,storm,dart",
    "per-scene:scenes=2(evs)",
    "frame-budget(vidcom2)",
    "holitom:inner=0.5",
]
