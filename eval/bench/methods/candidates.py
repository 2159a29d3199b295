"""Which methods and chains are compared, and which of them a model met in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.errors.paths import is_folder
from vidllm.errors.registry import did_you_mean
from vidllm.models.folder import read_config
from vidllm.models.native.config import NativeConfig
from vidllm.models.shipped import default_model, find_model
from vidllm.recipes import get_recipe

from ...run.run_settings import Wanted, parts_of, wanted
from ..model_cost import training_free
from .method_table import FREE, MET, RANDOM, RANDOM_WEIGHTS

#: Chains that are a published system, or a plain pair: pool over time, then choose.
CHAINS: tuple[str, ...] = (
    "aim+aim-prune",
    "dycoke+dycoke-cache",
    "mustdrop+mustdrop-filter+mustdrop-cache",
    "holitom:inner=0.5",
    "temporal-pool+frame-sample",
    "temporal-pool+spatial-pool",
    "temporal-pool+fastv",
)


def candidates(patterns: str, met: Mapping[str, Sequence[float]]) -> list[str]:
    """Compressors as settings write them, chains as "a+b"; `random`, the control, is the first.

    Args:
        patterns: names, wildcards or specs with commas between; "" for all methods without
            training, the chains, and what the model met in training.
        met: see `met_in_training`.

    Raises:
        InputError: one that is none of these and no compressor; the message has close names.
    """
    known = [*(name.replace(",", "+") for name in training_free()), *CHAINS]
    known = list(dict.fromkeys([*known, *met]))
    found = [] if patterns else known
    for pattern in parts_of(patterns, "--methods") if patterns else ():
        some = [name for name in known if fnmatch(name, pattern)]
        if not some:
            if any(sign in pattern for sign in "*?["):
                raise InputError(f"no method is like {pattern!r}: {did_you_mean(pattern, known)}")
            if method_of(pattern).name == "none":
                raise InputError("the uncompressed run is always made: leave none out of --methods")
            some = [pattern]
        found += some
    return list(dict.fromkeys([RANDOM, *found]))


def method_of(compressor: str) -> Compressor:
    """The method or chain of a setting. Raises InputError as `build` does."""
    return build(compressor.replace("+", ","))


def native_config(model: str | None) -> dict[str, Any] | None:
    """The config of one of vidllm's own models; None for any other.

    Args:
        model: as given to ``--model``; None for the shipped one.
    """
    folder = str(default_model()) if model is None else find_model(model)
    if not is_folder(folder):  # a name on the hub
        return None
    config = read_config(folder)
    return config if config.get("model_type") == NativeConfig.model_type else None


def own_compressor(config: Mapping[str, Any] | None) -> str | None:
    """What a model of vidllm reduces by if nobody says, a chain as "a+b"; None for nothing."""
    spec = str((config or {}).get("compressors") or "none")
    return None if spec == "none" else build(spec).name.replace(",", "+")


def met_in_training(config: Mapping[str, Any] | None) -> dict[str, list[float]]:
    """Which reductions a model was trained under: compressor → shares, the largest first.

    A model that was trained as a recipe met the recipe's mixture, where it has the recipe's own
    reduction; other models of `vidllm train` met that of `vidllm.stage.training.settings`. Of all
    else nothing is known, and nothing is claimed. A method with parameters was trained only where
    it is the model's own.

    Args:
        config: see `native_config`.
    """
    if config is None:
        return {}
    found: dict[str, list[float]] = {}
    for spec, _ in _mixture(config):
        method = build(spec)
        is_trained = not method.has_parameters or method.name == own_compressor(config)
        if method.name != "none" and is_trained:
            found.setdefault(method.name.replace(",", "+"), []).append(method.keep)
    return {name: sorted(keeps, reverse=True) for name, keeps in found.items()}


def _mixture(config: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    name = config.get("recipe")
    if not name:
        from vidllm.stage.training.settings import plan_of

        return plan_of(config["vision"]).mixture
    try:
        recipe = get_recipe(str(name))
    except InputError:  # of a package that is not here
        return ()
    usual = {"compressors": recipe.compressors, "keep": 1.0 if recipe.keep is None else recipe.keep}
    # With another reduction or share a training meets another mixture, which no config tells.
    return recipe.mixture if usual.items() <= {**usual, **config}.items() else ()


def asked_for(
    patterns: str, keep: str, met: Mapping[str, Sequence[float]], own: str | None
) -> Wanted:
    """The settings of the sweep; the model's own compressor with the parameters that it brings.

    Raises:
        InputError: as `candidates`, or shares that are none; 1 is always made.
    """
    names = candidates(patterns, met)
    named = [name for name in names if name != own or not method_of(name).has_parameters]
    found = wanted(",".join(named), keep)
    shares = dict.fromkeys(share for _, share in found.pairs)
    if 1 in shares:
        raise InputError("--keep 1 is the uncompressed run, which is always made: leave it out")
    if len(named) < len(names):
        found = replace(found, pairs=(*found.pairs, *((None, share) for share in shares)))
    return found


def kind_of(compressor: str, met: Mapping[str, Sequence[float]]) -> str:
    """Which of the kinds a compressor is of.

    A chain with a method that was met counts as met, and so does one that leaves the very same
    tokens as such a method at some shares (`Compressor.same_as`).
    """
    methods = method_of(compressor).methods
    names = {name for m in methods for name in (m.name, *re.findall(r"`([^`]+)`", m.same_as))}
    if names & met.keys():
        return MET
    return RANDOM_WEIGHTS if any(method.has_parameters for method in methods) else FREE
