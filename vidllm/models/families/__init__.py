"""Hugging Face video-LLMs: one small adapter a family, and the hooks that all of them share.

An adapter knows what is peculiar to its family: where the parts are, which tokens of a prompt are
which video, and what its vision tower can tell. Everything else (positions, masks, the cache,
batches, DeepStack) is done once, in `session`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from vidllm.errors import InputError

from .family import Adapter, Clip

__all__ = ["FAMILIES", "Adapter", "Clip", "adapter_for"]

#: transformers' model type -> (name of the family, module, class).
FAMILIES: dict[str, tuple[str, str, str]] = {
    "qwen2_5_vl": ("Qwen2.5-VL", "qwen2_5_vl", "Qwen25VL"),
    "qwen3_vl": ("Qwen3-VL", "qwen3_vl", "Qwen3VL"),
    "llava_onevision": ("LLaVA-OneVision", "llava_onevision", "LlavaOnevision"),
    "internvl": ("InternVL", "internvl", "InternVL"),
    "smolvlm": ("SmolVLM2", "smolvlm", "SmolVLM"),
    "video_llama_3": ("VideoLLaMA3", "videollama3", "VideoLlama3"),
}


#: What wrappers (DistributedDataParallel, FSDP, torch.compile, engines) call the model in them.
_WRAPPED = ("module", "_orig_mod")


def _inside(model: Any) -> str:
    """How to get at a model of `FAMILIES` in its wrappers, such as ".module"; "" without one."""
    path, inner = "", model
    while True:
        parts = getattr(inner, "_modules", None) or vars(inner)
        name = next((n for n in _WRAPPED if n in parts), None)
        if name is None:
            break
        path, inner = f"{path}.{name}", parts[name]
    kind = getattr(getattr(inner, "config", None), "model_type", None)
    return path if kind in FAMILIES or hasattr(inner, "get_base_model") else ""


def adapter_for(model: nn.Module, processor: Any = None) -> Adapter:
    """The adapter of a model.

    Args:
        model: with or without its language head, or wrapped by PEFT.
        processor: the model's processor or its tokenizer, where the family needs one.

    Raises:
        InputError: a family that is not served.
    """
    wrapped: Any = model
    inside = _inside(model)
    if inside:
        raise InputError(
            f"a {type(model).__name__} hides the model that compress works on: pass model{inside}"
        )
    inner: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    kind = str(getattr(getattr(inner, "config", None), "model_type", type(inner).__name__))
    if kind not in FAMILIES:
        served = ", ".join(name for name, _, _ in FAMILIES.values())
        raise InputError(f"a {kind} model is not served: use one of {served}")
    _, module, cls = FAMILIES[kind]
    adapter: Adapter = getattr(import_module(f"{__name__}.{module}"), cls)(inner, processor)
    return adapter
