"""Compressors of the stage "cache": tokens leave the KV cache between the prompt and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .batches import gather, pack
from .kv_cache import Prefill, check_entries
from .positions import close_gaps


class CachedVideo(NamedTuple):
    """One video in the cache: its row of the batch, the places (V,) of its tokens in the row's
    prompt, the tokens as they entered the decoder, and how many of them the last layer kept."""

    row: int
    places: Tensor
    tokens: VideoTokens
    kept: int


def evict_rows(
    cache: Any,
    method: Compressor,
    videos: Sequence[CachedVideo],
    held: list[list[Tensor]],
    valid: list[Tensor],
    left: bool = True,
) -> None:
    """Take video tokens out of the layers' caches, for good.

    The method scores the tokens by how many layers read them (signal "prefill-survivors") and
    keeps as many as the last layer has. Layers from `method.first_layer` on lose the others.

    Args:
        cache: of a prefill that pruned between layers; changed.
        method: of the stage "cache".
        held: for every layer and row the places (n,) of the prompt in the cache; changed.
        valid: for every layer (B, W) bool, which entries are no padding; changed.
        left: whether padding goes before the entries.

    Raises:
        InputError: a cache that forgets by itself.
    """
    check_entries(cache, method.name)
    gone: list[dict[int, Tensor]] = [{} for _ in held]
    for row, places, tokens, kept in videos:
        there = torch.stack([torch.isin(places, layer[row]) for layer in held])
        after = method(tokens.with_signals(prefill_survivors=there.sum(0).float()), kept)
        leaves = places[~torch.isin(tokens.position, after.position)]
        first = cast(Any, method).first_layer(there.sum(1).tolist())
        for number in range(first, len(held)):
            gone[number][row] = torch.cat([gone[number].get(row, leaves[:0]), leaves])
    for number, layer in enumerate(cache.layers):
        stays = [
            ~torch.isin(row, gone[number].get(r, row[:0])) for r, row in enumerate(held[number])
        ]
        if all(bool(row.all()) for row in stays):
            continue
        columns = [torch.nonzero(row).flatten() for row in valid[number]]
        index, valid[number] = pack([c[s] for c, s in zip(columns, stays, strict=True)], left)
        layer.keys = gather(layer.keys.transpose(1, 2), index).transpose(1, 2)
        layer.values = gather(layer.values.transpose(1, 2), index).transpose(1, 2)
        held[number] = [row[s] for row, s in zip(held[number], stays, strict=True)]


def evict(
    prefill: Prefill, method: Compressor, tokens: VideoTokens, llm: PreTrainedModel | None = None
) -> Prefill:
    """As `evict_rows`, for one prompt.

    Positions stay those of the full sequence, or with the method's `positions="contiguous"` all
    gaps are closed, also those of tokens that left before (`close_gaps`).

    Args:
        prefill: of a prefill that pruned between layers; it is used up.
        method: of the stage "cache". tokens: the video tokens before the prefill's method.
        llm: the language model, for contiguous positions.

    Raises:
        InputError: nothing was pruned in the prefill, a cache that forgets by itself, or
            contiguous positions in a decoder without fixed rotary tables.
    """
    if not prefill.alive or prefill.kept is None:
        raise InputError(
            f"{method.name} follows what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{method.name}"
        )
    video = CachedVideo(0, prefill.video, tokens, len(prefill.kept))
    held = [[alive] for alive in prefill.alive]
    valid = [torch.ones(1, len(alive), dtype=torch.bool) for alive in prefill.alive]
    evict_rows(prefill.cache, method, [video], held, valid)
    prefill = replace(prefill, alive=[row for [row] in held])
    if getattr(method, "positions", "original") == "original":
        return prefill
    if llm is None:
        raise InputError(f"{method.name}: contiguous positions need the language model")
    return close_gaps(prefill, llm)
