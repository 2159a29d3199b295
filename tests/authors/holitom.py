"""HoliTom (cokeshao/HoliTom): windows, outer stage, merge inside the decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidllm.compressors.holitom import halve, join, programme
from vidllm.compressors.shared.density import cluster, top
from vidllm.errors import InputError


def windows(features: Tensor, tau: float = 0.8, max_window: int = 1024) -> tuple[Tensor, int]:
    """Windows of a clip (T, N, D): (W, 2) first and last frame, and the tokens that they save.

    A cell is still from one frame to the next where the cosine is above `tau`.
    """
    found, saved = programme(_alike(features) > tau, max_window)
    return torch.tensor(found), saved


def merge(
    features: Tensor,
    attention: Tensor,
    retain_ratio: float,
    tau: float = 0.8,
    beta: float = 0.6,
    K: int = 7,
    D: float = 0,
    max_window: int = 1024,
    newline: Tensor | None = None,
    noise: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """HoliTom's outer stage as the authors' code gives it, in the order of its output.

    Cells that are still through a window become their mean over it, and round(m R') clusters
    of these m stay; of the m other tokens of a frame the ceil(m R') most attended stay, where
    R' = min(retain_ratio / ((T N - saved) / (T N)), 1). A frame alone has no still cells.
    Source: cokeshao/HoliTom, `holitom/llava_arch.py`.

    Args:
        features: (T, N, D) tokens. attention: (T, N) saliency. retain_ratio: in (0, 1].
        tau, max_window: see `windows`. beta: weight of a cluster's centre against the mean of
            the others. K: neighbours of the density, at most the clusters.
        D: the authors' share of merged tokens in a frame; their code fails for any but 0.
        newline: (D,) for models that lay frames out in rows: the clusters then stand among the
            tokens of the window's first frame, and each row that has a token ends in this one.
        noise: see `density.peaks`; the authors have it, the default is none.

    Returns:
        tokens (L, D), window by window: its clusters, then what stays of each frame; and
        tokens_per_window (W,).

    Raises:
        InputError: shapes that do not fit, D other than 0, or rows of cells that are no square.
    """
    if features.dim() != 3 or attention.shape != features.shape[:2]:
        raise InputError("features must be (T, N, D) and attention (T, N)")
    if D != 0 or not 0 < retain_ratio <= 1:
        raise InputError(f"retain_ratio must be in (0, 1] and D 0, not {retain_ratio} and {D}")
    total, size = features.shape[:2]
    side = math.isqrt(size)
    if newline is not None and side * side != size:
        raise InputError(f"{size} cells are no square of rows: leave newline out")
    still = _alike(features) > tau
    found, saved = programme(still, max_window)
    every = total * size
    ratio = min(retain_ratio / ((every - saved) / every), 1.0)
    saliency, device = attention.cpu(), features.device
    parts: list[Tensor] = []
    counts = []
    for first, last in found:
        held = still[first:last].all(0) if last > first else torch.zeros(size, dtype=torch.bool)
        cells, moving = torch.nonzero(held).flatten(), torch.nonzero(~held).flatten()
        mean = features[first : last + 1, cells.to(device)].mean(0)
        centres, _, rows = cluster(mean, round(len(cells) * ratio), beta, K, noise)
        frames = [(cells[centres], rows)]
        for t in range(first, last + 1):
            best = moving[top(saliency[t, moving], math.ceil(len(moving) * ratio)).sort().values]
            frames.append((best, features[t, best.to(device)]))
        if newline is not None:
            static, head = frames[0], frames[1]
            frames[:2] = [(torch.cat([static[0], head[0]]), torch.cat([static[1], head[1]]))]
            frames = [(cell, _lines(cell, x, side, newline)) for cell, x in frames]
        parts += [x for _, x in frames]
        counts.append(sum(len(x) for _, x in frames))
    return torch.cat(parts), torch.tensor(counts)


def inner_merge(
    hidden: Tensor, attention_prev_layer: Tensor, image_start: int, image_len: int, r: float
) -> tuple[Tensor, Tensor]:
    """HoliTom's stage inside the decoder as the authors' code gives it.

    The round(image_len * (1 - r)) video tokens that the last query of the layer before attends
    to most stay; each other one, in time order, merges into the most cosine-similar of them by
    halving, kept <- (kept + other) / 2. Source: cokeshao/HoliTom, `holitom/modeling_qwen2.py`.

    Args:
        hidden: (1, L, D) states. attention_prev_layer: (1, heads, L, L) softmaxed.
        image_start, image_len: where the video stands. r: share of it that merges.

    Returns:
        hidden_out (1, K, D) and keep_idx (K,), the positions that stay, ascending.
    """
    span = torch.arange(image_start, image_start + image_len)
    score = attention_prev_layer[0].float().mean(0)[-1].cpu()[span]
    count = round(image_len * (1 - r))
    stay = top(score, count).sort().values
    keep = torch.ones(hidden.shape[1], dtype=torch.bool)
    keep[span] = False
    keep[span[stay]] = True
    result = hidden[0].clone()
    if 0 < count < image_len:
        video = hidden[0, span.to(hidden.device)]
        result[span[stay].to(hidden.device)] = halve(video, join(video, stay))
    index = torch.nonzero(keep).flatten()
    return result[index.to(hidden.device)][None], index


def _alike(features: Tensor) -> Tensor:
    rows = features.detach().float()
    return torch.cosine_similarity(rows[:-1], rows[1:], dim=2).cpu()


def _lines(cells: Tensor, x: Tensor, side: int, newline: Tensor) -> Tensor:
    """Tokens in raster order, each row that has one ended by `newline`."""
    order = cells.argsort()
    counts = torch.unique_consecutive(cells[order] // side, return_counts=True)[1].tolist()
    rows = x[order.to(x.device)].split(counts) if counts else ()
    return torch.cat([x[:0], *(part for row in rows for part in (row, newline[None]))])
