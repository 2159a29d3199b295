"""Frames chosen by the question, second by second, as NaSVA (arXiv 2312.14055) aligns sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vidllm.errors import InputError, WorkError
from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .registry import register
from .shared.allocation import FLOOR, question
from .shared.kernels import mean
from .shared.segments import present_frames, unit


@runtime_checkable
class SecondScorer(Protocol):
    """What tells how well seconds fit a query, such as `vidllm.encoders.heads.NaSVA`."""

    def relevance(self, video: Tensor, seconds: Tensor, query: Tensor) -> Tensor:
        """(T,) scores of features (T, D) at seconds (T,) for a query (Dt,)."""
        ...


@runtime_checkable
class WordScorer(SecondScorer, Protocol):
    """A scorer that reads the question word by word, and tokens in its own way."""

    def of_tokens(self, features: Tensor) -> Tensor:
        """Features (L, D) of tokens as they are to be averaged over a second, (L, D)."""
        ...


@register("nasva")
@dataclass
class Nasva(Compressor):
    """Keep the frames of the seconds that fit the question best, and drop the others.

    Neighbouring frames that cover a second together share one feature, the mean of their tokens,
    as the paper has one feature a second; frames further apart stand alone. The question is one
    sentence, the mean of its rows. A second's relevance comes from `head`; without one it is the
    cosine of the two. Whole frames are taken, the most relevant second first and in time order
    inside it; the last one taken is kept in part, evenly over its tokens, so that the count is
    exact.

    Attributes:
        every: seconds that share a feature, 1 in the paper.
        head: a trained `vidllm.encoders.heads.NaSVA` for features of this width, from Python, or a
            `WordScorer`, which gets all rows of the question and not their mean.
    """

    every: float = field(default=1.0, metadata={"help": "seconds that share a feature"})
    head: SecondScorer | None = field(
        default=None, compare=False, repr=False, metadata={"help": "a trained head, from Python"}
    )

    query_aware = True
    paper = "NaSVA, arXiv 2312.14055"
    summary = "whole frames stay, of the seconds that fit the question best"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.every < math.inf:
            raise InputError(f"nasva: every must be a finite time above 0 s, not {self.every:g}")
        if not isinstance(self.head, SecondScorer | None):
            raise InputError(
                "nasva: head is a module with a method `relevance`: load it with "
                "vidllm.encoders.heads.load_head"
            )

    def relevance(self, tokens: VideoTokens, query: Tensor) -> tuple[Tensor, Tensor]:
        """(S,) scores of the seconds that have tokens, and (L,) the second of every token.

        A frame's time is the middle of what its tokens cover.

        Raises:
            InputError: a query that does not fit.
            WorkError: a head that does not give one finite number a second.
        """
        order, frames, counts = present_frames(tokens)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(frames)).repeat_interleave(counts)
        ends = tokens.span.new_full((2, len(frames)), torch.inf)
        ends.scatter_reduce_(1, rank.expand(2, -1), tokens.span.T * _SIGNS, "amin")
        middle = (ends * _SIGNS).mean(0)
        second = _groups((ends * _SIGNS).T.tolist(), self.every)
        frames_of = torch.bincount(second)
        of_token = second[rank]
        x = tokens.features.detach()
        if isinstance(self.head, WordScorer):
            x = self.head.of_tokens(x)
        size = torch.bincount(of_token)
        parts = of_token.argsort(stable=True).split(size.tolist())
        means = torch.stack([mean(x, part) for part in parts])
        if self.head is None:
            asked = question(tokens, query).reshape(-1, x.shape[1]).mean(0)
            score = (unit(means, FLOOR) * unit(asked, FLOOR)).sum(1)  # equal rows tie exactly
        else:
            times = middle.new_zeros(len(means)).index_add_(0, second, middle) / frames_of
            if isinstance(self.head, nn.Module):
                self.head.to(x.device)
            if query.dim() != 2 or len(query) == 0:
                raise InputError(f"nasva: the query must be (Q, D) rows, not {tuple(query.shape)}")
            asked = query.detach().to(x.device).float()
            if not isinstance(self.head, WordScorer):
                asked = asked.mean(0)
            score = self.head.relevance(means, times, asked)
        if score.shape != (len(means),) or not bool(score.isfinite().all()):
            raise WorkError(f"nasva: a head must give {len(means)} finite numbers")
        return score.detach().float().cpu(), of_token

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """One keep list that meets the budget at once; of equal seconds the earlier one stays."""
        if query is None:
            raise InputError("nasva chooses frames by the question: give it a query")
        score, second = self.relevance(tokens, query)
        order, _, counts = present_frames(tokens)
        left, index = budget, []
        parts = order.split(counts.tolist())
        per_frame = score[torch.stack([second[part[0]] for part in parts])]
        for frame in per_frame.argsort(descending=True, stable=True).tolist():
            size = len(parts[frame])
            take = min(size, left)
            index.append(parts[frame][(2 * torch.arange(take) + 1) * size // (2 * max(take, 1))])
            left -= take
        return Keep(torch.cat(index).sort().values)


#: Turns (start, end) into what a minimum finds, and back.
_SIGNS = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def _groups(ends: list[list[float]], every: float) -> Tensor:
    """The group of every frame, of frames that cover (start, end): as long as `every` allows.

    A hundredth more is allowed, for the times of containers are not exact.
    """
    group, number, begin = [], -1, -math.inf
    for start, end in ends:
        if end - begin > 1.01 * every:
            number, begin = number + 1, start
        group.append(number)
    return torch.tensor(group)
