"""HoliTom's own functions (arXiv 2505.21334): windows, outer stage, merge inside the decoder.

`windows`, `merge` and `inner_merge` give the authors' order and arithmetic; `holitom.py` has the
method on `VideoTokens`, which shares the parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge

from .shared.density import cluster, nearest, top
from .shared.segments import starts


def programme(still: Tensor, max_window: int = 1024) -> tuple[list[tuple[int, int]], int]:
    """The windows of frames that save most tokens, by dynamic programme.

    A window of w frames saves (cells that are still all through it) * (w - 1). Of equal totals
    a frame alone comes first, then the shorter window at the end. Time O(T^2), memory O(T).

    Args:
        still: (T - 1, N) bool on the CPU, cell i does not change from frame t to t + 1.
        max_window: longest window in frames.

    Returns:
        Windows (first, last frame), in time order over all T frames, and the tokens saved.
    """
    frames = len(still) + 1
    best = torch.zeros(frames + 1, dtype=torch.long)  # best[t]: saved by the first t frames
    length = [1] * frames
    run = torch.zeros(still.shape[1], dtype=torch.long)
    for end in range(1, frames):
        run = (run + 1) * still[end - 1]
        best[end + 1] = best[end]
        steps = min(end, max_window - 1)
        if steps < 1:
            continue
        # count[k - 1]: cells still over the last k steps, the window of k + 1 frames.
        exactly = torch.bincount(run.clamp(max=steps), minlength=steps + 1)
        count = exactly.flip(0).cumsum(0).flip(0)[1:]
        value = best[end - steps : end].flip(0) + count * torch.arange(1, steps + 1)
        step = int(value.argmax())
        if value[step] > best[end]:
            best[end + 1], length[end] = value[step], step + 2
    found, end = [], frames - 1
    while end >= 0:
        found.append((end - length[end] + 1, end))
        end -= length[end]
    return found[::-1], int(best[-1])


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


def join(x: Tensor, stay: Tensor) -> Merge:
    """Every token (L, D) into the most cosine-similar of those that stay."""
    into = nearest(x, x[stay.to(x.device)])
    into[stay] = torch.arange(len(stay))
    return Merge(into, stay)


def halve(x: Tensor, merge: Merge) -> Tensor:
    """Each slot's token halved with each of its others in turn, so that the last weighs 1/2."""
    other = torch.ones(len(x), dtype=torch.bool)
    other[merge.representative] = False
    rest = torch.nonzero(other).flatten()
    rest = rest[torch.argsort(merge.target[rest], stable=True)]
    slot = merge.target[rest]
    count = torch.bincount(slot, minlength=len(merge))
    turn = torch.arange(len(rest)) - starts(count)[slot]
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    weight, own = (
        torch.pow(0.5, power)[:, None].to(exact) for power in (count[slot] - turn, count)
    )
    result = own * exact[merge.representative.to(x.device)]
    halved = result.index_add(0, slot.to(x.device), weight * exact[rest.to(x.device)])
    return halved.to(x.dtype)
