"""MustDrop (liuting20/MustDrop): window merge, key set, dual filter, cache bookkeeping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vidllm.compressors.mustdrop import _likeness
from vidllm.errors import InputError


def merge_windows(
    x: Tensor, window: tuple[int, int] = (3, 3), threshold: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Merge the windows of a patch grid whose tokens are alike, after the first ViT layer.

    Windows do not overlap and stand in raster order; a window counts the mean cosine of its
    pairs. Every sample merges its r most similar windows into their plain means, r being the
    smallest number of windows at or above the threshold in the batch.

    Args:
        x: (B, 1 + G * G, C), CLS first. window: rows and columns, dividing G.
        threshold: cosine from which a window merges.

    Returns:
        x (B, N, C) as [CLS, merged windows from the most similar on, other tokens in raster
        order], N = 1 + r + G * G - r * k, and size (B, N, 1) float32, tokens in each.

    Raises:
        InputError: a grid that is not square, or a window that does not divide it.
    """
    rows, columns = window
    side = math.isqrt(max(x.shape[1] - 1, 0)) if x.dim() == 3 else 0
    if side < 1 or side * side != x.shape[1] - 1:
        raise InputError(f"x must be (B, 1 + G * G, C), not {tuple(x.shape)}")
    if rows < 1 or columns < 1 or rows * columns < 2 or side % rows or side % columns:
        raise InputError(f"a {rows} x {columns} window does not divide a {side} x {side} grid")
    count = rows * columns
    raster = torch.arange(side * side, device=x.device)
    cells = raster.view(side // rows, rows, side // columns, columns)
    cells = cells.transpose(1, 2).reshape(-1, count)
    patches = x[:, 1:]
    alike, _ = _likeness(patches[:, cells])
    r = int((alike >= threshold).sum(dim=1).min())
    best = torch.argsort(alike, dim=1, descending=True, stable=True)[:, :r]
    members = cells[best]  # (B, r, k)
    batch = torch.arange(x.shape[0], device=x.device)
    merged = patches[batch[:, None, None], members].float().mean(dim=2).to(x.dtype)
    free = torch.ones(patches.shape[:2], dtype=torch.bool, device=x.device)
    free[batch[:, None], members.flatten(1)] = False
    rest = patches[free].view(x.shape[0], -1, x.shape[2])
    size = torch.ones(x.shape[0], 1 + r + rest.shape[1], 1, device=x.device)
    size[:, 1 : 1 + r] = count
    return torch.cat([x[:, :1], merged, rest], dim=1), size


def key_set(cls_attention: Tensor, share: float = 0.08) -> Tensor:
    """Indices of an image's key tokens, ceil(share * N) with the most CLS attention (N,), the
    most first. The prefill filter never drops them.
    """
    count = math.ceil(share * cls_attention.numel())
    return torch.argsort(cls_attention, descending=True, stable=True)[:count]


def dual_filter(
    attention: Tensor, first: int, count: int, global_threshold: float, individual_threshold: float
) -> Tensor:
    """The image tokens that the dual-attention filter keeps.

    With a the heads' mean of the attention from every text token behind the image to every
    image token, a token leaves iff its sum over the text is below global_threshold of all
    sums AND its largest value is below individual_threshold. Without text behind all stay.

    Args:
        attention: (1, H, L, L) softmax attention. first: position of the first image token.
        count: image tokens.

    Returns:
        (K,) long, ascending, counted from the first image token.

    Raises:
        InputError: a batch of more than one, or an image that does not fit.
    """
    if attention.dim() != 4 or attention.shape[0] != 1:
        raise InputError(f"attention must be (1, H, L, L), not {tuple(attention.shape)}")
    end = first + count
    if first < 0 or count < 1 or end > attention.shape[-1]:
        raise InputError(f"{count} tokens from {first} on do not fit {attention.shape[-1]}")
    if end == attention.shape[-1]:
        return torch.arange(count, device=attention.device)
    a = attention[0, :, end:, first:end].float().mean(dim=0)
    total, peak = a.sum(dim=0), a.amax(dim=0)
    drop = (total < global_threshold * total.sum()) & (peak < individual_threshold)
    return torch.nonzero(~drop).flatten()


def output_aware(
    selections: Sequence[Tensor], layers: Sequence[int], depth: int, untouched: int | None = None
) -> list[Tensor | None]:
    """Which cached positions every layer keeps, so that all hold what the last filter left.

    Args:
        selections: for every cut the kept indices of the sequence that met it, text included.
        layers: the layer before which each cut was, ascending. depth: layers of the decoder.
        untouched: first layers that keep everything; None for all but the one right before the
            first cut, as the authors have it (0 shrinks every layer).

    Returns:
        One entry a layer, an index into its cache, or None where nothing changes.

    Raises:
        InputError: cuts and layers that do not fit.
    """
    rising = all(a < b for a, b in pairwise(layers))
    if len(selections) != len(layers) or not layers or not rising:
        raise InputError("output_aware needs one ascending layer for every selection")
    if not 1 <= layers[0] <= layers[-1] < depth:
        raise InputError(f"cuts before layers {list(layers)} do not fit a decoder of {depth}")
    composed = list(selections)
    for k in range(len(composed) - 1, 0, -1):
        composed[k - 1] = composed[k - 1][composed[k]]
    whole = layers[0] - 1 if untouched is None else untouched
    result: list[Tensor | None] = []
    for layer in range(depth):
        cut = sum(before <= layer for before in layers)  # cuts that this layer's input has seen
        result.append(None if layer < whole or cut == len(layers) else composed[cut])
    return result
