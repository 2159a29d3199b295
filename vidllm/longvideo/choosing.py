"""From what many windows say to one answer: candidates, a closer look, a vote.

Coarse to fine: the windows' spans are grouped; the frames around the best groups are put one
after the other into a new, short clip, denser than a window (`Cuts`), and the model answers on
it, so that it compares what no single window shows; several such clips vote together with the
windows. Scores are the IoU that the model expects (`scan.expected_iou`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Span = tuple[float, float]

#: (groups, margin in seconds) of the closer looks.
LOOKS: tuple[tuple[int, float], ...] = ((3, 15.0), (3, 25.0), (4, 15.0), (4, 25.0), (5, 25.0))
_SAME = 0.5  # IoU from which spans of windows are one candidate
_VOTE = 0.3  # IoU from which spans vote for the same


@dataclass(frozen=True)
class Vote:
    """A span in seconds of the video and its score."""

    span: Span
    score: float


@dataclass
class Group:
    """Spans that mean the same, the best first."""

    votes: list[Vote] = field(default_factory=list)

    @property
    def span(self) -> Span:
        """Of the best vote."""
        return self.votes[0].span

    @property
    def score(self) -> float:
        """Sum of squares: two windows that agree outweigh one, two weak ones do not."""
        return sum(vote.score**2 for vote in self.votes)


def tiou(one: Span, two: Span) -> float:
    """Temporal IoU over the hull; 0 for two equal points."""
    inter = min(one[1], two[1]) - max(one[0], two[0])
    return max(0.0, inter) / max(max(one[1], two[1]) - min(one[0], two[0]), 1e-9)


def grouped(votes: Sequence[Vote]) -> list[Group]:
    """Groups of spans, the best first."""
    groups: list[Group] = []
    for vote in sorted(votes, key=lambda v: -v.score):
        for group in groups:
            if tiou(group.span, vote.span) >= _SAME:
                group.votes.append(vote)
                break
        else:
            groups.append(Group([vote]))
    return sorted(groups, key=lambda g: -g.score)


def elected(votes: Sequence[Vote]) -> list[Vote]:
    """The spans that the votes stand for, the best first.

    A span wins with all votes that overlap it; it is their weighted median. Its score is theirs
    over that of all votes. What overlaps a winner is out.
    """
    left, found = list(votes), []
    whole = sum(vote.score for vote in votes) or 1.0
    while left:
        supporters = [
            [other for other in left if tiou(vote.span, other.span) >= _VOTE or other is vote]
            for vote in left
        ]
        best = max(supporters, key=lambda group: sum(v.score for v in group))
        weight = np.asarray([max(v.score, 1e-9) for v in best])
        span = tuple(_median(np.asarray([v.span[i] for v in best]), weight) for i in (0, 1))
        found.append(Vote((span[0], span[1]), float(weight.sum() / whole)))
        left = [
            v for v in left if all(v is not b for b in best) and tiou(v.span, found[-1].span) <= 0
        ]
    return found


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    summed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(summed, summed[-1] / 2)])
