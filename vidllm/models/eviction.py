"""Compressors of the stage "cache": video tokens leave the KV cache once the prompt is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .decoding import Prefix


def evict(prefix: Prefix, method: Compressor, tokens: VideoTokens) -> Prefix:
    """Take video tokens out of the layers' caches; positions stay those of the full sequence.

    The method scores the tokens by how many layers read them (signal "prefill-survivors") and
    keeps as many as the last layer has. Layers from `method.first_layer` on lose the others.

    Args:
        prefix: of a prefill that pruned between layers; it is used up.
        method: of the stage "cache". tokens: the video tokens before the prefill's method.

    Raises:
        InputError: nothing was pruned in the prefill.
    """
    if not prefix.alive or prefix.kept is None:
        raise InputError(
            f"{method.name} follows what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{method.name}"
        )
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
    return replace(prefix, alive=alive)
