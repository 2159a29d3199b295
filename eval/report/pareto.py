"""The Pareto front: settings that no other one beats in cost and score at once."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The points on the front, cheapest first.

    A point is off the front if another costs no more and scores no less, and is better in one of
    the two. Equal points stay together. A point with a NaN is never on it.

    Args:
        costs: less is better. scores: more is better; one of each a point.
    """
    points = [
        (float(cost), float(score), k)
        for k, (cost, score) in enumerate(zip(costs, scores, strict=True))
        if not (math.isnan(cost) or math.isnan(score))
    ]
    points.sort(key=lambda p: (p[0], -p[1], p[2]))
    found: list[int] = []
    best, at = -math.inf, math.nan
    for cost, score, k in points:
        if score > best or (score == best and cost == at):
            found.append(k)
            best, at = score, cost
    return found
