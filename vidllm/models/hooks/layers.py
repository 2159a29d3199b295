"""Decoders whose layers are not all alike: attention between layers that carry a state.

A layer of linear attention (Qwen3.5) has no entry a token in the cache but one state, into which
every token goes that it reads. What was left out before such a layer has never touched its state;
what it has read cannot be taken out again. So methods may cut between layers, and none may take
tokens out of the cache. A cut that needs scores stands beside a layer that has some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor

from .batches import layer_mask

Layers = nn.ModuleList | Sequence[nn.Module]


def attends(layer: nn.Module) -> bool:
    """Whether a decoder layer is one of attention, and not of a state."""
    return hasattr(layer, "self_attn")


def carries_state(layers: Layers) -> bool:
    """Whether a decoder has layers of a state."""
    return not all(map(attends, layers))


def first_attention(layers: Layers) -> int:
    """The first layer of attention, whose cache tells how long the prompt is."""
    return next((i for i, layer in enumerate(layers) if attends(layer)), 0)


def cut_points(method: Compressor, layers: Layers) -> list[tuple[int, float]]:
    """Before which layers a method cuts, and the shares that it leaves: its own `points` where all
    layers attend. Else a cut that reads attention moves to the next layer where there is some (the
    one before the cut, or with `own_layer` the one behind it), and to the last one where no other
    follows.

    Returns:
        (layer, share), ascending; empty where no layer will do.
    """
    points: list[tuple[int, float]] = method.points(len(layers))  # type: ignore[attr-defined]
    if not method.needs or not carries_state(layers):
        return points
    shift = 0 if method.own_layer else 1
    places = [i + shift for i, layer in enumerate(layers) if attends(layer)]
    places = [place for place in places if 0 < place < len(layers)]
    found: dict[int, float] = {}
    for layer, share in points if places else ():
        found[next((place for place in places if place >= layer), places[-1])] = share
    return sorted(found.items())


def mask_of(layer: nn.Module, attention: str, valid: Tensor, queries: int, states: Tensor) -> Any:
    """The mask of the last `queries` of K columns of a layer; None where it needs none.

    Args:
        attention: name of the decoder's attention. valid: (B, K) bool, columns that hold a token.
        states: of the layer, for their dtype and device.
    """
    if attends(layer):
        return layer_mask(attention, valid, queries, states)
    fresh = valid[:, -queries:]
    return None if bool(fresh.all()) else fresh.to(states.device, torch.long)


def moved_cuts(late: Sequence[Compressor], layers: Layers) -> list[str]:
    """One line for every method whose cuts `cut_points` moves."""
    found = []
    for item in late if carries_state(layers) else ():
        own = item.points(len(layers)) if item.stage == "prefill" else []  # type: ignore[attr-defined]
        if own and (mine := cut_points(item, layers)) != own:
            place, wanted = (" and ".join(str(i) for i, _ in some) for some in (mine, own))
            found.append(
                f"{item.name} cuts before layer {place}, beside full attention, not before {wanted}"
            )
    return found


def padded(layers: Layers) -> str:
    """Why no answer goes on from a prompt with padding behind it; "" where one does."""
    if not carries_state(layers):
        return ""
    return (
        "padding behind a prompt goes through the state of this model's layers of linear "
        "attention, so no answer can go on from it: pad on the left"
    )
