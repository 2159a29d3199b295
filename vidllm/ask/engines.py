"""From the name of a model, of a recipe, or a model object, to the engine that `VideoLLM` asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from vidllm.compressors import Compressor
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import short
from vidllm.errors.paths import is_folder, shown
from vidllm.models.engine import Engine
from vidllm.models.families.adapters import take_up
from vidllm.models.families.engine import HubEngine
from vidllm.models.heads.engine import HeadEngine
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.hooks.learned import Temporal, find_temporal, read_temporal
from vidllm.models.hub import is_hub_name, unreachable
from vidllm.models.load_options import LoadOptions, LoadPlan
from vidllm.models.loading import choose_compressor, model_kind
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.model import NativeVideoLLM
from vidllm.models.serving.vllm_engine import VllmEngine
from vidllm.models.tuned import Tuned, find_tuned
from vidllm.recipes import get_recipe
from vidllm.recipes.models import check_carries, model_of, ships

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
    "engine",
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
    temporal: Temporal | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Engine:
    """Load a model; all as for `VideoLLM.from_pretrained`."""
    if name is not None and not isinstance(name, (str, os.PathLike, nn.Module)):
        raise InputError(
            "a model is a name, a folder, or a model object of transformers with its processor, "
            f"not {short(repr(name))}"
        )
    named = None if recipe is None else get_recipe(recipe)
    tuned = _find_tuned(name, adapter, loading)
    if tuned is not None:
        name = tuned.model if adapter is None or name is None else name
        if named is None and compressors is None and keep != 1:
            compressors, keep = tuned.compressors, tuned.keep if keep is None else keep
    adapted = temporal is not None or tuned is not None
    found = None if temporal is None else read_temporal(temporal)
    own = named is not None and compressors is None  # the recipe's own reduction
    if named is not None and own:
        if not adapted and not isinstance(name, nn.Module):  # else once all parts are there
            check_carries(named, model_of(named, name), name)
        compressors, keep = named.compressors, named.keep if keep is None else keep
    if compressors is not None:  # what is wrong here must not wait for the weights
        choose_compressor(NativeConfig(), compressors, keep, tokens)
    options: dict[str, Any] = {"compressors": compressors, "keep": keep, "tokens": tokens}
    if isinstance(name, nn.Module):
        engine = _around(name, loading, options)
    else:
        folder = model_of(named, name)
        engine = _load(folder, name, loading, options | {"seed": seed}, adapted)
        if named is not None and ships(named) and folder == model_of(named):
            engine.by_recipe = named.name
    engine.name = _called(name if isinstance(name, nn.Module) else folder)
    if adapted:
        _adapt(engine, tuned, found, temporal, recipe or "")
    if named is not None and (adapted or (own and isinstance(name, nn.Module))):
        told = type(name).__name__ if isinstance(name, nn.Module) else str(name)
        named.check_model(told, engine.parts, ships=ships(named))
    return engine


def _called(model: str | nn.Module) -> str:
    """A model's name for receipts: of a folder its last part, as paths are nobody's business."""
    if isinstance(model, nn.Module):
        told = getattr(getattr(model, "config", None), "_name_or_path", "")
        return _called(str(told)) if told else type(model).__name__
    return Path(model).name if is_folder(model) else model


def _local(adapter: str | os.PathLike[str], loading: LoadOptions) -> str | os.PathLike[str]:
    """The folder of adapters: itself, or where the hub's client keeps those of OWNER/NAME."""
    if not isinstance(adapter, str) or is_folder(adapter) or not is_hub_name(adapter):
        return adapter
    from huggingface_hub import snapshot_download

    how = {name: loading.get(name) for name in ("token", "local_files_only")}
    given: dict[str, Any] = {name: value for name, value in how.items() if value}
    try:
        return snapshot_download(adapter, allow_patterns=["*.json", "*.safetensors"], **given)
    except Exception as error:  # whatever the client trips over
        raise unreachable(adapter, error, bool(given.get("local_files_only"))) from error


def _find_tuned(
    name: str | os.PathLike[str] | nn.Module | None,
    adapter: str | os.PathLike[str] | None,
    loading: LoadOptions,
) -> Tuned | None:
    if adapter is None:
        return None if isinstance(name, nn.Module) else find_tuned(name)
    tuned = find_tuned(_local(adapter, loading))
    if tuned is None:
        raise InputError(f"no adapters in {adapter}: give a folder of vidllm train hub")
    return tuned


def _load(
    folder: str,
    name: str | os.PathLike[str] | None,
    loading: LoadOptions,
    options: dict[str, Any],
    adapted: bool,
) -> Engine:
    """From a folder or a name on the hub, by its kind."""
    plan = LoadPlan.of(loading)
    plan.check_folder(folder)
    family = model_kind(folder, **plan.hub)
    if family not in (HEAD_TYPE, NativeConfig.model_type):
        if plan.engine == "transformers":
            return HubEngine.load(folder, plan, **options)
        if adapted:
            raise InputError("vLLM takes no adapters of ours: leave out engine, or the adapter")
        return VllmEngine.load(folder, plan, **options)
    if adapted:
        raise InputError(_not_adapted(Path(folder).name))
    if extra := plan.given(*_OF_HUB):
        raise InputError(
            f"{extra} is for models of transformers, and '{name or folder}' is one of this "
            f"project: leave {extra} out"
        )
    load = HeadEngine.load if family == HEAD_TYPE else NativeEngine.load
    attn: Any = plan.attn
    return load(folder, attn, plan.device, plan.dtype, **options)


def _around(model: nn.Module, loading: LoadOptions, options: dict[str, Any]) -> Engine:
    """Around a model object that the caller has loaded."""
    given = {name: value for name, value in loading.items() if value not in (None, False)}
    processor: Any = given.pop("processor", None)
    if given:
        extra = next(iter(given))
        raise InputError(
            f"{extra} says how a model is loaded, and a {type(model).__name__} is loaded already: "
            f"leave {extra} out"
        )
    if not isinstance(model, NativeVideoLLM):
        return HubEngine.around(model, processor, **options)
    if processor is None:
        raise InputError("a model object comes without its tokenizer: give processor=tokenizer")
    return NativeEngine(model, processor, **options)


def _adapt(
    engine: Engine,
    tuned: Tuned | None,
    found: Temporal | None,
    temporal: Temporal | None,
    recipe: str,
) -> None:
    """Put adapters, or a temporal encoder, into the model of an engine."""
    if not isinstance(engine, HubEngine):
        raise InputError(_not_adapted("this model"))
    if tuned is not None:
        take_up(engine, tuned)
    if found is None:
        return
    if engine.temporal is not None:
        raise InputError("the adapters bring a temporal encoder already: leave out temporal")
    engine.put_temporal(find_temporal(engine.adapter, found, recipe))
    if isinstance(temporal, str | os.PathLike) and is_folder(temporal):
        engine.compressor = engine.compressor.trained_in(Path(temporal))


def _not_adapted(model: str) -> str:
    return (
        f"temporal encoders and adapters are put into hub models: {model} is trained with its own "
        "(vidllm train --help)"
    )


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
