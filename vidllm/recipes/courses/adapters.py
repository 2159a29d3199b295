"""LoRA beside the frozen layers of a part of a model, through peft, and merged when it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vidllm.errors import InputError

from ..recipe import Lora

#: The name that peft gives to adapters, in the names of their weights.
_NAME = "default"
#: Never adapted: what makes words of states.
_HEAD = "lm_head"


def add_adapters(part: nn.Module, lora: Lora) -> list[nn.Parameter]:
    """Put adapters beside the layers of a part, in place; the part says at first what it said.

    Args:
        part: an LLM or a tower. lora: its `layers` name the ends of layers' names.

    Returns:
        The adapters' parameters, float32.

    Raises:
        InputError: peft is not installed, or there are no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("LoRA needs peft: pip install 'vidllm[lora]', or give --lora 0") from error
    names = {
        name.rpartition(".")[2]
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(_HEAD)
    }
    wanted = names if lora.layers == ("all-linear",) else names & set(lora.layers)
    if not wanted:
        raise InputError(
            f"LoRA: there are no layers {', '.join(lora.layers)}, but {', '.join(sorted(names))}"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(wanted),
        bias="none",
    )
    inject_adapter_in_model(config, part)
    return [p for name, p in part.named_parameters() if ".lora_" in name]


def adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with adapters, by name."""
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight"):
            yield name, module


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with its adapters added to the weights that they stand beside."""
    state = {k: v for k, v in model.state_dict().items() if ".lora_" not in k}
    for name, layer in adapted(model):
        delta = layer.get_delta_weight(_NAME)
        key = f"{name}.base_layer.weight"
        state[key] = state[key] + delta.to(state[key])
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}
