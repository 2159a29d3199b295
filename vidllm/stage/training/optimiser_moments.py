"""The moments of an optimiser as named tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.errors.schema import damage

from .checkpoint import ADVICE


def moments(optimizer: Any) -> dict[str, Tensor]:
    """The state of every parameter as "number.name", numbered through all groups."""
    found: dict[str, Tensor] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        found |= {f"{number}.{name}": value for name, value in state.items()}
    return found


def restore_moments(optimizer: Any, saved: dict[str, Tensor], path: Path) -> None:
    """Give an optimiser that made no step yet its moments back, in the layout of the weights.

    Raises:
        InputError: they are not those of these parameters.
    """
    parameters = _parameters(optimizer)
    for key, value in saved.items():
        number, _, name = key.partition(".")
        known = number.isdecimal() and number.isascii() and int(number) < len(parameters)
        shape = parameters[int(number)].shape if known else None
        if name == "step":
            shape = torch.Size() if known else None
        elif name not in ("exp_avg", "exp_avg_sq"):
            shape = None
        if shape is None or value.shape != shape or value.dtype != torch.float32:
            reason = f"optimizer.{key} is not that of this model"
            raise InputError(damage(path, reason, ADVICE))
        parameter = parameters[int(number)]
        # A fused step walks through memory: moments must lie as their weights do.
        own = torch.empty_like(value if name == "step" else parameter, device=parameter.device)
        optimizer.state[parameter][name] = own.copy_(value)


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
