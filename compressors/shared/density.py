"""Arithmetic of the methods that gather tokens around density peaks, as FastVID and HoliTom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidllm.tokens import Merge, apply_rows
from vidllm.tokens.video_tokens import take

from .kernels import TINY, cosines, distances
from .segments import unit


def generator(seed: int | None) -> torch.Generator | None:
    """The source of the authors' noise; None, the default of every method, is no noise."""
    return None if seed is None else torch.Generator().manual_seed(seed)


def top(score: Tensor, count: int) -> Tensor:
    """The `count` best of (N,) scores, best first; of equal scores the earlier one."""
    return torch.argsort(score, descending=True, stable=True)[:count]


def peaks(
    x: Tensor, neighbours: int, noise: torch.Generator | None = None, strict: bool = True
) -> Tensor:
    """How well each token would do as a centre: density times distance to a denser token.

    With d the Euclidean distance over sqrt(D), density is exp(-mean of the squared
    `neighbours` smallest d, the token itself included); the distance is the smallest d to a
    token of strictly higher density, or the largest d of all where there is none. Without
    noise, equal tokens are then all far from any denser one and all make the best centres.

    Args:
        x: (N, D) tokens. neighbours: at most N count.
        noise: draws uniform noise of 1e-6 on the densities, as the authors do, to part ties.
        strict: False parts ties without noise: of equal densities the earlier counts as higher.

    Returns:
        (N,) float32 scores on the CPU.
    """
    return peaks_among(apart(x), neighbours, noise, strict)


def apart(x: Tensor) -> Tensor:
    """(N, N) Euclidean distances of tokens (N, D), over sqrt(D)."""
    return distances(x).div_(x.shape[1] ** 0.5)


def peaks_among(
    distance: Tensor, neighbours: int, noise: torch.Generator | None = None, strict: bool = True
) -> Tensor:
    """`peaks` of tokens that are so far `apart` (N, N)."""
    near = distance.topk(min(neighbours, len(distance)), largest=False).values
    density = (-near.square().mean(1)).exp()
    if noise is not None:
        density = density + torch.rand(len(density), generator=noise).to(density) * 1e-6
    denser = density[None, :] > density[:, None]
    if not strict:
        denser |= (density[None, :] == density[:, None]).tril(-1)
    gap = torch.where(denser, distance, distance.max()).amin(1)
    return (density * gap).cpu()


