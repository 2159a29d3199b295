"""ToMe (arXiv 2210.09461): bipartite merging by keys, size weighted.

`Tome` is the method on `VideoTokens`, and `one_round` what the methods built on it share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor

from vidllm.tokens import Merge, Selection, VideoTokens
from vidllm.tokens.matching import match
from vidllm.tokens.tower_plan import TowerShape, TowerStep
from vidllm.tokens.video_tokens import take

from .base import InTower
from .registry import register
from .shared.in_tower import falling, rounds
from .shared.kernels import batches
from .shared.segments import Merged, equal_runs, halve_frames, merge_groups, present_frames, share


def rows_of(label: Tensor) -> list[Tensor]:
    """The tokens of every label (L,), in their present order; labels ascend."""
    order = torch.argsort(label, stable=True)
    _, counts = torch.unique_consecutive(label[order], return_counts=True)
    return list(order.split(counts.tolist()))


def compose(first: Merge, second: Merge) -> Merge:
    """One merge by size that does what two do, one after the other."""
    target = torch.where(first.target < 0, -1, second.target[first.target.clamp(min=0)])
    return Merge(target, first.representative[second.representative], "size")


def bare(tokens: VideoTokens) -> VideoTokens:
    """The tokens without features and signals, but the keys: enough to plan by these."""
    keys = {name: tokens.signals[name] for name in ("vision-keys",) if name in tokens.signals}
    return replace(tokens, features=tokens.features[:, :0], signals=keys)


def matching_metric(tokens: VideoTokens) -> Tensor:
    """The keys of the vision tower where the model gives them, else the features: (L, D)."""
    keys = tokens.signals.get("vision-keys")
    return (tokens.features if keys is None else keys).detach()


Metric = Tensor | Merged


def one_round(
    metric: Metric,
    rows: Sequence[Tensor],
    goals: Sequence[int],
    *,
    ascending: bool = False,
    front: Sequence[int] | None = None,
) -> tuple[Merge, list[tuple[Tensor, Tensor]]]:
    """Merge inside rows of tokens towards `goals` tokens a row, each at most halving its row.

    Args:
        metric: (L, D) what is compared. rows: the tokens of every row, without gaps in all.
        goals: tokens that shall remain of every row, at least 1.
        ascending: sources that stay keep their order (TempMe) and do not stand by score (ToMe).
        front: for every row the tokens that stand before it in a tower and never merge (CLS):
            behind an odd number of them the authors' sources are the odd tokens.

    Returns:
        The size-weighted merge, rows one after the other and each in the authors' order, and
        the pairs, (F, r) sources and destinations for rows that are alike, a few at a time.
    """
    count = sum(row.numel() for row in rows)
    alike: dict[tuple[int, int, int], list[int]] = {}
    for i, row in enumerate(rows):
        size, odd = row.numel(), 0 if front is None else front[i] % 2
        alike.setdefault((size, min(size // 2, size - goals[i]), odd), []).append(i)
    joins, stays, found = torch.arange(count), list(rows), []
    for (size, r, odd), which in alike.items():
        if r == 0:
            continue
        sources, sinks = torch.arange(odd, size, 2), torch.arange(1 - odd, size, 2)
        for few in batches(which, size * metric.shape[1], metric.device.type == "cuda"):
            index = torch.stack([rows[i] for i in few])
            if isinstance(metric, Merged):
                pairs = match(partial(_made, metric, index), r, sources, sinks)
            else:
                together = take(metric, index.flatten()).view(*index.shape, -1)
                pairs = match(together, r, sources, sinks)
            kept, merged, into = (part.cpu() for part in pairs)
            kept = kept.sort(dim=1).values if ascending else kept
            left = index.gather(1, torch.cat([kept, sinks.expand(len(few), -1)], dim=1))
            for row, i in zip(left, few, strict=True):
                stays[i] = row
            merged, into = index.gather(1, merged), index.gather(1, into)
            joins[merged] = into
            found.append((merged, into))
    representative = torch.cat(stays)
    slot = torch.empty_like(joins)
    slot[representative] = torch.arange(representative.numel())
    return Merge(slot[joins], representative, "size"), found


def _made(metric: Merged, index: Tensor, some: Tensor) -> Tensor:
    """(F, M, D) merged rows, the places `some` (M,) of every row of tokens (F, N)."""
    return metric.rows(index[:, some.cpu()].flatten()).view(len(index), len(some), -1)


def neighbours(tokens: VideoTokens, budget: int) -> Merge:
    """`budget` equal runs of neighbouring tokens in time: for one token a frame, and too many."""
    order = torch.argsort(tokens.frame, stable=True)
    group = torch.empty_like(order)
    group[order] = equal_runs(torch.arange(len(tokens)), len(tokens), budget)
    merged = merge_groups(tokens, group)
    return Merge(merged.target, merged.representative, "size")


@register("tome")
@dataclass
class Tome(InTower):
    """Merge similar tokens of a frame in rounds, each at most halving it, by size (ToMe).

    Tokens are compared by the vision tower's keys where the model gives them ("vision-keys"),
    else by their features. ToMe takes a fixed number at every layer; here every frame gets its
    share of the budget (the first ones one more) and a round takes min(N // 2, N - share) of
    its tokens. A budget below the number of frames first merges every frame to one token and
    then the frames' tokens in `budget` equal runs of neighbours.

    In a vision transformer it acts between the attention and the MLP of every layer, by that
    layer's keys, and equally many tokens leave at each (see `in_tower.falling`); else, and with
    `tower` false, on the tower's output.

    Attributes:
        faithful: the authors' order inside a frame: sources that stayed by falling score, then
            destinations. By default tokens stand in time and raster order, in the next round too
            (the defect: without a CLS token the order of the picture is lost).
    """

    faithful: bool = field(default=False, metadata={"help": "the authors' order of tokens"})

    uses = ("vision-keys",)
    paper = "ToMe, arXiv 2210.09461"
    summary = "similar tokens of a frame merge by their keys, weighed by size"

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """As `Compressor.run`, with features merged once where keys decide, else by frames."""
        goal, frames = self.goal(tokens, budget), len(present_frames(tokens)[1])
        if len(tokens) <= max(goal, frames):
            return super().run(tokens, budget, query)
        self.check(tokens)
        if "vision-keys" not in tokens.signals:
            merged, rounds = halve_frames(tokens, max(goal, frames), self._halve)
            after, more = super().run(merged, goal, query)
            return after, rounds + more
        _, rounds = super().run(bare(tokens), goal, query)
        return tokens.apply(reduce(compose, cast("list[Merge]", rounds))), rounds

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One round over all frames."""
        return self._round(tokens, budget)

    def _halve(self, x: Tensor, left: int, position: Tensor) -> Merge:
        merged, _ = one_round(x, [torch.arange(len(x))], [left])
        return merged if self.faithful else merged.in_order(position)

    def tower_steps(self, shape: TowerShape, budget: int | None) -> list[TowerStep]:
        """One merge at every layer."""
        counts = falling(shape, shape.frames if budget is None else budget, shape.layers)
        plan = partial(self._round, front=shape.special)
        return [
            TowerStep(layer, "attention", partial(rounds, plan, goal=count))
            for layer, count in enumerate(counts)
        ]

    def _round(self, tokens: VideoTokens, budget: int, front: int = 0) -> Selection:
        _, frames, counts = present_frames(tokens)
        if len(tokens) == frames.numel():
            return neighbours(tokens, budget)
        goals = share(max(budget, frames.numel()), counts.tolist())
        merged, _ = one_round(
            matching_metric(tokens),
            rows_of(tokens.frame),
            goals,
            ascending=front > 0,
            front=[front] * len(goals),
        )
        return merged if self.faithful else merged.in_order(tokens.position)
