"""From the name of a model, or of a recipe, to the engine that `VideoLLM` asks."""

from __future__ import annotations

import os
from typing import Any

from vidllm.compressors import Compressor
from vidllm.models.engine import Engine
from vidllm.models.families.engine import HubEngine
from vidllm.models.heads.engine import HeadEngine
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.loading import (
    choose_compressor,
    choose_device,
    choose_dtype,
    model_kind,
)
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.engine import NativeEngine
from vidllm.recipes import get_recipe
from vidllm.recipes.models import check_carries, model_of


def load_engine(
    name: str | os.PathLike[str] | None,
    *,
    recipe: str | None,
    compressors: str | Compressor | None,
    keep: float | None,
    device: str | None,
    dtype: str | None,
    attn: str | None,
    tokens: int | None,
    seed: int,
) -> Engine:
    """Load a model; all as for `VideoLLM.from_pretrained`."""
    named = None if recipe is None else get_recipe(recipe)
    folder = model_of(named, name)
    if named is not None and compressors is None:
        check_carries(named, folder, name)
        compressors, keep = named.compressors, named.keep if keep is None else keep
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if compressors is not None:  # what is wrong here must not wait for the weights
        choose_compressor(NativeConfig(), compressors, keep, tokens)
    options: dict[str, Any] = {"compressors": compressors, "keep": keep, "tokens": tokens}
    family = model_kind(folder)
    if family == HEAD_TYPE:
        return HeadEngine.load(folder, attn, place, kind, seed=seed, **options)
    load = NativeEngine.load if family == NativeConfig.model_type else HubEngine.load
    return load(folder, attn, place, kind, seed=seed, **options)
