"""MustDrop in the vision tower (arXiv 2411.10803): windows of similar patches merge.

Its other two stages, which drop tokens in the decoder and in the cache, have files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Merge, Selection, VideoTokens
from vidllm.tokens.tower_plan import TowerShape, TowerStep

from .base import InTower
from .registry import register
from .shared.in_tower import rounds
from .shared.kernels import step_of
from .shared.segments import equal_runs, merge_groups, present_frames, starts


def _likeness(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of distinct tokens in windows (..., k, C): of all pairs (...), and of each
    token to the others (..., k). Cosines have the floor 1e-8 of the authors' library. A float32
    `x` is overwritten.
    """
    rows = x.float()
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    least = norm.clamp(min=1e-8)
    unit = torch.div(rows, least, out=rows)
    own = (norm / least).square().squeeze(-1)
    each = (torch.linalg.vecdot(unit, unit.sum(dim=-2, keepdim=True)) - own) / (x.shape[-2] - 1)
    return each.mean(dim=-1), each


@register("mustdrop")
@dataclass
class MustDrop(InTower):
    """Merge windows of similar cells inside a frame, the most similar windows of the clip first.

    For an exact budget the last window merges only the members that are most like the others.
    When every window is one token the next round takes windows of windows, up to the frame,
    and then equal runs of frames. Windows at an edge, and those that lost tokens, are smaller.

    In a vision transformer it acts behind the first layer, and for a budget frames then merge as
    many windows as each other, so that they stay about equally long; else, and with `tower`
    false, on the tower's output. Attention of the CLS token that the tower tells for a key set is
    then the attention to merged windows.

    Attributes:
        window: side of a window in cells.
        threshold: mean cosine from which a window merges (the authors' 0.8), in place of keep.
        faithful: the authors' order inside a frame, merged windows from the most similar on
            and then the other tokens; and every frame merges as many windows as any other, so
            that the least redundant frame holds back the rest. By default tokens stand in
            raster order and each window counts for itself.
    """

    window: int = field(default=3, metadata={"help": "side of a window in cells"})
    threshold: float | None = field(
        default=None, metadata={"help": "cosine from which a window merges, in place of keep"}
    )
    faithful: bool = field(default=False, metadata={"help": "the authors' order of tokens"})

    #: The authors' attention counts a merged window as one token.
    proportional = False
    paper = "MustDrop, arXiv 2411.10803"
    summary = "windows of similar cells merge inside a frame"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise InputError(f"mustdrop: window must be at least 2, not {self.window}")
        if self.threshold is not None and (self.keep != 1.0 or self.budget is not None):
            raise InputError("mustdrop: give either threshold or keep/budget, not both")

    def is_free(self) -> bool:
        """True when neither a share nor the threshold decides the count."""
        return super().is_free() and self.threshold is None

    def fixed_budget(self, tokens: VideoTokens) -> int | None:
        """What is left when the windows at or above the threshold merge."""
        if self.threshold is None:
            return None
        windows = _Windows(tokens, self.window)
        merging = windows.alike >= self.threshold
        if self.faithful:
            frames, per_frame = torch.unique(windows.frame, return_inverse=True)
            least = torch.bincount(per_frame[merging], minlength=len(frames)).min()
            merging = windows.rank < least
        return len(tokens) - int((windows.count - 1)[merging & (windows.count > 1)].sum())

    def tower_budget(self, clip: VideoTokens) -> int | None:
        """None with a threshold, as what is alike shows behind the first layer only."""
        return None if self.threshold is not None else super().tower_budget(clip)

    def tower_steps(self, shape: TowerShape, budget: int | None) -> list[TowerStep]:
        """One step, behind the first layer (before it, where there is but one)."""
        threshold = self.threshold if budget is None else None
        like = self.faithful if threshold is not None else True
        method = replace(self, keep=1.0, budget=None, threshold=threshold, faithful=like)

        def plan(tokens: VideoTokens, goal: int) -> Merge:
            merged = method.plan(tokens, goal)
            return merged if self.faithful else merged.in_order(tokens.position)

        def decide(tokens: VideoTokens) -> list[Selection]:
            return rounds(plan, tokens, method.goal(tokens, budget))

        return [TowerStep(min(1, shape.layers - 1), "before", decide)]

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Merge:
        """One size of windows."""
        order, frames, _ = present_frames(tokens)
        if len(tokens) == frames.numel():
            group = torch.empty_like(order)
            group[order] = equal_runs(torch.arange(len(tokens)), len(tokens), budget)
            return merge_groups(tokens, group)
        side = self.window
        windows = _Windows(tokens, side)
        while int(windows.count.max()) < 2:
            side *= self.window
            windows = _Windows(tokens, side)
        return self._merge(tokens, windows, len(tokens) - budget)

    def _merge(self, tokens: VideoTokens, windows: _Windows, leaving: int) -> Merge:
        turn = windows.turn
        if self.faithful:  # the best window of every frame, then the second best, and so on
            turn = turn[torch.argsort(windows.rank[turn], stable=True)]
        left = leaving - (windows.count[turn] - 1).cumsum(0)
        whole = int((left >= 0).sum())
        merging = torch.zeros_like(windows.count, dtype=torch.bool)
        merging[turn[:whole]] = True
        inside = merging[windows.number]
        if whole < len(turn):
            part = leaving if whole == 0 else int(left[whole - 1])
            members = windows.members(int(turn[whole]))
            likest = torch.argsort(_tied(windows.each[members]), descending=True, stable=True)
            inside[members[likest[: part + 1]]] = part > 0
        group = torch.where(inside, len(tokens) + windows.number, torch.arange(len(tokens)))
        result = merge_groups(tokens, torch.unique(group, return_inverse=True)[1])
        if not self.faithful:
            return result
        order = torch.argsort(tokens.position, stable=True)
        rank = torch.where(inside, windows.rank[windows.number], len(tokens))
        for key in (rank, tokens.frame):
            order = order[torch.argsort(key[order], stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(tokens))
        return result.in_order(place)


def _tied(cosine: Tensor) -> Tensor:
    """Rounded, so that windows and tokens that are equally alike tie whatever their size."""
    return (cosine.double() * 1e6).round()


class _Windows:
    """The windows of a clip that have tokens, in time and raster order.

    Attributes:
        number: (L,) the window of every token. count, frame: (W,) tokens in it, and its frame.
        alike: (W,) mean cosine of its pairs; -inf for a single token. each: (L,) mean cosine of
            a token to the others of its window.
        turn: (W,) windows from the most alike on, of equal ones the earlier. rank: (W,) place
            in that order inside the window's frame.
    """

    def __init__(self, tokens: VideoTokens, side: int) -> None:
        cell = torch.div(tokens.cell, side, rounding_mode="floor")
        high, wide = (cell.max(dim=0).values + 2).tolist()  # a token without a cell stands at -1
        code = (tokens.frame * high + cell[:, 0] + 1) * wide + cell[:, 1] + 1
        windows, self.number, self.count = torch.unique(
            code, return_inverse=True, return_counts=True
        )
        self.frame = windows // (high * wide)
        order = torch.argsort(tokens.position, stable=True)
        self._order = order[torch.argsort(self.number[order], stable=True)]
        self._first = starts(self.count)
        self.alike = torch.full((len(windows),), -torch.inf)
        self.each = torch.full((len(tokens),), -torch.inf)
        x = tokens.features.detach()
        for size in self.count.unique().tolist():
            if size < 2:
                continue
            same = torch.nonzero(self.count == size).flatten()
            for which in same.split(max(1, step_of(x) // size)):
                index = self._order[self._first[which][:, None] + torch.arange(size)]
                rows = x.index_select(0, index.flatten().to(x.device))
                alike, each = _likeness(rows.view(*index.shape, -1))
                self.alike[which], self.each[index] = alike.cpu(), each.cpu()
        self.turn = torch.argsort(_tied(self.alike), descending=True, stable=True)
        by_frame = self.turn[torch.argsort(self.frame[self.turn], stable=True)]
        _, frames = torch.unique_consecutive(self.frame, return_counts=True)
        self.rank = torch.empty_like(by_frame)
        self.rank[by_frame] = torch.arange(len(windows)) - starts(frames).repeat_interleave(frames)

    def members(self, window: int) -> Tensor:
        """Its tokens in time order."""
        first = int(self._first[window])
        return self._order[first : first + int(self.count[window])]
