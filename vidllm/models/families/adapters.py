"""LoRA beside the decoder of a hub model, through peft, and folders of adapters put into an engine.

The layers stand in the model itself, so that whoever calls it, by whatever method, has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from vidllm.errors import InputError

from ..hooks.learned import find_temporal, width_of
from ..tuned import TEMPORAL, Tuned, check_tuned
from .engine import HubEngine
from .family import Adapter

#: Never adapted: what makes words of states.
_HEAD = "lm_head"


def take_up(engine: HubEngine, tuned: Tuned) -> None:
    """Put a folder's adapters beside the model of an engine, in place.

    Raises:
        InputError: they are another model's, damaged, or a LoRA without peft.
    """
    width, kind = width_of(engine.adapter)
    check_tuned(tuned, kind, width, len(cast(Any, engine.adapter.decoder).layers))
    if tuned.lora:
        load_lora(engine.model, tuned.folder)
    if (tuned.folder / TEMPORAL).is_file():
        engine.put_temporal(find_temporal(engine.adapter, tuned.folder))
    engine.tuned = tuned
    engine.compressor = engine.with_trained(engine.compressor)


def load_lora(model: nn.Module, folder: Path, *, trained: bool = False) -> Any:
    """Put the LoRA of a folder beside the layers of a model; peft's wrapper around it.

    Args:
        trained: it is to be trained further.

    Raises:
        InputError: peft is not installed, the model has adapters, or these are not for it.
    """
    peft = _peft()
    _check_plain(model)
    try:
        put = peft.PeftModel.from_pretrained
        return put(cast(Any, model), str(folder), is_trainable=trained).eval()
    except Exception as error:  # whatever its files and the model trip over
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"the LoRA in {folder} does not fit this model: {line}") from error


def lora_rank(folder: Path) -> int:
    """The rank of a folder's LoRA.

    Raises:
        InputError: peft is not installed, or its files are damaged.
    """
    try:
        return int(_peft().PeftConfig.from_pretrained(str(folder)).r)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no LoRA that peft can read: {error}") from error


def new_lora(adapter: Adapter, rank: int) -> Any:
    """Put a new LoRA beside all linear layers of the decoder; peft's wrapper around the model.

    The model says at first what it said. alpha is twice the rank, as is usual.

    Raises:
        InputError: peft is not installed, or the model has adapters already.
    """
    peft = _peft()
    _check_plain(adapter.model)
    inside = {id(module) for module in adapter.decoder.modules()}
    names = [
        name
        for name, module in adapter.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and not name.endswith(_HEAD)
    ]
    if not names:
        raise InputError(f"{adapter.family}: its decoder has no linear layers that take a LoRA")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, bias="none")
    return peft.get_peft_model(adapter.model, config)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("LoRA needs peft: pip install 'vidllm[lora]'") from error
    return peft


def _check_plain(model: nn.Module) -> None:
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise InputError(
            "the model has LoRA adapters already: merge them first (model.merge_and_unload()), or "
            "load it without"
        )
