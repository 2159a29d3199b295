"""Temporal encoders by name: register, build, list and describe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidllm.errors.registry import Registry

from .base import TemporalEncoder

_REGISTRY: Registry[TemporalEncoder] = Registry(
    "temporal encoder", given=("dim",), base=TemporalEncoder, group="vidllm.encoders"
)
register_temporal, temporal_names = _REGISTRY.register, _REGISTRY.names
find_temporal, temporal_packages = _REGISTRY.find, _REGISTRY.packages
options_of = _REGISTRY.options


def tensors_in(state: Any) -> list[Tensor]:
    """The tensors of a streaming state, whatever holds them."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [t for value in state.values() for t in tensors_in(value)]
    if isinstance(state, list | tuple):
        return [t for value in state for t in tensors_in(value)]
    return tensors_in(vars(state)) if hasattr(state, "__dict__") else []


def state_bytes(encoder: TemporalEncoder, dim: int, slots: int = 1, frames: int = 8) -> int | None:
    """Bytes that the encoder carries between chunks of a video of `slots` tokens a frame.

    None where it cannot stream. Measured on `frames` frames of zeros; a state that is still
    growing then (a window that is not full) counts as it is.
    """
    if not encoder.streams:
        return None
    example = next(iter(encoder.parameters()), torch.zeros(()))
    x = torch.zeros(1, frames, slots, dim, dtype=example.dtype, device=example.device)
    with torch.no_grad():
        _, state = encoder.stream(x, torch.arange(frames, device=x.device)[None].float())
    return sum(t.numel() * t.element_size() for t in tensors_in(state))


def get_temporal(name: str, dim: int, **options: Any) -> TemporalEncoder:
    """Build the encoder called `name` for tokens of width `dim`.

    Raises:
        InputError: no encoder or no option of that name; the message names close matches.
    """
    return _REGISTRY.build(name, dim, options=options)


def get_alike(name: str, dim: int, **options: Any) -> TemporalEncoder:
    """As `get_temporal`, without the options that this encoder does not have: for comparisons."""
    known = options_of(name)
    return get_temporal(name, dim, **{k: v for k, v in options.items() if k in known})


def describe(dim: int = 256) -> list[dict[str, Any]]:
    """What is registered, for lists and pages.

    Each has name, summary, paper, options; `parameters` of the default build at width `dim`;
    `causal` and `streams` of the build that reads forwards alone (where there is one), and
    `state_bytes`, what that carries between chunks for one slot in float32 (None: no stream).
    """
    found = []
    for name in temporal_names():
        ahead = get_alike(name, dim, bidirectional=False, scan="slot").eval()
        found.append(
            {
                "name": name,
                "summary": ahead.summary,
                "paper": ahead.paper,
                "options": options_of(name),
                "parameters": sum(p.numel() for p in get_temporal(name, dim).parameters()),
                "causal": ahead.causal,
                "streams": ahead.streams,
                "state_bytes": state_bytes(ahead, dim),
            }
        )
    return found
