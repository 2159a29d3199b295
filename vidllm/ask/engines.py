"""From the name of a model, of a recipe, or a model object, to the engine that `VideoLLM` asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import short
from vidllm.errors.paths import shown
from vidllm.models.engine import Engine
from vidllm.models.families.engine import HubEngine
from vidllm.models.heads.engine import HeadEngine
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.load_options import LoadOptions, LoadPlan
from vidllm.models.loading import choose_compressor, model_kind
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.model import NativeVideoLLM
from vidllm.recipes import Recipe, get_recipe
from vidllm.recipes.models import check_carries, model_of

#: Options that only transformers' own models take.
_OF_HUB = (
    "device_map",
    "max_memory",
    "offload_folder",
    "quantization_config",
    "revision",
    "token",
    "local_files_only",
    "processor",
)


def load_engine(
    name: Any,
    *,
    recipe: str | None,
    compressors: str | Compressor | None,
    keep: float | None,
    tokens: int | None,
    seed: int,
    loading: LoadOptions,
) -> Engine:
    """Load a model; all as for `VideoLLM.from_pretrained`."""
    named = None if recipe is None else get_recipe(recipe)
    if isinstance(name, nn.Module):
        return _around(name, named, compressors, keep, tokens, loading)
    if name is not None and not isinstance(name, (str, os.PathLike)):
        raise InputError(
            "a model is a name, a folder, or a model object of transformers with its processor, "
            f"not {short(repr(name))}"
        )
    folder = model_of(named, name)
    if named is not None and compressors is None:
        check_carries(named, folder, name)
        compressors, keep = named.compressors, named.keep if keep is None else keep
    plan = LoadPlan.of(loading)
    if compressors is not None:  # what is wrong here must not wait for the weights
        choose_compressor(NativeConfig(), compressors, keep, tokens)
    options: dict[str, Any] = {"compressors": compressors, "keep": keep, "tokens": tokens}
    plan.check_folder(folder)
    family = model_kind(folder, **plan.hub)
    if family not in (HEAD_TYPE, NativeConfig.model_type):
        return HubEngine.load(folder, plan, seed=seed, **options)
    if extra := plan.given(*_OF_HUB):
        raise InputError(
            f"{extra} is for models of transformers, and '{name or folder}' is one of this "
            f"project: leave {extra} out"
        )
    load = HeadEngine.load if family == HEAD_TYPE else NativeEngine.load
    attn: Any = plan.attn
    return load(folder, attn, plan.device, plan.dtype, seed=seed, **options)


def _around(
    model: nn.Module,
    recipe: Recipe | None,
    compressors: str | Compressor | None,
    keep: float | None,
    tokens: int | None,
    loading: LoadOptions,
) -> Engine:
    """Around a model object that the caller has loaded."""
    given = {name: value for name, value in loading.items() if value not in (None, False)}
    processor = given.pop("processor", None)
    if given:
        extra = next(iter(given))
        raise InputError(
            f"{extra} says how a model is loaded, and a {type(model).__name__} is loaded already: "
            f"leave {extra} out"
        )
    native = isinstance(model, NativeVideoLLM)
    options: dict[str, Any] = {"compressors": compressors, "keep": keep, "tokens": tokens}
    if recipe is not None and compressors is None:
        options["compressors"] = recipe.compressors
        options["keep"] = recipe.keep if keep is None else keep
    if not native:
        engine: Engine = HubEngine.around(model, processor, **options)
    elif processor is None:
        raise InputError("a model object comes without its tokenizer: give processor=tokenizer")
    else:
        engine = NativeEngine(model, processor, **options)
    if recipe is not None and compressors is None:
        recipe.check_model(type(model).__name__, engine.parts)
    return engine


def save_engine(engine: Engine, folder: str | os.PathLike[str]) -> None:
    """See `VideoLLM.save_pretrained`."""
    home = Path(folder)
    if home.exists() and not home.is_dir():
        raise InputError(f"{shown(home)} is a file: give a folder")
    try:
        home.mkdir(parents=True, exist_ok=True)
        engine.save(home)
    except InputError:
        raise
    except Exception as error:  # whatever the model's own way of saving trips over
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WorkError(f"the model cannot be saved in {shown(home)}: {line}") from error
