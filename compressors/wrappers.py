"""Wrappers: how a budget is spent, around any method, chain or other wrapper.

`FrameBudget` shares it out over frames, `PerScene` over scenes, and `Protect` keeps frames out of
it. A wrapper is a compressor. `build("per-scene:scenes=4(protect:last=1(aim))")` makes one from a
spec, and `WRAPPERS` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens

from .shared.allocation import (
    allocate_capped,
    floors,
    frame_means,
    question,
    shares,
    uniform_shares,
)
from .shared.parts import Wrapper
from .shared.segments import share


@dataclass
class FrameBudget(Wrapper):
    """A budget shared out over frames; each frame is compressed to its share exactly.

    Attributes:
        by: "semvid" (relevance to the question and motion, see `allocation.shares`), "motion"
            (that part alone, without a question) or "uniform".
        weights: in place of `by`, one weight for every frame of the clip (T,); the budget is
            shared out in proportion, as far as frames have tokens.
        alpha: relevance against motion, with "semvid". least: tokens that every frame keeps at
            least, as far as the budget goes; 0 counts only with `weights`.
    """

    by: Literal["semvid", "motion", "uniform"] = field(
        default="semvid", metadata={"help": "semvid, motion or uniform"}
    )
    weights: Sequence[float] | Tensor | None = field(
        default=None, metadata={"help": "one weight a frame, in place of by"}
    )
    alpha: float = field(default=0.7, metadata={"help": "relevance against motion, 0 to 1"})
    least: int = field(default=1, metadata={"help": "tokens that every frame keeps"})

    name = "frame-budget"
    summary = "a budget shared out over frames, by the question, by motion or evenly"

    def __post_init__(self) -> None:
        if self.by not in ("semvid", "motion", "uniform"):
            raise InputError(
                f"frame-budget: by must be 'semvid', 'motion' or 'uniform', not {self.by!r}"
            )
        if self.weights is not None:
            self.weights = tuple(float(weight) for weight in self.weights)
            if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
                raise InputError(
                    "frame-budget: weights must be finite, not negative and not all zero"
                )
        if not 0.0 <= self.alpha <= 1.0 or self.least < 0:
            raise InputError(
                f"frame-budget: alpha must be from 0 to 1 and least not negative, not "
                f"{self.alpha} and {self.least}"
            )
        super().__post_init__()

    def _asks(self) -> bool:
        return self.by == "semvid" and self.weights is None

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One selection that meets the budget at once."""
        means, parts = frame_means(tokens)
        sizes = torch.tensor([len(part) for part in parts])
        if self.weights is not None:
            if len(self.weights) != tokens.grid[0]:
                raise InputError(
                    f"frame-budget: a clip of {tokens.grid[0]} frames needs as many weights, not "
                    f"{len(self.weights)}"
                )
            weight = torch.tensor(self.weights)[[int(tokens.frame[part[0]]) for part in parts]]
            goals = floors(sizes, budget, self.least)
            slack = sizes - goals
            goals = goals + allocate_capped(weight, budget - int(goals.sum()), slack)
        elif self.by == "uniform":
            goals = uniform_shares(sizes, budget)
        else:
            if self._asks() and query is None:
                raise InputError(f"{self.name} shares tokens out by the question: give it a query")
            asked = question(tokens, query) if self._asks() and query is not None else None
            goals = shares(means, asked, sizes, budget, alpha=self.alpha, minf=self.least)
        return self._compress(tokens, parts, goals.tolist(), query)


@dataclass
class Protect(Wrapper):
    """Frames that are never touched; the rest of the clip meets the budget exactly.

    The protected tokens count in the budget, and a budget that does not cover them is refused.

    Attributes:
        first, last: so many frames at the begin and at the end of those that have tokens.
        frames: further frames of the clip by number, negative ones from its end.
    """

    first: int = field(default=1, metadata={"help": "protected frames at the begin"})
    last: int = field(default=0, metadata={"help": "protected frames at the end"})
    frames: Sequence[int] = field(default=(), metadata={"help": "protected frames by number"})

    name = "protect"
    summary = "given frames stay whole, the rest meets the budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.frames = tuple(self.frames)
        if self.first < 0 or self.last < 0:
            raise InputError(
                f"protect: first and last cannot be negative, got {self.first} and {self.last}"
            )

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One selection that meets the budget at once."""
        count, there = tokens.grid[0], tokens.frame.unique()
        wrong = [frame for frame in self.frames if not -count <= frame < count]
        if wrong:
            raise InputError(f"protect: the clip of {count} frames has no frame {wrong[0]}")
        given = torch.tensor([frame % count for frame in self.frames], dtype=torch.long)
        end = there[len(there) - min(self.last, len(there)) :]
        safe = torch.isin(tokens.frame, torch.cat([there[: self.first], end, given]))
        kept = int(safe.sum())
        if budget < kept:
            raise InputError(
                f"protect: a budget of {budget} tokens does not cover the {kept} protected ones: "
                "raise keep or protect fewer frames"
            )
        parts = [torch.nonzero(safe).flatten(), torch.nonzero(~safe).flatten()]
        return self._compress(tokens, parts, [kept, budget - kept], query)


@dataclass
class PerScene(Wrapper):
    """Cut where neighbouring frames are least alike; each scene is compressed by itself.

    A scene's share of the budget is in proportion to its tokens and at least 1; a budget below
    the number of scenes makes fewer cuts.

    Attributes:
        scenes: their number (8 where there is no threshold), at most one a frame.
        threshold: instead, cut wherever the cosine of neighbouring frames' means is below it.
    """

    scenes: int | None = field(default=None, metadata={"help": "number of scenes, 8 if not given"})
    threshold: float | None = field(default=None, metadata={"help": "cosine below which to cut"})

    name = "per-scene"
    summary = "each scene is compressed by itself"
    alone = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scenes is not None and self.threshold is not None:
            raise InputError("per-scene: give either scenes or threshold")
        if self.scenes is not None and self.scenes < 1:
            raise InputError(f"per-scene: scenes must be at least 1, not {self.scenes}")

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One selection that meets the budget at once."""
        means, frames = frame_means(tokens)
        similar = torch.cosine_similarity(means[:-1], means[1:], dim=1).cpu()
        if self.threshold is None:
            cuts = (8 if self.scenes is None else self.scenes) - 1
        else:
            cuts = int((similar < self.threshold).sum())
        cuts = min(cuts, budget - 1)
        ends = (torch.argsort(similar, stable=True)[:cuts] + 1).sort().values.tolist()
        parts = [
            torch.cat(frames[start:end])
            for start, end in zip([0, *ends], [*ends, len(frames)], strict=True)
        ]
        goals = share(budget, [len(part) for part in parts])
        return self._compress(tokens, parts, goals, query)


WRAPPERS: dict[str, type[Wrapper]] = {cls.name: cls for cls in (FrameBudget, Protect, PerScene)}
