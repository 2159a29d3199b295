"""The start of all comparisons: nothing is reduced."""

from .recipe import Recipe

RECIPE = Recipe(
    "plain",
    "every video token goes to the LLM",
    claim="what as many more steps give without any reduction",
    course="video-llm",
    trained=("projector", "temporal", "llm"),
    mixture=(("none", 1.0),),
    steps=1500,
    tasks=("stage",),
    weights="vidllm-stage",
)
