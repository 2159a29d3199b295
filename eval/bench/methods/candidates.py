"""Which methods and chains are compared, and which of them a model met in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean
from vidllm.models.folder import read_config
from vidllm.models.native.config import NativeConfig
from vidllm.models.shipped import default_model, find_model

from ...run.run_settings import parts_of
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


def met_in_training(model: str | None) -> dict[str, list[float]]:
    """Which reductions a model was trained under: compressor → shares, the largest first.

    Models of `vidllm train` meet the mixture of `vidllm.stage.training.settings`; of models from
    the hub nothing is known, and nothing is claimed.

    Args:
        model: as given to ``--model``; None for the shipped one.
    """
    folder = str(default_model()) if model is None else find_model(model)
    try:
        kind = read_config(folder).get("model_type")
    except InputError:  # a name on the hub
        return {}
    if kind != NativeConfig.model_type:
        return {}
    from vidllm.stage.training.settings import MIXTURE

    found: dict[str, list[float]] = {}
    for spec, _ in MIXTURE:
        method = build(spec)
        if method.name != "none":
            found.setdefault(method.name.replace(",", "+"), []).append(method.keep)
    return {name: sorted(keeps, reverse=True) for name, keeps in found.items()}


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
