"""A tower that merges inside, by a plain loop over its layers: one row of attention at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidllm.compressors.shared.in_tower import tower_part
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape


def _of(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def attend(layer: Any, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer's attention adds to the states (n, C) of one row, and keys, mean over heads."""
    part = _of(layer, "self_attn", "attention")
    normed = _of(layer, "layer_norm1", "layernorm_before")(rows)
    q, k, v = (
        getattr(part, f"{n}_proj")(normed).unflatten(-1, (part.num_heads, -1)) for n in "qkv"
    )
    logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5 + bias
    out = torch.einsum("hqk,khd->qhd", torch.softmax(logits, -1), v).flatten(1)
    out = _of(part, "out_proj", "projection_layer")(out)
    return out * getattr(layer, "lambda_1", 1.0), k.mean(1)


def by_hand(adapter: Any, states: Tensor, method: Any, fold: int = 0) -> VideoTokens:
    """The tokens behind a tower whose first layer gets `states` (T, s + side², C).

    Features are (K, fold² C): the cells of a square in raster order. With a `fold` of its own, not
    the adapter's, they are those before the last norm, with the last layer's keys.
    """
    last, fold = not fold, fold or adapter.fold
    frames, special = len(states), adapter.special
    part, squares, width = adapter.side // fold, fold * fold, states.shape[-1]
    clip = VideoTokens.blank((frames, part, part), [float(t) for t in range(frames)], frames)
    inside, _ = tower_part(method, clip)
    assert inside is not None
    acting, budget = inside
    layers = [m for m in adapter.tower.modules() if hasattr(m, "mlp")]
    steps = acting.tower_steps(TowerShape(len(layers), special, frames, part * part), budget)
    cls = states[:, :special].flatten(0, 1)
    cells = states[:, special:].unflatten(1, (part, fold, part, fold)).transpose(2, 3)
    tokens, row = clip.with_features(cells.reshape(-1, squares * width)), torch.arange(frames)

    def decided(tokens: VideoTokens, place: tuple[int, str], **told: Tensor) -> VideoTokens:
        nonlocal row
        for step in steps:
            if (step.layer, step.place) == place:
                for selection in step.decide(tokens.with_signals(**told)):
                    tokens = tokens.apply(selection)
                row = row if step.rows is None else step.rows
        return tokens

    def split(every: Tensor) -> tuple[Tensor, VideoTokens]:
        rest = every[frames * special :]
        return every[: frames * special], tokens.with_features(rest.reshape(len(tokens), -1))

    for number, layer in enumerate(layers):
        tokens = decided(tokens, (number, "before"))
        size = tokens.size if acting.proportional else torch.ones_like(tokens.size)
        every = torch.cat([cls, tokens.features.view(-1, width)])
        mine = row[tokens.frame].repeat_interleave(squares)
        owner = torch.cat([row.repeat_interleave(special), mine])
        bias = torch.cat([torch.zeros(len(cls)), size.log().repeat_interleave(squares)])
        added, keys = torch.empty_like(every), torch.empty(len(every), 16)
        for which in range(int(row.max()) + 1):
            here = owner == which
            added[here], keys[here] = attend(layer, every[here], bias[here])
        cls, tokens = split(every + added)
        told = keys[frames * special :].reshape(len(tokens), -1)
        if not last and layer is layers[-1]:
            tokens = tokens.with_signals(vision_keys=told)
        tokens = decided(tokens, (number, "attention"), vision_keys=told)
        every = torch.cat([cls, tokens.features.view(-1, width)])
        mlp = layer.mlp(_of(layer, "layer_norm2", "layernorm_after")(every))
        cls, tokens = split(every + getattr(layer, "lambda_2", 1.0) * mlp)
    if not last:
        return tokens
    _, tokens = split(
        _of(adapter.tower, "post_layernorm", "layernorm")(
            torch.cat([cls, tokens.features.view(-1, width)])
        )
    )
    return tokens if budget is None else acting.run(tokens, budget)[0]


def projected(adapter: Any, tokens: VideoTokens) -> Tensor:
    """(K, D): every token through the family's projector, as a picture of one token."""
    cells = tokens.features.unflatten(1, (adapter.fold**2, -1))
    core = adapter.core
    if hasattr(core, "connector"):
        return core.connector(cells)[:, 0]
    square = cells.unflatten(1, (adapter.fold, adapter.fold))
    return core.multi_modal_projector(core.pixel_shuffle(square, 1 / adapter.fold).flatten(1, 2))[
        :, 0
    ]
