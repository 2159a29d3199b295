"""Compressors of the stage "cache": tokens leave the KV cache between the prompt and the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel

from vidllm.compressors import Compressor
from vidllm.compressors.shared.positions import contiguous
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .decoding import Prefix
from .rotary import Rotary


def evict(
    prefix: Prefix, method: Compressor, tokens: VideoTokens, llm: PreTrainedModel | None = None
) -> Prefix:
    """Take video tokens out of the layers' caches, for good.

    The method scores the tokens by how many layers read them (signal "prefill-survivors") and
    keeps as many as the last layer has. Layers from `method.first_layer` on lose the others.
    Positions stay those of the full sequence, or with the method's `positions="contiguous"` all
    gaps are closed, also those of tokens that left before (`close_gaps`).

    Args:
        prefix: of a prefill that pruned between layers; it is used up.
        method: of the stage "cache". tokens: the video tokens before the prefill's method.
        llm: the language model, for contiguous positions.

    Raises:
        InputError: nothing was pruned in the prefill, a cache that forgets by itself, or
            contiguous positions in a decoder without fixed rotary tables.
    """
    if not prefix.alive or prefix.kept is None:
        raise InputError(
            f"{method.name} follows what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{method.name}"
        )
    check_cache(prefix.cache, method.name)
    lasted = torch.stack([torch.isin(prefix.video, alive) for alive in prefix.alive]).sum(0)
    view = tokens.with_signals(prefill_survivors=lasted.float())
    after = method(view, len(prefix.kept))
    gone = prefix.video[~torch.isin(tokens.position, after.position)]
    first = cast(Any, method).first_layer(prefix.video_per_layer())
    alive = list(prefix.alive)
    for number in range(first, len(alive)):
        stays = ~torch.isin(alive[number], gone)
        if bool(stays.all()):
            continue
        layer = cast(Any, prefix.cache).layers[number]
        index = torch.nonzero(stays).flatten().to(layer.keys.device)
        layer.keys = layer.keys.index_select(-2, index)
        layer.values = layer.values.index_select(-2, index)
        alive[number] = alive[number][stays]
    prefix = replace(prefix, alive=alive)
    if getattr(method, "positions", "original") == "original":
        return prefix
    if llm is None:
        raise InputError(f"{method.name}: contiguous positions need the language model")
    return close_gaps(prefix, llm)


@torch.inference_mode()
def close_gaps(prefix: Prefix, llm: PreTrainedModel) -> Prefix:
    """Turn the cached keys of every layer so that its entries stand at contiguous positions.

    Layers that hold different entries have different positions from then on; text that follows
    stands right behind what its layer holds (PIE, see `vidllm.compressors.shared.positions`).

    Args:
        prefix: with the `places` of its tokens; it is used up. llm: its language model.

    Raises:
        InputError: a decoder without fixed rotary tables, or positions that moved before.
    """
    if prefix.shift:
        raise InputError("positions moved before this: give contiguous to one method only")
    rotary, shift = Rotary(llm), []
    is_video = torch.zeros(prefix.length, dtype=torch.bool)
    is_video[prefix.video] = True
    whole = torch.arange(prefix.length)
    for number, layer in enumerate(cast(Any, prefix.cache).layers):
        alive = prefix.alive[number] if prefix.alive else whole
        old, new = prefix.places[..., alive], contiguous(prefix.places, alive, is_video)
        if not torch.equal(old, new):
            layer.keys = rotary.move(layer.keys, old[..., None, :], new[..., None, :])
        shift.append(prefix.next_position - 1 - int(new.max()))
    return replace(prefix, shift=shift)


def check_cache(cache: DynamicCache, name: str) -> None:
    """Refuse caches whose entries are not those of the whole prompt.

    Raises:
        InputError: a layer with a sliding window.
    """
    if any(getattr(layer, "is_sliding", False) for layer in cast(Any, cache).layers):
        raise InputError(
            f"{name} needs a decoder that attends to the whole prompt in every layer: this one "
            "has sliding windows"
        )
