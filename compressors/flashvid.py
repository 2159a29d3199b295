"""FlashVID (arXiv 2602.08024): diverse tokens of a frame stay, the others merge into trees.

`compress` is the authors' outer stage on a full grid and `inner_prune` their pruning inside the
decoder, both in their order and arithmetic; `FlashVid` is the outer stage on `VideoTokens`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, Selection, VideoTokens

from .base import Compressor
from .flashvid_steps import diverse, merge_segment, pick, saliency, segment_lengths
from .registry import register
from .shared.segments import merge_groups, present_frames, share


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
    are least alike. The authors' budget is `expansion_of` times the nominal share, because they
    prune again inside the decoder (`inner_prune`); here `keep` is what this stage keeps.

    A merged token is the mean of all tokens that it stands for. Defects of the authors' code:
    a tree's sum is divided by its direct children only, so chains grow (`faithful=True` gives
    that, as `Mix`, and clusters as means of trees); a token can be picked twice, and be both a
    pick and a centre in a segment of one frame (only `compress` gives that: a clip here holds a
    token once); its input is changed in place and its noise is not seeded (never).

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
        frames = [x[part.to(x.device)].float() for part in parts]
        means = torch.stack([frame.detach().mean(0) for frame in frames])
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
            The slots and their features, in pieces.
        """
        counts = [math.ceil(goal * self.alpha) for goal in goals]
        rows = pick([frame.detach() for frame in frames], weights, counts)
        picked = [torch.zeros(len(x), dtype=torch.bool, device=x.device) for x in frames]
        made = []
        for frame, part, mask, row in zip(frames, parts, picked, rows, strict=True):
            mask[row] = True
            index = part[row.cpu()]
            joins[index] = index
            made.append((index, frame[row]))
        if counts == goals:
            return made  # no room to merge into: as with the authors, the others go
        total = sum(goals)
        up, clusters = merge_segment(
            frames, picked, total, total - sum(counts), self.similarity, direct=self.faithful
        )
        for t, (part, cluster) in enumerate(zip(parts, clusters, strict=True)):
            index = part[cluster.centres.cpu()]
            joins[part[cluster.members.cpu()]] = index[cluster.label.cpu()]
            made.append((index, cluster.features))
            child = torch.nonzero(up[t] >= 0).flatten()
            if len(child):
                joins[part[child.cpu()]] = joins[parts[t - 1][up[t][child].cpu()]]
        return made
