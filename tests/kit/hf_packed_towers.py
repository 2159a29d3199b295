"""A packed tower that merges inside, by a plain loop over layers and segments of one video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hf_towers import _of
from torch import Tensor

from vidllm.compressors.shared.in_tower import tower_part
from vidllm.models.hooks.packed_tower import packed_layers
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape

Grid = tuple[int, int, int]
SQUARES = 4  # patches of a token in a frame


@contextmanager
def entering(adapter: Any) -> Iterator[dict[str, Any]]:
    """What enters the first layer of a tower, and how long what their MLPs work on is."""
    seen: dict[str, Any] = {"lengths": []}

    def note(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen["states"] = args[0] if args else kwargs["hidden_states"]
        seen["turns"] = kwargs.get("position_embeddings")

    def count(_module: Any, args: Any) -> None:
        seen["lengths"].append(len(args[0]))

    layers = packed_layers(adapter.tower)
    handles = [x.mlp.register_forward_pre_hook(count) for x in layers]
    handles.append(layers[0].register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def places_of(adapter: Any, grids: list[Grid]) -> list[Tensor]:
    """For every video (T * H * W, unit): where the patches of its tokens stand in the plain row."""
    frames, squares = getattr(adapter, "frames", 1), SQUARES
    found, first = [], 0
    for t, h, w in grids:
        count = t * h * w
        every = torch.arange(first, first + count * frames * squares)
        if hasattr(adapter.tower, "window_size"):
            where = sorted(range(count), key=lambda n: (n // (h * w), window(adapter, n, w, h), n))
            place = torch.empty(count, squares, dtype=torch.long)
            place[torch.tensor(where)] = every.view(count, squares)
        else:
            place = every.view(t, frames, h * w, squares).transpose(1, 2).reshape(count, -1)
        found.append(place)
        first += len(every)
    return found


def window(adapter: Any, cell: int, columns: int, rows: int) -> tuple[int, int]:
    """Row and column of the window that a cell is in."""
    tower = adapter.tower
    side = tower.window_size // tower.spatial_merge_size // tower.patch_size
    return cell % (rows * columns) // columns // side, cell % columns // side


def by_hand(
    adapter: Any, seen: dict[str, Any], place: Tensor, clip: VideoTokens, method: Any
) -> tuple[VideoTokens, list[Tensor]]:
    """The tokens of one video behind the last layer, and DeepStack's planes of them.

    Args:
        seen: what entered the plain tower. place: (T * H * W, unit) of this video in it.
        clip: its tokens, without those that its prompt does not hold.
    """
    tower, unit, width = adapter.tower, place.shape[1], seen["states"].shape[-1]
    frames, layers = getattr(adapter, "frames", 1), packed_layers(tower)
    grid = clip.grid
    inside, _ = tower_part(method, clip)
    assert inside is not None
    acting, budget = inside
    goal = None if budget is None else max(budget, grid[0])
    steps = acting.tower_steps(TowerShape(len(layers), 0, grid[0], len(clip) // grid[0]), goal)
    tokens = clip.with_features(seen["states"][place[clip.position].flatten()].view(len(clip), -1))
    row, planes = torch.arange(grid[0]), []

    def decided(at: tuple[int, str], **told: Tensor) -> VideoTokens:
        nonlocal row
        now = tokens
        for step in steps:
            if (step.layer, step.place) == at:
                for selection in step.decide(now.with_signals(**told)):
                    now = now.apply(selection)
                row = row if step.rows is None else step.rows
        return now

    for number, layer in enumerate(layers):
        tokens = decided((number, "before"))
        size = tokens.size if acting.proportional else torch.ones_like(tokens.size)
        segments: dict[Any, list[tuple[int, int]]] = {}
        for n, position in enumerate(tokens.position.tolist()):
            for u in range(unit):
                key = (int(row[tokens.frame[n]]), u // (unit // frames))
                if hasattr(tower, "window_size") and number not in tower.fullatt_block_indexes:
                    key = (*key, window(adapter, position, grid[2], grid[1]))
                segments.setdefault(key, []).append((n, u))
        states = tokens.features.view(len(tokens), unit, width)
        added, keys = torch.empty_like(states), {}
        for members in segments.values():
            n, u = torch.tensor(members).T
            at = place[tokens.position[n], u]
            turns = None if seen["turns"] is None else [x[at] for x in seen["turns"]]
            added[n, u], key = attend(layer, states[n, u], turns, size[n].log())
            keys |= dict(zip(members, key, strict=True))
        tokens = tokens.with_features((states + added).flatten(1))
        told = [torch.cat([keys[n, u] for u in range(unit)]) for n in range(len(tokens))]
        tokens = decided((number, "attention"), vision_keys=torch.stack(told))
        states = tokens.features.view(-1, width)
        states = states + layer.mlp(_of(layer, "norm2", "layer_norm2")(states))
        tokens = tokens.with_features(states.view(len(tokens), -1))
        if number in getattr(tower, "deepstack_visual_indexes", ()):
            merger = tower.deepstack_merger_list[len(planes)]
            planes.append(merger(states)[tokens.source])  # one a cell
    groups = [tokens.source == n for n in range(len(tokens))]
    return tokens, [torch.stack([plane[g].mean(0) for g in groups]) for plane in planes]


def attend(
    layer: Any, rows: Tensor, turns: list[Tensor] | None, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """What a layer's attention adds to the states (n, C) of one segment, and keys, mean over
    heads."""
    part = _of(layer, "attn", "self_attn")
    normed, heads = _of(layer, "norm1", "layer_norm1")(rows), part.num_heads
    if hasattr(part, "qkv"):
        few = getattr(part, "num_key_value_heads", heads)
        each = part.qkv(normed).unflatten(-1, (heads + 2 * few, -1))
        q, k, v = each.split([heads, few, few], dim=1)
    else:
        names = ("q_proj", "k_proj", "v_proj") if hasattr(part, "q_proj") else ("q", "k", "v")
        q, k, v = (getattr(part, n)(normed).unflatten(-1, (heads, -1)) for n in names)
    keys = k.mean(1)
    if turns is not None:
        q, k = (turn(x, *(t[:, None] for t in turns)) for x in (q, k))
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5 + bias
    out = torch.einsum("hqk,khd->qhd", torch.softmax(logits, -1), v).flatten(1)
    return _of(part, "proj", "out_proj")(out), keys


def projected(adapter: Any, features: Tensor) -> Tensor:
    """(K, D): every token (unit * C) through what stands behind the layers, by itself."""
    tower, core = adapter.tower, adapter.core
    patches = features.view(-1, tower.config.hidden_size)
    if hasattr(core, "resampler_model"):
        grid = torch.tensor([[adapter.frames, 2, 2]])
        every = tower.ln(patches).split(SQUARES * adapter.frames)
        return torch.cat([core.resampler_model(own, grid) for own in every])
    if hasattr(core, "projector"):  # folded there, or pooled before
        patches = tower.post_layernorm(patches)
        folds = hasattr(core.projector, "spatial_merge_size")
        return core.projector(patches if folds else patches.unflatten(0, (-1, SQUARES)).mean(1))
    if hasattr(tower, "downsample"):
        square = tower.post_layernorm(patches).view(len(features), 2, 2, -1)
        return tower.merger(tower.downsample(square.permute(0, 3, 1, 2)).flatten(1))
    return tower.merger(patches)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A rotation of the two halves of (n, h, d)."""
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
