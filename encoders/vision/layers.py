"""Which hidden layer of a vision transformer is read: the layers after it are left out."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from vidllm.errors import InputError


def cut(model: nn.Module, layer: int) -> int:
    """Leave out all that comes after hidden state `layer`, so that this is the model's output.

    Hidden states count as in transformers: 0 is the embedding, i the output of layer i, and
    negative ones count from the end (−1 the last layer, −2 the one before, as LLaVA reads it).
    No final norm is applied to them, so −1 is not the model's own output where that has one
    (SigLIP, DINOv2).

    Returns:
        How many layers are left.

    Raises:
        InputError: for a layer that is not there.
    """
    config: Any = model.config
    depth = int(config.num_hidden_layers)
    if not -depth - 1 <= layer <= depth:
        raise InputError(
            f"the vision tower has {depth} layers, not layer {layer}: "
            f"use 0 to {depth}, or -1 (the last) to {-depth - 1}"
        )
    keep = layer if layer >= 0 else depth + 1 + layer
    del layers_of(model)[keep:]
    # The same place by each family's name; pooling heads have norms of their own.
    for name, _ in list(model.named_modules()):
        path, _, last = name.rpartition(".")
        if last in ("post_layernorm", "layernorm") and "head" not in path.split("."):
            setattr(model.get_submodule(path), last, nn.Identity())
    return keep


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The list of a vision transformer's layers."""
    depth = int(cast(Any, model.config).num_hidden_layers)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise InputError(f"no list of {depth} layers in {type(model).__name__}")
    return lists[0]


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """Pixels (F, 3, S, S) → (F, (S/patch)², patch²·3) rows, as SigLIP2's own processor cuts them.

    Patches in raster order; inside a row by line, column, then colour.
    """
    tiles = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)
