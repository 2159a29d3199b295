"""What `VideoLLM.from_pretrained` needs: weights, tokenizer, device and compressors by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from vidllm.compressors import Chain, Compressor, build

from .errors import InputError, WorkError
from .models.native import NativeConfig, NativeVideoLLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_compressor(
    config: NativeConfig, compressors: str | Compressor | Chain | None, keep: float | None
) -> Compressor | Chain:
    """The compressors of a call; what is not said comes from the model's own training."""
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"keep is the share of tokens kept, above 0 and at most 1, not {keep:g}")
    if compressors is None:
        if keep is None:
            return build(config.compressors, keep=config.keep)
        if keep == 1:
            return build("none")
        spec = config.compressors if config.compressors != "none" else "uniform"
        return build(spec, keep=keep)
    if not isinstance(compressors, str):
        if keep is not None:
            raise InputError("keep goes with a compressor's name; an instance has its own")
        return compressors
    if keep is not None:
        return build(compressors, keep=keep)
    made = build(compressors)
    free = made.items[-1].is_free() if isinstance(made, Chain) else made.is_free()
    if free and made.name != "none":
        raise InputError(f"how much should '{compressors}' keep? Give keep, for example keep=0.25")
    return made


def choose_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device '{name}' cannot be used here: use cpu") from error
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number type of a name; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if name in (None, "auto"):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"dtype must be auto or one of {', '.join(DTYPES)}, not '{name}'")
    return DTYPES[str(name)]


def load_native(folder: str, attn: str | None) -> tuple[NativeVideoLLM, PreTrainedTokenizerBase]:
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError) as error:
        if Path(folder).is_dir():
            raise InputError(f"{folder} holds no model whose config.json can be read") from error
        raise InputError(
            f"no model '{folder}': it is no folder, and the hub lacks it or is out of reach"
        ) from error
    if kind != NativeConfig.model_type:
        raise InputError(
            f"'{folder}' is a {kind} model; this version answers with {NativeConfig.model_type} "
            "models: leave --model out for the shipped one"
        )
    options: dict[str, Any] = {} if attn is None else {"attn_implementation": attn}
    report: dict[str, Any]
    try:
        loaded: Any = NativeVideoLLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, **options
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorkError(f"the model in {folder} cannot be loaded: {line}") from error
    missing = [k for k in report["missing_keys"] if not k.endswith("lm_head.weight")]
    if missing or report["unexpected_keys"]:
        raise WorkError(
            f"the weights in {folder} do not fit their config: {len(missing)} missing, "
            f"{len(report['unexpected_keys'])} too many"
        )
    return model, tokenizer
