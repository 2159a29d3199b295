"""PYRA (arXiv 2403.09192): tokens are modulated before they merge in the tower."""

from .recipe import Lora, Recipe

RECIPE = Recipe(
    "pyra",
    "tokens merge in the tower as with ToMe, modulated before they do",
    "PYRA, arXiv 2403.09192",
    claim="a trained modulation gives back part of what merging many tokens in the tower costs",
    vision="clip_vision_model",
    compressors="pyra",
    keep=0.25,
    course="video-llm",
    trained=("compressor", "lora"),
    lora=Lora(8, 8, ("q_proj", "v_proj"), where="tower"),
    mixture=(("pyra:keep=0.25", 1.0),),
    steps=800,
    tasks=("stage",),
)
