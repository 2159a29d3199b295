"""SqueezeTime (arXiv 2405.08344): time folded into the channels of a 2-D CNN."""

from .recipe import Recipe

RECIPE = Recipe(
    "squeezetime",
    "sixteen frames are folded into channels and recognised as one picture",
    "SqueezeTime, arXiv 2405.08344",
    claim="faster than a tower of single frames at comparable accuracy",
    frames=16,
    vision="squeezetime",
    course="recognition",
    start="nothing",
    trained=("tower", "head"),
    steps=3000,
    tasks=("stage-actions",),
    weights="vidllm-squeezetime",
)
