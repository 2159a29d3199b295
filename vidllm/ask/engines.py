"""From the name of a model, or of a recipe, to the engine that `VideoLLM` asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.errors.paths import is_folder
from vidllm.models.engine import Engine
from vidllm.models.families.adapters import take_up
from vidllm.models.families.engine import HubEngine
from vidllm.models.heads.engine import HeadEngine
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.hooks.learned import Temporal, find_temporal, read_temporal
from vidllm.models.loading import (
    choose_compressor,
    choose_device,
    choose_dtype,
    model_kind,
)
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.engine import NativeEngine
from vidllm.models.tuned import find_tuned
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
    temporal: Temporal | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Engine:
    """Load a model; all as for `VideoLLM.from_pretrained`."""
    named = None if recipe is None else get_recipe(recipe)
    tuned = find_tuned(name if adapter is None else adapter)
    if adapter is not None and tuned is None:
        raise InputError(f"no adapters in {adapter}: give a folder of vidllm train hub")
    if tuned is not None:
        name = tuned.model if adapter is None or name is None else name
        if named is None and compressors is None and keep != 1:
            compressors, keep = tuned.compressors, tuned.keep if keep is None else keep
    folder = model_of(named, name)
    if named is not None and compressors is None:
        if temporal is None and tuned is None:  # else what it lacks is put in
            check_carries(named, folder, name)
        compressors, keep = named.compressors, named.keep if keep is None else keep
    family = model_kind(folder)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if family in (NativeConfig.model_type, HEAD_TYPE) and (temporal or tuned):
        raise InputError(
            "temporal encoders and adapters are put into hub models: "
            f"{Path(folder).name} is trained with its own (vidllm train --help)"
        )
    found = None if temporal is None else read_temporal(temporal)
    if compressors is not None:  # what is wrong here must not wait for the weights
        choose_compressor(NativeConfig(), compressors, keep, tokens)
    options: dict[str, Any] = {"compressors": compressors, "keep": keep, "tokens": tokens}
    if family == HEAD_TYPE:
        return HeadEngine.load(folder, attn, place, kind, seed=seed, **options)
    load = NativeEngine.load if family == NativeConfig.model_type else HubEngine.load
    engine: Engine = load(folder, attn, place, kind, seed=seed, **options)
    if not isinstance(engine, HubEngine):
        return engine
    if tuned is not None:
        take_up(engine, tuned)
    if found is not None:
        if engine.temporal is not None:
            raise InputError(
                f"{adapter or name} has a temporal encoder already: leave out temporal"
            )
        engine.put_temporal(find_temporal(engine.adapter, found, recipe or ""))
        if isinstance(temporal, str | os.PathLike) and is_folder(temporal):
            engine.compressor = engine.compressor.trained_in(Path(temporal))
    if named is not None and (tuned is not None or found is not None):
        named.check_model(str(name), engine.parts)
    return engine
