"""What happens inside a vision tower while methods merge in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vidllm.encoders.vision import HubTower
from vidllm.encoders.vision.merging import tower_layers

#: Methods that merge inside a tower.
INSIDE = ["tome", "pyra", "tempme", "mustdrop"]


def hooks(model: nn.Module) -> int:
    """How many hooks stand on a model."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@contextmanager
def lengths(of: HubTower) -> Iterator[list[int]]:
    """The hidden states that every layer works on, all rows together."""
    seen: list[int] = []
    norms = [getattr(m, "layer_norm1", None) or m.norm1 for m in tower_layers(of.model)]
    handles = [
        norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[:2].numel()))
        for norm in norms
    ]
    yield seen
    for handle in handles:
        handle.remove()
