"""How a model is loaded: the options that people give, checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

import torch
from transformers import AttentionInterface

from vidllm.errors import InputError
from vidllm.errors.bounds import short
from vidllm.errors.paths import is_folder

from .hub import ENGINES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Ways to spread a model over devices that accelerate knows by name.
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
#: An implementation of attention, or one for each part of a model.
Attention = str | Mapping[str, str] | None


class LoadOptions(TypedDict, total=False):
    """Options of `VideoLLM.from_pretrained` about the model itself; see there."""

    device: str | torch.device | None
    dtype: str | torch.dtype | None
    attn: Attention
    attn_implementation: Attention
    device_map: Any
    max_memory: Mapping[Any, Any] | None
    offload_folder: str | os.PathLike[str] | None
    quantization_config: Any
    revision: str | None
    token: str | bool | None
    local_files_only: bool
    processor: Any
    engine: str | None
    engine_options: Mapping[str, Any] | None


def choose_device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device '{name}' cannot be used here: use cpu") from error
    return device


def choose_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The number type of a name; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if name in (None, "auto"):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(name, torch.dtype) and name in DTYPES.values():
        return name
    found = DTYPES.get(str(name).removeprefix("torch."))
    if found is None or not isinstance(name, str):
        raise InputError(
            f"dtype must be auto or one of {', '.join(DTYPES)} (or torch's own), not "
            f"{short(str(name))}"
        )
    return found


@dataclass(frozen=True)
class LoadPlan:
    """How a model is loaded.

    Attributes:
        device: where it goes that nobody dispatches. dtype: of its numbers. attn: of its attention.
        device_map, max_memory, offload_folder, quantization_config: as transformers has them.
        revision, token, local_files_only: of files on the hub.
        processor: instead of the files beside the weights, or a place that has them.
        engine: who runs the model, one of `ENGINES`. engine_options: of vLLM's `LLM`.
    """

    device: torch.device
    dtype: torch.dtype
    attn: Attention = None
    device_map: Any = None
    max_memory: Mapping[Any, Any] | None = None
    offload_folder: str | os.PathLike[str] | None = None
    quantization_config: Any = None
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False
    processor: Any = None
    engine: str = "transformers"
    engine_options: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, options: LoadOptions) -> LoadPlan:
        """Of the options of a call.

        Raises:
            InputError: an option that there is not, a value that cannot be, or two that exclude
                each other.
        """
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        known = LoadOptions.__annotations__
        if unknown := sorted(set(given) - set(known)):
            raise InputError(f"there is no option {unknown[0]}: give one of {', '.join(known)}")
        if "attn" in given and "attn_implementation" in given:
            raise InputError("attn and attn_implementation are the same: give one of them")
        attn: Any = given.pop("attn_implementation", None) or given.pop("attn", None)
        for name in attn.values() if isinstance(attn, Mapping) else [attn]:
            _check_attention(name)
        place = given.pop("device", None)
        if place is not None and "device_map" in given:
            raise InputError("device and device_map both say where the model goes: give one")
        spread = given.get("device_map")
        if isinstance(spread, str) and spread not in SPREADS:
            choose_device(spread)  # refuses what is none
        for name in ("max_memory", "offload_folder"):
            if name in given and "device_map" not in given:
                raise InputError(f"{name} goes with device_map: give device_map='auto'")
        if given.get("engine", "vllm") not in ENGINES:
            raise InputError(f"engine is {' or '.join(ENGINES)}, not {short(str(given['engine']))}")
        if "engine_options" in given and given.get("engine") != "vllm":
            raise InputError("engine_options are those of vLLM: give engine='vllm'")
        quantization = given.get("quantization_config")
        if not isinstance(quantization, Mapping | None) and not hasattr(
            quantization, "quant_method"
        ):
            raise InputError(
                "quantization_config is one of transformers, such as BitsAndBytesConfig("
                f"load_in_4bit=True), or a dict of its fields, not {short(repr(quantization))}"
            )
        device = choose_device(place)
        dtype = choose_dtype(given.pop("dtype", None), device)
        return cls(device, dtype, attn, **given)

    @property
    def hub(self) -> dict[str, Any]:
        """Options of everything that reads files of the hub."""
        names = ("revision", "token", "local_files_only")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def elsewhere(self) -> dict[str, Any]:
        """The same for another name on the hub."""
        return {name: value for name, value in self.hub.items() if name != "revision"}

    def given(self, *names: str) -> str:
        """The first of these options that was given, or ""."""
        plain = {item.name: item.default for item in fields(self)}
        return next((name for name in names if getattr(self, name) != plain[name]), "")

    def check_folder(self, folder: str) -> None:
        """Refuse what means nothing for a folder.

        Raises:
            InputError: a revision of it.
        """
        if self.revision is not None and is_folder(folder):
            raise InputError(
                f"revision names a version of a model on the hub, and {folder} is a folder: leave "
                "revision out"
            )

    def weights(self, quantized: bool) -> dict[str, Any]:
        """Options of transformers' `from_pretrained`.

        Args:
            quantized: the weights are, or will be, of fewer bits: they are made where they stay.
        """
        made: dict[str, Any] = {"dtype": self.dtype, **self.hub}
        named = ("device_map", "max_memory", "offload_folder", "quantization_config")
        made |= {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        if self.attn is not None:
            made["attn_implementation"] = self.attn
        if quantized and self.device_map is None:
            made["device_map"] = {"": str(self.device)}
        return made


def _check_attention(name: Any) -> None:
    known = sorted({"eager", *(name for name in AttentionInterface() if "|" not in name)})
    if name is None or name in known or (isinstance(name, str) and "/" in name):
        return  # with a slash: a kernel on the hub, which transformers finds or refuses
    raise InputError(
        f"no attention {short(str(name))}: give sdpa, eager, flash_attention_2 or another of "
        f"{', '.join(known)}"
    )
