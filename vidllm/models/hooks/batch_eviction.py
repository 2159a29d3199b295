"""The stage "cache" on hub models: video tokens leave a batch's KV cache behind the prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from ..families.family import Clip
from .pruning import BatchPruner
from .rows import gather, pack


def evict_rows(
    cache: Any,
    method: Compressor,
    clips: Sequence[Clip],
    tokens: Sequence[VideoTokens],
    pruner: BatchPruner,
    held: list[list[Tensor]],
    valid: list[Tensor],
) -> None:
    """As `models.eviction.evict`, for unequal rows; `cache`, `held` and `valid` are changed.

    Args:
        cache: of the prefill. method: of the stage "cache".
        clips: the videos. tokens: what was left of each before the decoder.
        pruner: of the prefill, done.
        held: for every layer and row the prompt's indices in the cache. valid: for every layer
            (B, W) bool, which entries are no padding.

    Raises:
        InputError: a cache that is not the default one.
    """
    layers = cast(Any, cache).layers
    if any(type(layer).__name__ != "DynamicLayer" for layer in layers):
        raise InputError(f"{method.name} needs the default dynamic cache")
    gone: list[dict[int, Tensor]] = [{} for _ in layers]
    for clip, before, run in zip(clips, tokens, pruner.runs, strict=True):
        table = torch.full((clip.tokens.total,), -1)
        table[clip.tokens.position] = clip.where
        places = table[before.position]
        there = torch.stack([torch.isin(places, layer[clip.row]) for layer in held])
        view = before.with_signals(prefill_survivors=there.sum(0).float())
        after = method(view, len(run.tokens))
        leaves = places[~torch.isin(before.position, after.position)]
        first = cast(Any, method).first_layer(there.sum(1).tolist())
        for number in range(first, len(layers)):
            old = gone[number].get(clip.row, leaves[:0])
            gone[number][clip.row] = torch.cat([old, leaves])
    for number, layer in enumerate(layers):
        stays = [
            ~torch.isin(row, gone[number].get(r, row[:0])) for r, row in enumerate(held[number])
        ]
        if all(bool(row.all()) for row in stays):
            continue
        columns = [torch.nonzero(row).flatten() for row in valid[number]]
        index, valid[number] = pack(
            [c[s] for c, s in zip(columns, stays, strict=True)], pruner.left
        )
        layer.keys = gather(layer.keys.transpose(1, 2), index).transpose(1, 2)
        layer.values = gather(layer.values.transpose(1, 2), index).transpose(1, 2)
        held[number] = [row[s] for row, s in zip(held[number], stays, strict=True)]
