"""FlashVID (arXiv 2602.08024): diverse tokens of a frame stay, the others merge into trees.

First its steps on plain tensors, frame by frame: segments, diverse picks, trees over time,
clusters. Then `FlashVid`, which puts them together on `VideoTokens`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens, split_budget
from vidllm.tokens.video_tokens import take

from .base import Compressor
from .registry import register
from .shared.density import apart, peaks_among, top
from .shared.kernels import mean
from .shared.segments import merge_groups, present_frames, share, unit

# The least norm of a row.
_SMALLEST = 1e-12
# Numbers of a batch of frames' distances that are held at a time (16 MiB in float32).
_ROOM = 2**22


def segment_lengths(
    means: Tensor, segment_threshold: float = 0.9, min_segment_num: int = 8
) -> list[int]:
    """Cut a clip where neighbouring frames' means (T, D) have a cosine below the threshold.

    With fewer segments than `min_segment_num` the least similar other neighbours are cut too. As
    with the authors, a clip of fewer frames than that then has segments of length 0.
    """
    similar = torch.cosine_similarity(means[:-1].float(), means[1:].float(), dim=-1).cpu()
    cuts = torch.nonzero(similar < segment_threshold).flatten()
    missing = min(min_segment_num - 1 - cuts.numel(), similar.numel())
    if missing > 0:
        similar[cuts] = torch.inf
        cuts = torch.cat([cuts, torch.argsort(similar, stable=True)[:missing]]).sort().values
    ends = [*(cuts + 1).tolist(), means.shape[0]]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@torch.no_grad()
def diverse(
    x: Tensor | Sequence[Tensor], weight: Tensor, count: int, *, again: bool = False
) -> Tensor:
    """Pick `count` tokens of every frame, each far from those before it (ADTS).

    Args:
        x: (B, n, D) tokens of B frames. weight: (B, n) by which distances to a token count.
        again: as the authors, a token may be picked twice (where weights are not positive).

    Returns:
        (B, count) indices in the order in which they were picked.
    """
    weight = weight.detach()
    away = weight.new_empty(*weight.shape, weight.shape[1])
    for frame, by, out in zip(x, weight, away, strict=True):
        rows = unit(frame, _SMALLEST)
        torch.mul(1 - rows @ rows.T, by, out=out)
    picks: list[Tensor] = []
    # Nearest but the token itself, which is the smallest of its column.
    score = away.topk(min(2, weight.shape[1]), dim=1, largest=False).values[:, -1]
    nearest = torch.full_like(score, torch.inf)
    every = torch.arange(len(weight), device=weight.device)
    for _ in range(count):
        picks.append(score.argmax(dim=1))
        nearest = torch.minimum(nearest, away[every, picks[-1]])
        score = nearest
        if not again:
            nearest[every, picks[-1]] = -torch.inf  # stays the minimum from now on
    return torch.stack(picks, dim=1) if picks else every.new_zeros(len(weight), 0)


def pick(frames: list[Tensor], weights: list[Tensor], counts: list[int]) -> list[Tensor]:
    """`diverse` for frames (n_t, D) of any size: the indices that are picked in each."""
    alike: dict[tuple[int, int], list[int]] = {}
    for t, (x, count) in enumerate(zip(frames, counts, strict=True)):
        alike.setdefault((x.shape[0], count), []).append(t)
    result = list(weights)
    for (size, count), which in alike.items():
        step = max(1, _ROOM // size**2)
        for first in range(0, len(which), step):
            part = which[first : first + step]
            weight = torch.stack([weights[t] for t in part])
            picks = diverse([frames[t] for t in part], weight, count)
            for t, rows in zip(part, picks, strict=True):
                result[t] = rows
    return result


def saliency(x: Tensor, attention: Tensor, centres: Tensor) -> Tensor:
    """Weight of tokens (..., D): attention (...) times mean product with the frames' `centres`."""
    return 1e6 * attention * (x.float() @ centres.T).mean(-1)


def parents(
    frames: list[Tensor], picked: list[Tensor], survivors: int, limit: float
) -> list[Tensor]:
    """For every token of a segment the token of the frame before that it merges into, or -1.

    That is the most similar one, where the cosine is above `limit`; the limit is raised where
    fewer tokens than `survivors` would be left. Picked tokens neither merge nor take others.

    Args:
        frames: (n_t, D) tokens of each frame. picked: (n_t,) bool.
    """
    here = unit(frames[0], _SMALLEST)
    best = [torch.full((frames[0].shape[0],), -1.0, device=frames[0].device)]
    into = [torch.zeros(frames[0].shape[0], dtype=torch.long, device=frames[0].device)]
    for t in range(1, len(frames)):
        before, here = here, unit(frames[t], _SMALLEST)
        alike = here @ before.T
        alike[picked[t]] = -1
        alike[:, picked[t - 1]] = -1
        top = alike.max(dim=1)
        best.append(top.values)
        into.append(top.indices)
    scores = torch.cat(best)
    spare = scores.numel() - survivors
    if int((scores > limit).sum()) > spare:
        limit = (
            max(float(scores.detach().topk(spare).values[-1]), -1 + 1e-6) if spare else torch.inf
        )
    return [torch.where(s > limit, i, -1) for s, i in zip(best, into, strict=True)]


