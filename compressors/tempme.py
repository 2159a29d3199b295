"""TempMe (arXiv 2409.01156): merge inside frames, then join neighbouring clips and merge across."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Selection, VideoTokens
from vidllm.tokens.tower_plan import TowerShape, TowerStep

from .base import InTower
from .registry import register
from .shared.in_tower import even, rounds
from .shared.segments import Merged, equal_runs, share
from .tome import Metric, bare, compose, matching_metric, one_round, rows_of


@register("tempme")
@dataclass
class Tempme(InTower):
    """Merge inside frames, then join M neighbouring clips again and again and merge across them.

    The count falls geometrically to the budget: `inside` of the shrinkage (of its logarithm)
    happens inside single frames, the rest in equal parts at the joins; with the defaults that is
    close to the authors' counts for ViT-B/32, which are tied to its layers. What a join removes
    is shared out as their proportions 0.3 across clips and 0.1 inside the joined row are. Across
    clips the features are compared, inside them the tower's keys where the model gives them
    ("vision-keys"), else the features as well. A row is at most halved in one round.

    Any number of frames will do: rows are joined in runs whose lengths differ by at most one
    (the authors need the product of `joins`). After the last join the rows stay apart, 12 frames
    each by default, so that the cost is linear in the frames; a budget below their number goes
    on joining two by two.

    In a vision transformer it acts inside: frames lose equally many tokens between attention and
    MLP of the first two thirds of the layers; then frames are joined before a layer, their tokens
    merge across by features and attend to each other, and merge inside the row by that layer's
    keys; the joins stand at layers 8, 9 and 10 of 12. Else, and with `tower` false, it acts on
    the tower's output.

    Attributes:
        joins: clips joined at every level, as the authors' option writes it.
        inside: share of the shrinkage that happens inside single frames, in [0, 1].
        across: share of what a join removes that merges across its clips, in [0, 1]; the rest
            merges inside the joined row. 1 and 0 are the authors' ablations: cross-clip merging
            alone, and intra-clip merging alone.
        faithful: the authors' order inside a row: sources that stayed, then destinations, for
            the next round as well. By default tokens stand in time and raster order (the defect:
            a row's tokens run neither with time nor with the picture).
    """

    joins: str = field(default="2-2-3", metadata={"help": "clips joined at every level"})
    inside: float = field(default=0.2, metadata={"help": "share of shrinkage inside frames"})
    across: float = field(
        default=30 / 37, metadata={"help": "share of a join's merges that are across clips"}
    )
    faithful: bool = field(default=False, metadata={"help": "the authors' order of tokens"})

    uses = ("vision-keys",)
    paper = "TempMe, arXiv 2409.01156"
    summary = "tokens merge inside frames, then across joined clips"

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = str(self.joins).split("-")
        if not all(part.isdecimal() and int(part) >= 2 for part in parts):
            raise InputError(
                f"tempme: joins must be numbers of at least 2, as 2-2-3, not {self.joins!r}"
            )
        for name in ("inside", "across"):
            share_of = getattr(self, name)
            if not 0.0 <= share_of <= 1.0:
                raise InputError(f"tempme: {name} must be in [0, 1], not {share_of:g}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """All rounds in one merge that meets the budget."""
        frames = tokens.frame.unique()
        levels = self._levels(frames.numel(), budget)
        every = torch.arange(len(tokens))
        whole = Merge(every, every, "size")
        now = bare(tokens)
        features = tokens.features.detach()
        keys = "vision-keys" in tokens.signals
        for level, row in enumerate(levels):
            goal = self._goal(len(tokens), budget, level, len(levels) - 1)
            goal = min(len(now), max(goal, int(row.max()) + 1))
            across = self._across(len(now) - goal) if level else 0
            for target, by_features in ((len(now) - across, True), (goal, False)):
                goals: list[int] | None = None
                while len(now) > target:
                    metric: Metric = Merged(features, whole, tokens.size)
                    if keys and not by_features:
                        metric = matching_metric(now)
                    rows = rows_of(row[torch.searchsorted(frames, now.frame)])
                    if goals is None:
                        goals = share(target, [part.numel() for part in rows])
                    merged, _ = one_round(metric, rows, goals, ascending=True)
                    merged = merged if self.faithful else merged.in_order(now.position)
                    now, whole = now.apply(merged), compose(whole, merged)
        return whole

    def tower_steps(self, shape: TowerShape, budget: int | None) -> list[TowerStep]:
        """Merges inside frames at early layers, joins and merges across them at late ones."""
        clips, layers = shape.clips, shape.layers
        frames = shape.frames // clips
        whole = frames * shape.tokens
        budget = frames if budget is None else budget // clips
        levels = self._levels(frames, budget)
        last = len(levels) - 1
        joins = [int(layers * (8 + 3 * join / last) / 12) for join in range(last)]
        steps: list[TowerStep] = []
        now = whole
        for level, (row, first, stop) in enumerate(
            zip(levels, [0, *joins], [*joins, layers], strict=True)
        ):
            goal = min(now, self._goal(whole, budget, level, last))
            if level == 0 < last:  # frames of one length, without padding
                goal = -(-goal // frames) * frames
            rows = _of_every_clip(row, clips)
            if level:
                across = self._across(now - goal)
                if stop == first and self.across:  # it has no layer of its own to merge in
                    across = now - goal
                now -= across
                decide = self._inside(rows, clips, shape.special, now, by_features=True)
                steps.append(TowerStep(first, "before", decide, rows))
            unit = 1 if level else frames
            for layer, count in enumerate(even(now, goal, stop - first, unit), first):
                decide = self._inside(rows, clips, shape.special, count, by_features=False)
                steps.append(TowerStep(layer, "attention", decide))
                now = count
        return steps

    def _inside(
        self, row: Tensor, clips: int, special: int, goal: int, *, by_features: bool
    ) -> Callable[[VideoTokens], list[Selection]]:
        """What merges inside rows until `goal` tokens are left of each of so many clips."""
        front = (torch.bincount(row) * special).tolist()
        one = len(front) // clips

        def plan(tokens: VideoTokens, budget: int) -> Selection:
            rows = rows_of(row[tokens.frame])
            goals = share(budget // clips, [part.numel() for part in rows[:one]]) * clips
            metric = tokens.features.detach() if by_features else matching_metric(tokens)
            merged, _ = one_round(metric, rows, goals, ascending=True, front=front)
            return merged if self.faithful else merged.in_order(tokens.position)

        return partial(rounds, plan, goal=goal * clips)

    def _across(self, removed: int) -> int:
        """How many of the tokens that a join removes merge across its clips."""
        # By default as the authors' proportions: 0.3 of the tokens, then 0.1 of what is left.
        return round(removed * self.across)

    def _goal(self, total: int, budget: int, level: int, last: int) -> int:
        """Tokens that a level leaves, `last` being the number of joins."""
        if level == last:
            return budget
        done = self.inside + (1.0 - self.inside) * level / last
        return max(budget, round(total * float((budget / total) ** done)))

    def _levels(self, frames: int, budget: int) -> list[Tensor]:
        """For every level the row (F,) that each frame belongs to."""
        row, rows = torch.arange(frames), frames
        levels = [row]
        joins = [int(part) for part in self.joins.split("-")]
        while rows > 1 and (joins or rows > budget):
            parts = -(-rows // (joins.pop(0) if joins else 2))
            row, rows = equal_runs(row, rows, parts), parts
            levels.append(row)
        return levels


def _of_every_clip(row: Tensor, clips: int) -> Tensor:
    """Rows of the frames of one clip → of so many clips behind each other."""
    return (row + torch.arange(clips)[:, None] * (int(row.max()) + 1)).flatten()
