"""FrameFusion (arXiv 2501.01986): merge what stays alike over frames, then prune by attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Merge, Selection, VideoTokens, apply_rows

from .base import Compressor
from .registry import register
from .shared.kernels import row_cosine
from .shared.segments import Merged, compose


def _chained(x: Tensor | Merged, place: Tensor, order: Tensor | None = None) -> Tensor:
    """(L,) cosine of every row (L, D) with the one before it; -2 where its place is another.

    `order` (L,) is that of the rows, and `place` (L,) in this order; None for the rows as they are.
    """
    order = torch.arange(len(x)) if order is None else order
    similar = torch.full((len(order),), -2.0)
    later = torch.nonzero(place[1:] == place[:-1]).flatten() + 1
    later = later[torch.argsort(order[later])]  # in the order of the rows, which is quicker
    similar[later] = row_cosine(x, order[later], order[later - 1]).cpu()
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
    authors spread these rounds over the first layers, until their average cost is met; here all
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

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """As `Compressor.run`, with features merged once, by the weights of all rounds together."""
        goal, rounds = self.goal(tokens, budget), list[Selection]()
        if len(tokens) <= goal:
            return tokens, rounds
        self.check(tokens, query)
        now = tokens.with_features(tokens.features[:, :0])
        every, weight = torch.arange(len(tokens)), torch.ones(len(tokens))
        whole = Merge(every, every)
        while len(now) > goal:
            rows = Merged(tokens.features, whole, weight) if rounds else tokens.features
            selection = self._round(now, rows, goal)
            own = now.size if self.weighting == "size" else torch.ones(len(now))
            now = now.apply(selection)
            rounds.append(selection)
            whole, weight = compose(whole, weight, selection, own)
        if len(rounds) == 1:
            return now.with_features(apply_rows(tokens.features, rounds[0], tokens.size)), rounds
        sized = Merge(whole.target, whole.representative, "size")
        return now.with_features(apply_rows(tokens.features, sized, weight)), rounds

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round of merging, or the last one with the pruning."""
        return self._round(tokens, tokens.features, budget)

    def _round(self, tokens: VideoTokens, x: Tensor | Merged, budget: int) -> Selection:
        order = torch.argsort(tokens.position, stable=True)
        place = tokens.cell[:, 0] * tokens.grid[2] + tokens.cell[:, 1]
        order = order[torch.argsort(place[order], stable=True)]
        if self.rest == "similarity" and len(tokens) == place.unique().numel():
            place = torch.zeros_like(place)
        similar = _chained(x, place[order], order)
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