def trees(frames: list[Tensor], up: list[Tensor], *, direct: bool) -> Iterator[Tensor]:
    """Tokens of a segment after merging every token into its parent `up`; valid at the roots.

    From the last frame to the first. A root is the mean of its tree. `direct`, the authors'
    arithmetic: the sum of the tree over one more than the number of DIRECT children, so that
    chains grow (L equal frames: L / 2).
    """
    total, count = frames[-1].float(), _ones(frames[-1])
    for t in range(len(frames) - 1, 0, -1):
        yield total / count[:, None]
        child = torch.nonzero(up[t] >= 0).flatten()
        into, passed = up[t][child], torch.ones_like(count[child]) if direct else count[child]
        total = frames[t - 1].float().index_add(0, into, total[child])
        count = _ones(frames[t - 1]).index_add(0, into, passed)
    yield total / count[:, None]


def _ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[0], device=x.device)


def density_peaks(x: Tensor, count: int, *, part: bool = True) -> tuple[Tensor, Tensor]:
    """Cluster tokens (m, D): the (count,) centres, and for every token its centre's number (m,).

    Density is over the min(7, count) nearest tokens, itself included; a centre is dense and far
    from denser tokens.

    Args:
        part: of equally dense tokens the earlier one counts as denser. The authors add noise of
            1e-6 for that; with neither, two tokens that are nearest to each other tie, and both
            become centres.
    """
    distance = apart(x)
    centres = top(peaks_among(distance, min(7, count), strict=not part), count).to(x.device)
    label = distance[:, centres].argmin(dim=1)
    label[centres] = torch.arange(count, device=x.device)
    return centres, label


@dataclass(frozen=True)
class Cluster:
    """What is left of one frame after merging: `members` (m,), each with the `label` (m,) of a
    centre, the centres (k,) as indices into the frame, and their new features (k, D)."""

    members: Tensor
    label: Tensor
    centres: Tensor
    features: Tensor


def merge_segment(
    frames: list[Tensor],
    picked: list[Tensor],
    survivors: int,
    rest: int,
    limit: float,
    *,
    exact: bool = True,
    direct: bool = False,
) -> tuple[list[Tensor], list[Cluster]]:
    """Merge what was not picked of a segment, first along time and then inside every frame.

    Args:
        frames: (n_t, D) tokens of each frame. picked: (n_t,) bool. survivors: tokens that stay
            at least when merging along time, with the picked ones. rest: tokens that are left in
            the end, without them. limit: cosine above which tokens merge along time.
        exact: land on `rest`. Otherwise the authors' rule, ceil() of every frame's share; in a
            segment of one frame the picked tokens take part again, and ties are not parted.
        direct: see `trees`.

    Returns:
        The parents of every frame's tokens (see `parents`), and every frame's clusters.
    """
    up = [torch.full((x.shape[0],), -1, device=x.device) for x in frames]
    if len(frames) > 1 and limit < 1:
        up = parents(frames, picked, survivors, limit)
    again = len(frames) == 1 and not exact
    left = [
        torch.nonzero((parent < 0) & (~mask | again)).flatten()
        for parent, mask in zip(up, picked, strict=True)
    ]
    sizes = [rows.numel() for rows in left]
    counts = _counts(sizes, rest, exact)
    clusters = []
    values = trees(frames, up, direct=direct)
    for rows, value, count in zip(left[::-1], values, counts[::-1], strict=True):
        own = value[rows]
        centres = label = torch.arange(rows.numel(), device=rows.device)
        if count == 0:
            rows, centres, label, own = rows[:0], centres[:0], label[:0], own[:0]
        elif count < rows.numel():
            centres, label = density_peaks(own, count, part=exact)
            total = own.new_zeros(count, own.shape[1]).index_add_(0, label, own)
            own = total / torch.bincount(label, minlength=count)[:, None]
        clusters.append(Cluster(rows, label, rows[centres], own))
    return up, clusters[::-1]


def _counts(sizes: list[int], wanted: int, exact: bool) -> list[int]:
    """Clusters for every frame of a segment, `sizes` tokens to `wanted` clusters in all."""
    ratio = wanted / max(1, sum(sizes))
    if ratio >= 1:
        return sizes
    if not exact:
        return [math.ceil(size * ratio) for size in sizes]
    filled = [size for size in sizes if size]
    if wanted < len(filled):
        return split_budget(wanted, sizes)
    parts = iter(share(wanted, filled))
    return [next(parts) if size else 0 for size in sizes]


