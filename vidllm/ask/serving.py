"""Which compressors and recipes a model can serve, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vidllm.compressors import Compressor, build, describe
from vidllm.errors import InputError
from vidllm.recipes import get_recipe, list_recipes
from vidllm.recipes.models import ships

from .video_llm import VideoLLM

#: Share at which the methods of the registry are tried.
_SHARE = 0.5


@dataclass(frozen=True)
class Offer:
    """A compressor or a recipe, as one model sees it.

    Attributes:
        kind: "compressor" or "recipe". name: in its registry.
        spec: for `compressors=`. keep: the recipe's share, None for a compressor.
        summary: one line.
        reason: why this model cannot serve it; "" where it can.
        late: it chooses while the LLM runs, so there is no preview.
        query_aware: it reads the question.
    """

    kind: str
    name: str
    spec: str
    keep: float | None
    summary: str
    reason: str = ""
    late: bool = False
    query_aware: bool = False

    @property
    def served(self) -> bool:
        """Whether the model can serve it."""
        return not self.reason


def offers(llm: VideoLLM) -> list[Offer]:
    """Every recipe and every registered compressor, with what speaks against it."""
    found = []
    for kind, name, spec, keep, summary in _known():
        try:
            method = build(spec, keep=1.0 if name in ("none", "plain") else (keep or _SHARE))
        except InputError as error:
            found.append(Offer(kind, name, spec, keep, summary, str(error)))
            continue
        found.append(
            Offer(
                kind,
                name,
                spec,
                keep,
                summary,
                _refused(llm, kind, name) or refusal(llm, method),
                method.inside_decoder(),
                method.query_aware,
            )
        )
    return found


def _refused(llm: VideoLLM, kind: str, name: str) -> str:
    """Which part of a recipe the model cannot carry; "" for none."""
    if kind != "recipe":
        return ""
    recipe = get_recipe(name)
    return recipe.refusal("this model", llm.engine.parts, ships=ships(recipe))


def refusal(llm: VideoLLM, method: Compressor) -> str:
    """Why a model cannot serve a method, in one line; "" where it can."""
    try:
        llm.engine.check_serves(method)
    except InputError as error:
        return str(error)
    return ""


def _known() -> Iterator[tuple[str, str, str, float | None, str]]:
    for recipe in list_recipes():
        yield "recipe", recipe.name, recipe.compressors, recipe.keep, recipe.summary
    for entry in describe():
        yield "compressor", entry["name"], entry["name"], None, entry["summary"]
