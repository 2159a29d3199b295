"""AIM (LaVi-Lab/AIM): one round of merging, PageRank importance, what later layers see."""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.compressors.aim import match
from vidllm.compressors.aim_prune import _check, importance_rows
from vidllm.errors import InputError


def merge(x: Tensor, metric: Tensor, r: int) -> Tensor:
    """One round of AIM's merge, as the authors' code gives it (r <= 0 returns `x`).

    A destination becomes the plain mean of itself and the sources merged into it; no sizes are
    tracked, so a second round counts a merged token once.

    Args:
        x: (B, N, C) tokens. metric: (B, N, D) features to compare; AIM uses x itself for video.
        r: tokens to remove, at most N // 2 happen.

    Returns:
        (B, N - r, C): the sources that stay in descending order of score, then all destinations
        in their order.

    Raises:
        InputError: shapes that do not fit.
    """
    if x.dim() != 3 or metric.dim() != 3 or x.shape[:2] != metric.shape[:2]:
        raise InputError(
            f"x and metric must be (B, N, C) and (B, N, D), not {tuple(x.shape)} and "
            f"{tuple(metric.shape)}"
        )
    kept, merged, into = match(metric, r)
    if merged.shape[1] == 0:
        return x
    width = x.shape[2]
    sources = x.gather(1, merged[..., None].expand(-1, -1, width))
    slot = (into[..., None] // 2).expand(-1, -1, width)
    means = x[:, 1::2].scatter_reduce(1, slot, sources, "mean", include_self=True)
    return torch.cat([x.gather(1, kept[..., None].expand(-1, -1, width)), means], dim=1)


# A logit below this belongs to a mask (the lowest float16 is -65504), never to q.k / sqrt(d).
_MASKED = -5e3


def importance(
    logits: Tensor,
    temperature: float = 0.1,
    steps: int = 5,
    damping: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Importance of every token: a few power steps on the sharpened attention.

    M = softmax(logits / temperature) by rows; for each head p starts uniform and becomes
    p M (1 - damping) + damping / L; the result is the root of the heads' mean of p squared.

    The authors' function gives NaN for a whole row of the batch where it is padded on the left
    (a query that sees nothing). Here such queries take no part: p starts on the other tokens,
    and these get what they would get without padding.

    Args:
        logits: (B, H, L, L) q k / sqrt(d) with the causal and padding mask added.
        temperature: of the softmax. steps: power steps. damping: share that jumps anywhere.
        mask: (B, L) bool, tokens that take part; None for all whose query sees something. With
            padding on the right give it.

    Returns:
        (B, L) float32.

    Raises:
        InputError: shapes or options that do not fit.
    """
    if logits.dim() != 4 or logits.shape[2] != logits.shape[3]:
        raise InputError(f"logits must be (B, H, L, L), not {tuple(logits.shape)}")
    _check(temperature, steps, damping)
    scaled = logits.float() / temperature
    if mask is None:
        mask = (logits > _MASKED).any(dim=-1).any(dim=1)
    matrix = torch.softmax(scaled, dim=-1)
    length = logits.shape[2]
    return importance_rows(
        lambda start, stop: matrix[:, :, start:stop], length, steps, damping, length, mask
    )


def visible(
    importance: Tensor,
    mask: Tensor,
    protected: Tensor,
    share: float,
    real: Tensor | None = None,
    faithful: bool = False,
) -> Tensor:
    """AIM's choice behind one layer: which tokens later layers still see.

    The floor((L - P) * share + P) most important tokens, with P protected ones ahead of all.
    By default L and P are each row's own and without padding. The authors count the padding,
    take P of row 0 for every row (longer texts then lose text) and give protected tokens the
    importance 1, which a video token can reach.

    Args:
        importance: (B, L). mask: (B, L) bool, what is visible now. protected: (B, L) bool, the
            text. share: of the video tokens that there were at first. real: (B, L) bool,
            tokens that are no padding; None for all. faithful: the authors' count and order.

    Returns:
        (B, L) bool.
    """
    score = importance.float().masked_fill(~mask, -1.0)
    if faithful or real is None:
        real = torch.ones_like(mask)
    score = score.masked_fill(protected & real, 1.0 if faithful else torch.inf)
    result = torch.zeros_like(mask)
    texts: list[int] = (protected & real).sum(dim=1).tolist()
    lengths: list[int] = real.sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        text = texts[0] if faithful else texts[row]
        count = int((length - text) * share + text)
        result[row, torch.argsort(score[row], descending=True, stable=True)[:count]] = True
    return result & mask