@register("flashvid")
@dataclass
class FlashVid(Compressor):
    """Pick diverse, attended tokens of every frame; merge the others along time, then in space.

    Every frame gets an equal part of the budget, of which the share `alpha` is picked and stays
    as it is. Inside a segment of alike frames the others join their most similar token of the
    frame before (trees over time), and what is left of a frame is clustered by density peaks.

    The count is exact: the clusters of a segment are shared out over its frames by largest
    remainder, where the authors' ceil() lets more through. A budget below the number of frames
    first leaves each frame its one pick, then merges neighbouring frames' picks, cut where they
    are least alike. The authors' budget is 1.25 times the nominal share, because they
    prune again inside the decoder; here `keep` is what this stage keeps.

    A merged token is the mean of all tokens that it stands for. Defects of the authors' code:
    a tree's sum is divided by its direct children only, so chains grow (`faithful=True` gives
    that, as `Mix`, and clusters as means of trees); a token can be picked twice, and be both a
    pick and a centre in a segment of one frame (here a clip holds a token once); its input is
    changed in place and its noise is not seeded (never here).

    Attributes:
        alpha: share of a frame's tokens that are picked. similarity: cosine above which a token
            joins one of the frame before; 1 for no merging along time.
        threshold: cosine of neighbouring frames below which a segment ends. segments: at least so
            many segments. faithful: the authors' sums of trees.
    """

    alpha: float = field(default=0.7, metadata={"help": "share of tokens picked, 0 to 1"})
    similarity: float = field(default=0.8, metadata={"help": "cosine above which tokens merge"})
    threshold: float = field(default=0.9, metadata={"help": "cosine below which frames part"})
    segments: int = field(default=8, metadata={"help": "at least so many segments"})
    faithful: bool = field(default=False, metadata={"help": "the authors' sums of chains"})

    needs = ("cls-attention",)
    paper = "FlashVID, arXiv 2602.08024"
    summary = "diverse tokens stay, the others merge along time and in space"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"flashvid: alpha must be from 0 to 1, not {self.alpha}")
        if self.segments < 1:
            raise InputError(f"flashvid: segments must be at least 1, not {self.segments}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One merge that meets the budget at once, or two below one token a frame."""
        order, _, counts = present_frames(tokens)
        parts, x = list(order.split(counts.tolist())), tokens.features
        if len(tokens) == len(parts):
            runs = segment_lengths(x.detach()[order.to(x.device)], -2.0, budget)
            group = torch.empty_like(order)
            group[order] = torch.arange(budget).repeat_interleave(torch.tensor(runs))
            return merge_groups(tokens, group)
        sizes = [len(part) for part in parts]
        goals = share(budget, sizes) if budget >= len(parts) else [1] * len(parts)
        frames = [take(x, part) for part in parts]
        means = torch.stack([mean(x, part) for part in parts])
        attention = self.signal(tokens, "cls-attention").to(x.device)
        joins, made, start = torch.full_like(order, -1), [], 0
        for length in segment_lengths(means, self.threshold, self.segments):
            if length:
                span = slice(start, start + length)
                weights = [
                    saliency(frame.detach(), attention[part.to(x.device)], means[span])
                    for frame, part in zip(frames[span], parts[span], strict=True)
                ]
                made += self._segment(frames[span], parts[span], goals[span], weights, joins)
                start += length
        stays = torch.nonzero(joins == torch.arange(len(tokens))).flatten()
        stays = stays[torch.argsort(tokens.position[stays], stable=True)]
        number = torch.full_like(order, -1)
        number[stays] = torch.arange(len(stays))
        target = torch.where(joins < 0, -1, number[joins.clamp(min=0)])
        if self.faithful:
            place = torch.argsort(number[torch.cat([index for index, _ in made])])
            rows = torch.cat([rows for _, rows in made])
            return Mix(rows[place.to(x.device)].to(x.dtype), target, stays)
        return Merge(target, stays)

    def _segment(
        self,
        frames: list[Tensor],
        parts: list[Tensor],
        goals: list[int],
        weights: list[Tensor],
        joins: Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Write what every token of a segment joins into `joins` (L,).

        Returns:
            With `faithful` the slots and their features, in pieces.
        """
        counts = [math.ceil(goal * self.alpha) for goal in goals]
        rows = pick([frame.detach() for frame in frames], weights, counts)
        picked = [torch.zeros(len(x), dtype=torch.bool, device=x.device) for x in frames]
        made = []
        for frame, part, mask, row in zip(frames, parts, picked, rows, strict=True):
            mask[row] = True
            index = part[row.cpu()]
            joins[index] = index
            if self.faithful:
                made.append((index, frame[row].float()))
        if counts == goals:
            return made  # no room to merge into: as with the authors, the others go
        total = sum(goals)
        up, clusters = merge_segment(
            frames, picked, total, total - sum(counts), self.similarity, direct=self.faithful
        )
        for t, (part, cluster) in enumerate(zip(parts, clusters, strict=True)):
            index = part[cluster.centres.cpu()]
            joins[part[cluster.members.cpu()]] = index[cluster.label.cpu()]
            if self.faithful:
                made.append((index, cluster.features))
            child = torch.nonzero(up[t] >= 0).flatten()
            if len(child):
                joins[part[child.cpu()]] = joins[parts[t - 1][up[t][child].cpu()]]
        return made
