"""FrameFusion (thu-nics/FrameFusion): its merge and prune calls in a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vidllm.compressors.framefusion import _chained, _largest
from vidllm.errors import InputError


def required_sparsity(s1: Sequence[float], cost: float, layers: int = 28) -> float:
    """Share of the present video tokens that must go so that the layers' average is `cost`.

    Args:
        s1: share removed by every layer so far, each of what it was given. cost: mean share of
            the video tokens over all layers. layers: of the decoder (the authors write 28
            whatever the depth).

    Raises:
        InputError: the layers so far already cost more than `cost`, or no layer is left.
    """
    left, spent = 1.0, 0.0
    for sparsity in s1:
        left *= 1 - sparsity
        spent += left
    remain = layers * cost - spent
    if remain < 0 or len(s1) >= layers or left <= 0:
        raise InputError(
            f"framefusion: a cost of {cost:g} cannot be met by {layers} layers after the first "
            f"{len(s1)}: raise cost"
        )
    return max(0.0, 1 - remain / ((layers - len(s1)) * left))


class Merged(NamedTuple):
    """What a merge call leaves.

    Attributes:
        hidden: (1, K, D). keep: (K,) long, the indices that stay, ascending. patch_type: (1, K).
        s1: the sparsities with this call's. merging, pruning: False where that is finished.
    """

    hidden: Tensor
    keep: Tensor
    patch_type: Tensor
    s1: list[float]
    merging: bool
    pruning: bool


def merge(
    hidden: Tensor,
    patch_type: Tensor,
    s1: Sequence[float],
    cost: float = 0.3,
    similarity_lower_bound: float = 0.6,
    ratio_lower_bound: float = 0.1,
    layers: int = 28,
) -> Merged:
    """FrameFusion's merge call, before layer 0 and then in every layer until it is finished.

    Args:
        hidden: (1, L, D). patch_type: (1, L) place of a video token in its frame, -1 for text.
        s1: what the earlier calls gave (see `required_sparsity`). similarity_lower_bound: cosine
            with the place's token before it from which a token merges. ratio_lower_bound: a call
            that merges a smaller share is the last one.
    """
    kind = patch_type[0]
    video = torch.nonzero(kind >= 0).flatten()
    order = video[torch.argsort(kind[video], stable=True)]
    similar = _chained(hidden[0, order].float(), kind[order])
    need = required_sparsity(s1, cost, layers)
    member = similar >= similarity_lower_bound
    ratio = int(member.sum()) / max(1, video.numel())
    history, merging, pruning = list(s1), True, True
    if ratio < need:
        history.append(ratio)
        merging = ratio >= ratio_lower_bound
    else:
        member = _largest(similar, int(need * video.numel()))
        merging = pruning = False
    group = (~member).long().cumsum(0) - 1
    heads = order[~member]
    total = torch.zeros(heads.numel(), hidden.shape[2], device=hidden.device)
    total.index_add_(0, group, hidden[0, order].float())
    means = total / torch.bincount(group, minlength=heads.numel())[:, None]
    result = hidden.clone()
    result[0, heads] = means.to(hidden.dtype)
    stays = torch.ones_like(kind, dtype=torch.bool)
    stays[order[member]] = False
    keep = torch.nonzero(stays).flatten()
    return Merged(result[:, keep], keep, patch_type[:, keep], history, merging, pruning)


def prune(attention: Tensor, patch_type: Tensor, need: float, count: int | None = None) -> Tensor:
    """FrameFusion's prune call, in the layer after merging is finished.

    Args:
        attention: (1, heads, 1, L) of the last query. patch_type: (1, L), -1 for text.
        need: `required_sparsity`. count: video tokens that there are (by default as counted).

    Returns:
        (K,) long, ascending: all text and the round(count * (1 - need)) best video tokens.
    """
    video = torch.nonzero(patch_type[0] >= 0).flatten()
    score = attention[0].float().mean(0)[-1][video]
    keep = round((video.numel() if count is None else count) * (1 - need))
    stays = patch_type[0] < 0
    stays[video[torch.argsort(score, descending=True, stable=True)[:keep]]] = True
    return torch.nonzero(stays).flatten()