def cluster(
    x: Tensor,
    clusters: int,
    beta: float,
    neighbours: int,
    noise: torch.Generator | None = None,
    strict: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather (N, D) tokens around density peaks, each at the nearest centre (Euclidean).

    Returns:
        centres (C,), ascending; into (N,), the centre 0..C-1 of every token, or -1 where there
        is none; and (C, D), beta * centre + (1 - beta) * mean of its other tokens.
    """
    if clusters == 0:
        return torch.empty(0, dtype=torch.long), torch.full((len(x),), -1), x[:0]
    distance = apart(x)
    score = peaks_among(distance, min(neighbours, clusters), noise, strict)
    centres = top(score, clusters).sort().values
    into = distance[:, centres.to(x.device)].argmin(1).cpu()
    into[centres] = torch.arange(clusters)
    return centres, into, pull(x, Merge(into, centres), torch.full((clusters,), beta))


def nearest(x: Tensor, anchors: Tensor) -> Tensor:
    """For each of (N, D) tokens the most cosine-similar of (A, D) anchors, the first of equals.

    Returns:
        (N,) long on the CPU.
    """
    targets = unit(anchors)
    return torch.cat([near.argmax(1) for _, near in cosines(x, targets, TINY)]).cpu()


def pull(x: Tensor, merge: Merge, weight: Tensor, itself: bool = False) -> Tensor:
    """Blend every slot's representative with the mean of the tokens that join it.

    Args:
        x: (N, D) tokens, differentiable. merge: the slots, K of them.
        weight: (K,) the representative's part; the rest goes to the mean of the others.
        itself: the mean takes in the representative as well.

    Returns:
        (K, D) in the dtype of `x`; a slot of one token is that token, bit for bit.
    """
    slot = merge.target.clamp(min=0)
    count = torch.bincount(merge.target[merge.target >= 0], minlength=len(merge))
    if not itself:  # the same blend, with the mean over all
        weight = (weight * count - 1) / (count - 1).clamp(min=1)
    each = ((1 - weight) / count.clamp(min=1))[slot]
    each[merge.representative] += weight
    return apply_rows(x, Merge(merge.target, merge.representative, "size"), each)


def gather(
    x: Tensor, pool: Tensor, anchors: Tensor, beta: float, itself: bool
) -> tuple[Tensor, Tensor]:
    """Merge the tokens of a pool into the most similar of the anchors among them.

    An anchor weighs max(1 / (members + 1), beta), the mean of its members the rest.

    Args:
        x: (L, D) tokens. pool: (P,) some of them, ascending. anchors: (A,) some of the pool,
            ascending. beta: least weight of an anchor. itself: it is a member of its own.

    Returns:
        The anchors' new features (A, D), and the anchor 0..A-1 of each token of the pool (P,).
    """
    rows = take(x, pool)
    place = torch.searchsorted(pool, anchors)
    into = nearest(rows, rows[place.to(x.device)])
    into[place] = torch.arange(len(anchors))
    members = torch.bincount(into) - (0 if itself else 1)
    weight = (1.0 / (members + 1)).clamp(min=beta)
    return pull(rows, Merge(into, place), weight, itself), into


def by_frame(
    worth: Sequence[int], room: Sequence[int], d: float, p: int, exact: bool
) -> list[tuple[int, int]]:
    """How many (salient, anchor) tokens the frames of a segment keep, FastVID for LLaVA.

    Args:
        worth: tokens that a frame is worth; int(worth * d) of them are anchors. room: tokens it
            has. p: every p-th frame, counted from the last, takes an equal part of all anchors;
            what exceeds its room goes to the others of these, then to the other frames.
        exact: hand the remainder of the equal parts to the first; the authors lose it.
    """
    anchors = [int(count * d) for count in worth]
    salient = [count - a for count, a in zip(worth, anchors, strict=True)]
    if len(room) > 1:
        hosts = [(len(room) - 1 - j) % p == 0 for j in range(len(room))]
        lost = 0 if exact else sum(anchors) % sum(hosts)
        spare = [n - s for n, s in zip(room, salient, strict=True)]
        anchors = _fill(sum(anchors) - lost, spare, hosts)
    return list(zip(salient, anchors, strict=True))


def by_group(
    worth: int, room: Sequence[int], used: Sequence[bool], d: float, p: int, exact: bool
) -> list[tuple[int, int]]:
    """The same for Qwen: one count for the segment, frames that stand for a group take it.

    Args:
        worth: tokens of the whole segment. room: tokens of each frame. used: frames that stand
            for a group of like ones. d, p: as in `by_frame`, over these frames. A frame has at
            most half its tokens as anchors.
        exact: hand what exceeds a frame to others as salient tokens; the authors lose it.
    """
    context = max(int(worth * d), 1)
    if len(room) == 1:
        return [(worth - context, context)]
    groups = [j for j, yes in enumerate(used) if yes]
    hosts = _even(context, -(-len(groups) // p))
    # Every p-th group, counted from the first, then turned round so that the last has anchors.
    contexts = [0 if g % p else hosts[g // p] for g in range(len(groups))][::-1]
    salient, anchors = [0] * len(room), [0] * len(room)
    for j, a, s in zip(groups, contexts, _even(worth - context, len(groups)), strict=True):
        anchors[j] = min(a, room[j] // 2)
        salient[j] = min(s, room[j] - anchors[j])
    if exact:
        spare = [n - s - a for n, s, a in zip(room, salient, anchors, strict=True)]
        more = _fill(worth - sum(salient) - sum(anchors), spare, used)
        salient = [s + extra for s, extra in zip(salient, more, strict=True)]
    return list(zip(salient, anchors, strict=True))


def _even(total: int, parts: int) -> list[int]:
    """Equal parts of a count, the first ones one more."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _fill(total: int, room: Sequence[int], first: Sequence[bool]) -> list[int]:
    """Hand a count out evenly, within each part's room: over the marked parts, then the others."""
    given = [0] * len(room)
    for turn in (True, False):
        while total:
            free = [j for j in range(len(room)) if first[j] is turn and given[j] < room[j]]
            if not free:
                break
            for j, more in zip(free, _even(total, len(free)), strict=True):
                taken = min(more, room[j] - given[j])
                given[j] += taken
                total -= taken
    return given
