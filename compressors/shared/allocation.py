"""Splitting a token budget over frames: evenly, or by relevance and motion as SemVID does.

The arithmetic is that of SemVID (arXiv 2603.05663, sections of the frame budget), for frames of
any size; `semvid` and the wrapper `FrameBudget` use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .kernels import mean
from .segments import present_frames, unit

# Longer questions are reduced to one mean vector (the authors' rule).
LONGEST_QUERY = 50


# The authors' floor of a norm.
FLOOR = 1e-6


def allocate(weights: Tensor, total: int) -> Tensor:
    """Split `total` in proportion to `weights` (T,), by the largest remainder in float32.

    Negative weights count as 0, and where all are 0 every part is equal. Equal remainders: the
    earlier part. Returns (T,) long on the CPU with the sum `total` (zeros where total <= 0).
    """
    weight = weights.detach().float().cpu().clamp(min=0)
    if total <= 0:
        return torch.zeros(weight.numel(), dtype=torch.long)
    if float(weight.sum()) < 1e-8:
        weight = torch.ones_like(weight)
    raw = weight / weight.sum() * total
    result = raw.floor().long()
    missing = total - int(result.sum())
    order = torch.argsort(raw - raw.floor(), descending=True, stable=True)
    result[order[:missing]] += 1
    if missing < 0:  # float32 floors can exceed a very large total by a little
        result[result.argmax()] += missing
    return result


def allocate_capped(weights: Tensor, total: int, cap: Tensor) -> Tensor:
    """`allocate`, with at most `cap` (T,) a part: what overflows goes to the unfilled parts.

    The sum is min(total, cap.sum()). (The authors stop after 16 rounds, which is never reached
    in practice; here rounds go on until nothing is left.)
    """
    cap = cap.clamp(min=0)
    result = torch.zeros_like(cap)
    left = min(total, int(cap.sum()))
    while left > 0:
        open_ = torch.nonzero(result < cap).flatten()
        extra = allocate(weights.cpu()[open_], left)
        extra = torch.minimum(extra, (cap - result)[open_])
        result[open_] += extra
        left -= int(extra.sum())
    return result


def relevance(frame_global: Tensor, query: Tensor, win: int = 1) -> Tensor:
    """(T,) cosine of every frame (T, D) with the question; of several rows the two best.

    Args:
        frame_global: (T, D) mean of the frame's tokens.
        query: (L, D) rows, or (D,) one vector. win: width of a box filter over the frames.
    """
    cosine = unit(frame_global, FLOOR) @ unit(query.reshape(-1, query.shape[-1]), FLOOR).T
    score = cosine.topk(min(2, cosine.shape[1]), dim=1).values.mean(1)
    count = score.numel()
    if win > 1 and count >= 3:
        width = min(win + 1 - win % 2, count if count % 2 else count - 1)
        half = width // 2
        padded = torch.cat([score[:1].expand(half), score, score[-1:].expand(half)])
        score = padded.unfold(0, width, 1).mean(1)
    return score


def shares(
    frame_global: Tensor,
    query: Tensor | None,
    sizes: Tensor,
    total: int,
    *,
    c: int = 0,
    tau: float = 0.0,
    topk: int = 0,
    win: int = 1,
    alpha: float = 0.7,
    minf: int = 0,
) -> Tensor:
    """Tokens for every frame, with the exact sum `total`: SemVID's two-level allocation.

    Frames get `minf` tokens (at least 1) first; where that is more than `total`, the highest
    number that fits, which is 0 for fewer tokens than frames. The rest is split over segments
    by relevance, then over a segment's frames by alpha * relevance + (1 - alpha) * motion.

    Args:
        frame_global: (T, D) mean of every frame's tokens. query: (L, D) or (D,); None leaves
            motion alone to decide. sizes: (T,) tokens that a frame has. total: at most their sum.
        c, tau: segments are cut at the c - 1 least similar neighbours and where their cosine is
            below tau. topk: only so many segments share the rest (0: all). win: see `relevance`.

    Returns:
        (T,) long on the CPU.
    """
    g = unit(frame_global, FLOOR)
    count = g.shape[0]
    score = torch.zeros(count) if query is None else relevance(frame_global, query, win).cpu()
    motion = (g[1:] - g[:-1]).norm(dim=1).cpu()
    motion = torch.cat([motion[:1], motion]) if count > 1 else torch.zeros(1)
    weight = motion if query is None else alpha * score.clamp(min=0) + (1 - alpha) * motion
    keep = floors(sizes, total, max(minf, 1))
    lengths = _segment_lengths((g[1:] * g[:-1]).sum(1).cpu(), c, tau)
    means = torch.stack([part.mean() for part in score.split(lengths)])
    extras = allocate(_segment_weights(means, topk), total - int(keep.sum()))
    first = 0
    for length, extra in zip(lengths, extras.tolist(), strict=True):
        keep[first : first + length] += allocate(weight[first : first + length], extra)
        first += length
    keep = torch.minimum(keep, sizes)
    slack = sizes - keep
    return keep + allocate_capped(weight * slack, total - int(keep.sum()), slack)


def floors(sizes: Tensor, total: int, least: int) -> Tensor:
    """(T,) `least` tokens for every frame, or as many as `total` allows, of those it has."""
    while int(sizes.clamp(max=least).sum()) > total:
        least -= 1
    return sizes.clamp(max=least)


def _segment_lengths(similar: Tensor, c: int, tau: float) -> list[int]:
    """Lengths of the segments between the frames whose neighbours are `similar` (T-1,)."""
    cut = similar < tau
    cut[torch.argsort(similar, stable=True)[: max(0, c - 1)]] = True
    ends = [*(torch.nonzero(cut).flatten() + 1).tolist(), similar.numel() + 1]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _segment_weights(means: Tensor, topk: int) -> Tensor:
    weight = means.clamp(min=0)
    if float(weight.sum()) < 1e-8:
        weight = means - means.min() + 1e-6
    if 0 < topk < weight.numel():
        best = torch.argsort(weight, descending=True, stable=True)[:topk]
        kept = torch.zeros_like(weight)
        kept[best] = weight[best] if float(weight[best].sum()) > 0 else 1.0
        weight = kept
    return weight


def uniform_shares(sizes: Tensor, total: int) -> Tensor:
    """Equal numbers a frame, what is left over at frames floor(j T / rest) (SemVID's ablation).

    What does not fit into a frame's `sizes` (T,) goes to those that have room.
    """
    count = sizes.numel()
    keep = torch.full_like(sizes, total // count)
    rest = total % count
    if rest:
        keep[torch.arange(rest) * count // rest] += 1
    keep = torch.minimum(keep, sizes)
    slack = sizes - keep
    return keep + allocate_capped(slack.float(), total - int(keep.sum()), slack)


def frame_means(tokens: VideoTokens) -> tuple[Tensor, list[Tensor]]:
    """(F, D) float32 mean of every frame that has tokens, and the tokens of each, as indices."""
    order, _, counts = present_frames(tokens)
    frames = list(order.split(counts.tolist()))
    return torch.stack([mean(tokens.features, part) for part in frames]), frames


def question(tokens: VideoTokens, query: Tensor) -> Tensor:
    """The query (Q, D) in the form that is compared: rows, or (D,) one mean where Q > 50.

    Raises:
        InputError: no rows, or another width than the features.
    """
    width = tokens.features.shape[1]
    if query.dim() != 2 or query.shape[0] == 0 or query.shape[1] != width:
        raise InputError(
            f"the query must be (Q, {width}) rows in the width of the video features, not "
            f"{tuple(query.shape)}"
        )
    rows = query.detach().to(tokens.features.device).float()
    return rows if rows.shape[0] <= LONGEST_QUERY else rows.mean(0)
