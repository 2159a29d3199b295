"""FrameFusion (arXiv 2501.01986): merge what stays alike over frames, then prune by attention.

`required_sparsity`, `merge` and `prune` are the authors' steps on a decoder's sequence, in their
order and arithmetic; `FrameFusion` is the method on `VideoTokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Merge, Selection, VideoTokens

from .base import Compressor
from .registry import register


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


def _chained(x: Tensor, place: Tensor) -> Tensor:
    """(L,) cosine of every row (L, D) with the one before it; -2 where its place is another."""
    similar = x.new_full((x.shape[0],), -2.0)
    similar[1:] = torch.cosine_similarity(x[1:], x[:-1], dim=-1)
    similar[1:][place[1:] != place[:-1]] = -2.0
    return similar


def _largest(score: Tensor, count: int) -> Tensor:
    """(L,) bool: the `count` largest, of equal ones the earlier."""
    member = torch.zeros_like(score, dtype=torch.bool)
    member[torch.argsort(score, descending=True, stable=True)[:count]] = True
    return member


@register("framefusion")
@dataclass
class FrameFusion(Compressor):
    """Tokens that are like the one before them in the same cell merge; attention prunes the rest.

    A run of alike tokens becomes its first one, as their mean. Where more are alike than must go,
    the most alike ones merge and the count is exact; otherwise all of them do, in rounds while a
    round merges at least `least` of the tokens, and then the last query's attention decides. The
    authors spread these rounds over the first layers, until `required_sparsity` is met; here all
    of it happens before one layer, because a budget is what is left after it. Only that last
    step reads attention. On thinned clips "before" is the last token that the cell still has.

    Attributes:
        similarity: cosine from which tokens merge (0.5 in the authors' Qwen2-VL examples).
        least: share of the tokens below which merging ends.
        rest: "attention" prunes what merging leaves too many; "similarity" goes on merging the
            most alike tokens below the threshold, needs no attention, and when every cell has
            but one token merges neighbouring cells in raster order.
        weighting: "mean" as the authors (a merged token counts once in the next round) or "size".
        layer: the decoder layer (from 0) before which it acts; the last one where a model has
            fewer.
    """

    similarity: float = field(default=0.6, metadata={"help": "cosine from which tokens merge"})
    least: float = field(default=0.1, metadata={"help": "share below which merging ends"})
    rest: Literal["attention", "similarity"] = field(
        default="attention", metadata={"help": "what decides on the rest: attention or similarity"}
    )
    weighting: Literal["mean", "size"] = field(
        default="mean", metadata={"help": "count a merged token once, or by its size"}
    )
    layer: int = field(default=2, metadata={"help": "decoder layer before which it acts"})

    stage = "prefill"
    needs = ("decoder-attention",)
    paper = "FrameFusion, arXiv 2501.01986"
    summary = "alike tokens of a cell merge over time, attention prunes the rest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rest not in ("attention", "similarity"):
            raise InputError(
                f"framefusion: rest must be 'attention' or 'similarity', not {self.rest!r}"
            )
        if self.weighting not in ("mean", "size"):
            raise InputError(
                f"framefusion: weighting must be 'mean' or 'size', not {self.weighting!r}"
            )
        if self.layer < 0 or (self.layer == 0 and self.rest == "attention"):
            raise InputError(
                "framefusion: layer must be at least 1 (or 0 with rest=similarity), because the "
                f"attention is that of the layer before; got {self.layer}"
            )
        if self.rest == "similarity":
            vars(self)["needs"] = ()  # of this instance only

    def points(self, depth: int) -> list[tuple[int, float]]:
        """All rounds before one layer.

        Raises:
            InputError: a decoder of one layer, where no layer comes before another.
        """
        if depth < 2 and self.rest == "attention":
            raise InputError("framefusion: a decoder of one layer has no layer to prune before")
        return [(min(self.layer, depth - 1), self.keep)]

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round of merging, or the last one with the pruning."""
        order = torch.argsort(tokens.position, stable=True)
        place = tokens.cell[:, 0] * tokens.grid[2] + tokens.cell[:, 1]
        order = order[torch.argsort(place[order], stable=True)]
        if self.rest == "similarity" and len(tokens) == place.unique().numel():
            place = torch.zeros_like(place)
        x = tokens.features.detach()
        similar = _chained(x[order.to(x.device)].float(), place[order].to(x.device)).cpu()
        surplus = len(tokens) - budget
        linked = similar >= (self.similarity if self.rest == "attention" else -1.5)
        alike = int(linked.sum())
        if alike >= surplus:
            late = torch.argsort(tokens.position[order], descending=True, stable=True)
            member = torch.empty_like(linked)
            member[late] = _largest(similar[late], surplus)  # of equal ones the later tokens merge
            return self._merge(tokens, order, member)
        if self.rest == "similarity" or alike >= max(1.0, self.least * len(tokens)):
            return self._merge(tokens, order, linked)
        merged = self._merge(tokens, order, linked)
        attention = self.signal(tokens, "decoder-attention").cpu()
        total = torch.zeros(len(merged)).index_add_(0, merged.target, attention)
        best = _largest(total / torch.bincount(merged.target), budget)
        if not alike:
            return Keep(merged.representative[best].sort().values)
        number = torch.where(best, best.long().cumsum(0) - 1, -1)
        return Merge(number[merged.target], merged.representative[best], self.weighting)

    def _merge(self, tokens: VideoTokens, order: Tensor, member: Tensor) -> Merge:
        """Every `member` (L,) joins the one before it in `order`; in time order."""
        target = torch.empty_like(order)
        target[order] = (~member).long().cumsum(0) - 1
        return Merge(target, order[~member], self.weighting).in_order(tokens.position)
