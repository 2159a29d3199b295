"""FlashVID (Fanziyang-v/FlashVID): the outer stage with its defects, and the inner one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidllm.compressors.flashvid import diverse, merge_segment, saliency, segment_lengths, trees


def compress(
    features: Tensor,
    attention: Tensor,
    retention_ratio: float = 0.25,
    *,
    alpha: float = 0.7,
    temporal_threshold: float = 0.8,
    segment_threshold: float = 0.9,
    min_segment_num: int = 8,
    expansion: float = 1.25,
) -> tuple[Tensor, Tensor]:
    """FlashVID's outer stage with its defects (selection "attn_div_v2", without the noise).

    Args:
        features: (T, n, D). attention: (T, n) what a token gets in the last block of the tower.
        retention_ratio, expansion: ceil(n * retention_ratio * expansion) tokens a frame, of which
            ceil(alpha * that) are picked; ceil() of every frame's clusters lets some more through.

    Returns:
        tokens (K, D) and kept_idx (K,) long, t * n + i ascending. An index can stand twice.
    """
    n = features.shape[1]
    each = min(n, math.ceil(n * retention_ratio * expansion))
    picks = math.ceil(each * alpha)
    means = features.float().mean(1)
    tokens: list[Tensor] = []
    index: list[Tensor] = []
    start = 0
    for length in segment_lengths(means, segment_threshold, min_segment_num):
        if length == 0:
            continue
        x, own = features[start : start + length].float(), attention[start : start + length]
        weight = saliency(x, own.float(), means[start : start + length])
        chosen = diverse(x, weight, picks, again=True)
        picked = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        picked.scatter_(1, chosen, True)
        tokens.append(x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2])).flatten(0, 1))
        place = torch.arange(start, start + length, device=x.device)[:, None] * n
        index.append((place + chosen).flatten())
        if picks < each:
            _, clusters = merge_segment(
                list(x),
                list(picked),
                each * length,
                (each - picks) * length,
                temporal_threshold,
                exact=False,
                direct=True,
            )
            tokens += [cluster.features for cluster in clusters]
            index += [
                cluster.centres + first for cluster, first in zip(clusters, place, strict=True)
            ]
        start += length
    kept = torch.cat(index)
    order = torch.argsort(kept, stable=True)
    return torch.cat(tokens)[order], kept[order]


def inner_prune(
    attention_prev_layer: Tensor, start: int, length: int, llm_retention_ratio: float = 0.3
) -> Tensor:
    """FlashVID's pruning before a decoder layer (20 of 28): what of the sequence is kept.

    Args:
        attention_prev_layer: (1, heads, L, L) softmaxed attention of the layer before; its last
            row decides. start, length: where the video tokens stand.

    Returns:
        (K,) long, ascending: all text and ceil(length * llm_retention_ratio) video tokens.
    """
    row = attention_prev_layer[0].float().mean(0)[-1]
    best = torch.argsort(row[start : start + length], descending=True, stable=True)
    keep = torch.ones_like(row, dtype=torch.bool)
    keep[start + best[math.ceil(length * llm_retention_ratio) :]] = False
    return torch.nonzero(keep).flatten()


def expansion_of(depth: int, pruning_layer: int, llm_retention_ratio: float) -> float:
    """How many times the nominal share may enter a decoder of `depth` layers that prunes inside.

    1.25 for 28 layers, layer 20 and 0.3: with it the average over the layers is the nominal share.
    """
    return depth / (pruning_layer + llm_retention_ratio * (depth - pruning_layer))


def tree_means(frames: list[Tensor], up: list[Tensor], *, direct: bool = False) -> list[Tensor]:
    """Tokens of a segment after merging every token into its parent; see `flashvid.trees`."""
    return list(trees(frames, up, direct=direct))[::-1]
