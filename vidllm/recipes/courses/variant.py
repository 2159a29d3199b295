"""A recipe as one training has it: what the command line says in place of the recipe's own."""

from __future__ import annotations

import re
from dataclasses import replace

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.errors.bounds import number

from ..recipe import Lora, Recipe
from . import CourseSettings

#: Mixture for a method that no recipe names: shares as parts of its own, and their weights.
_SHARES = ((2.0, 0.25), (1.0, 0.4), (0.5, 0.2))
_WHOLE = 0.15


def as_trained(recipe: Recipe, settings: CourseSettings) -> Recipe:
    """The recipe with the options of a training in it.

    Raises:
        InputError: a method or mixture that cannot be trained with, or options that do not go
            together.
    """
    given = {
        name: value
        for name in ("vision", "time_code", "frames", "steps", "lr", "keep")
        if (value := getattr(settings, name)) is not None
    }
    if settings.temporal is not None:
        given["temporal"] = (
            () if settings.temporal == "identity" else ({"name": settings.temporal},)
        )
        given["trained"] = tuple(dict.fromkeys((*recipe.trained, "temporal")))
    if settings.compressor is not None:
        given["compressors"] = settings.compressor
    if given.get("compressors", recipe.compressors) == "none":
        if settings.keep is not None and settings.keep < 1:
            raise InputError(f"none keeps every token: leave out --keep {settings.keep:g}")
        given["keep"] = 1.0
    if settings.lora is not None:
        own = recipe.lora or Lora(0, 0)
        given["lora"] = None if settings.lora == 0 else _of_rank(own, settings.lora)
        parts = (p for p in recipe.trained if p != "lora")
        given["trained"] = (*parts, *(() if settings.lora == 0 else ("lora",)))
    made = replace(recipe, **given)
    if settings.mixture is not None:
        made = replace(made, mixture=read_mixture(settings.mixture))
    elif settings.compressor is not None or settings.keep is not None or not made.mixture:
        alike = () if settings.keep is not None else _with_method(recipe, made.compressors)
        made = replace(made, mixture=alike or usual_mixture(made.compressors, made.keep))
    method = build(made.compressors, keep=1.0 if made.keep is None else made.keep)
    if settings.compressor is not None and method.has_parameters:
        made = replace(made, trained=tuple(dict.fromkeys((*made.trained, "compressor"))))
    met = " ".join(spec for spec, _ in made.mixture)
    for name in made.learned if "compressor" in made.trained else ():
        if not re.search(rf"(?<![\w-]){name}(?![\w-])", met):
            raise InputError(
                f"the parameters of {name} would learn nothing: training meets {met}; give "
                f"--keep below 1, or a --mixture with {name}"
            )
    for spec, _ in made.mixture:
        check_trains(build(spec), spec)
    return made


def _with_method(recipe: Recipe, compressors: str) -> tuple[tuple[str, float], ...]:
    """The recipe's mixture with another method at the same shares; () where that says nothing.

    So a recipe and its variant differ in the method alone.
    """
    own, chained = recipe.compressors, set(",(")
    if compressors == "none" or chained & {*own, *compressors} or "keep=" in compressors:
        return ()
    made = []
    for spec, weight in recipe.mixture:
        name, _, options = spec.partition(":")
        if name not in (own.partition(":")[0], "none"):
            return ()
        share = [option for option in options.split(":") if option.startswith("keep=")]
        made.append((":".join([compressors, *share]) if name != "none" else spec, weight))
    return tuple(made)


def check_trains(method: Compressor, spec: str) -> None:
    """See that training can meet a method.

    Raises:
        InputError: it works inside the decoder, or leaves open how much it keeps.
    """
    if method.inside_decoder():
        raise InputError(
            f"{spec} works inside the decoder, where it is trained with nothing: it needs no "
            "training; ask with it (--compressor), and train with methods before the decoder"
        )
    if method.name != "none" and method.lacks_share():
        raise InputError(f"how much should {spec} keep in training? Write {spec}:keep=0.25")


def read_mixture(text: str) -> tuple[tuple[str, float], ...]:
    """ "SPEC@WEIGHT;SPEC@WEIGHT", the weights 1 where they are left out; they sum up to 1 then.

    Raises:
        InputError: no such list.
    """
    found = []
    for part in text.split(";"):
        spec, mark, weight = (piece.strip() for piece in part.rpartition("@"))
        if not mark:
            spec, weight = weight, "1"
        try:
            found.append((spec, float(number("weight", weight, whole=False, told="--mixture"))))
        except ValueError:
            raise InputError(
                f"--mixture is a list such as none@0.2;aim:keep=0.25@0.8, not {text!r}"
            ) from None
        if not spec or found[-1][1] <= 0:
            raise InputError("--mixture: every entry has a method and a weight above 0")
    total = sum(weight for _, weight in found)
    return tuple((spec, weight / total) for spec, weight in found)


def usual_mixture(compressors: str, keep: float | None) -> tuple[tuple[str, float], ...]:
    """Mostly around the share that is kept, now and then all tokens."""
    if compressors == "none" or keep == 1:
        return (("none", 1.0),)
    if keep is None or "," in compressors or "(" in compressors or "keep=" in compressors:
        method = build(compressors)
        if method.lacks_share():
            raise InputError(
                f"--compressor {compressors} leaves open what training meets: give --mixture"
            )
        return (("none", _WHOLE), (compressors, 1 - _WHOLE))
    shares = [(min(1.0, part * keep), weight) for part, weight in _SHARES]
    return (("none", _WHOLE), *((f"{compressors}:keep={share:g}", w) for share, w in shares))


def _of_rank(own: Lora, rank: int) -> Lora:
    scale = own.alpha / own.rank if own.rank else 1.0
    return replace(own, rank=rank, alpha=round(scale * rank))
