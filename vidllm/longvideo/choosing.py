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
    return float(tious(np.asarray([one]), np.asarray([two]))[0, 0])


def tious(ones: np.ndarray, twos: np.ndarray) -> np.ndarray:
    """(n, m) temporal IoUs of (n, 2) and (m, 2) spans, as `tiou`."""
    low, high = np.maximum, np.minimum
    inter = high(ones[:, None, 1], twos[None, :, 1]) - low(ones[:, None, 0], twos[None, :, 0])
    hull = low(ones[:, None, 1], twos[None, :, 1]) - high(ones[:, None, 0], twos[None, :, 0])
    return np.maximum(0.0, inter) / np.maximum(hull, 1e-9)


def grouped(votes: Sequence[Vote]) -> list[Group]:
    """Groups of spans, the best first."""
    groups: list[Group] = []
    spans = np.zeros((len(votes), 2))  # of the groups so far
    for vote in sorted(votes, key=lambda v: -v.score):
        same = tious(np.asarray([vote.span]), spans[: len(groups)])[0] >= _SAME
        if same.any():
            groups[int(same.argmax())].votes.append(vote)
        else:
            spans[len(groups)] = vote.span
            groups.append(Group([vote]))
    return sorted(groups, key=lambda g: -g.score)


def elected(votes: Sequence[Vote]) -> list[Vote]:
    """The spans that the votes stand for, the best first.

    A span wins with all votes that overlap it; it is their weighted median. Its score is theirs
    over that of all votes. What overlaps a winner is out.
    """
    spans = np.asarray([vote.span for vote in votes], np.float64).reshape(-1, 2)
    score = np.asarray([vote.score for vote in votes], np.float64)
    whole = float(score.sum()) or 1.0
    found = [won for part in _apart(spans) for won in _elected(spans[part], score[part], part)]
    found.sort(key=lambda won: (-won[1], won[2]))
    return [Vote(span, weight / whole) for span, weight, _ in found]


def _apart(spans: np.ndarray) -> list[np.ndarray]:
    """Indices of the spans, ascending, in parts between which nothing overlaps."""
    if not len(spans):
        return []
    order = np.argsort(spans[:, 0], kind="stable")
    reached = np.maximum.accumulate(spans[order, 1])
    cuts = np.flatnonzero(spans[order[1:], 0] > reached[:-1]) + 1
    return [np.sort(part) for part in np.split(order, cuts)]


def _elected(
    spans: np.ndarray, score: np.ndarray, number: np.ndarray
) -> list[tuple[Span, float, int]]:
    """Winners among some votes: span, summed score, and whose vote brought the support."""
    found: list[tuple[Span, float, int]] = []
    weight = np.maximum(score, 1e-9)
    support = tious(spans, spans) >= _VOTE
    np.fill_diagonal(support, True)
    left = np.ones(len(spans), bool)
    while left.any():
        best = int(np.where(left, support @ (score * left), -np.inf).argmax())
        mine = support[best] & left
        span = _middle(spans[mine], weight[mine])
        found.append((span, float(weight[mine].sum()), int(number[best])))
        left &= ~mine & (tious(spans, np.asarray([span]))[:, 0] <= 0)
    return found


def middle(votes: Sequence[Vote]) -> Span:
    """The weighted median of the starts and of the ends of votes, at least one."""
    weight = np.asarray([max(vote.score, 1e-9) for vote in votes])
    return _middle(np.asarray([vote.span for vote in votes]), weight)


def _middle(spans: np.ndarray, weight: np.ndarray) -> Span:
    return _median(spans[:, 0], weight), _median(spans[:, 1], weight)


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    summed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(summed, summed[-1] / 2)])
