"""Sentences and seconds: which seconds lie in a sentence's window, and the metric R@1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from vidllm.errors import InputError


class Recall(NamedTuple):
    """Sentences placed right, of all that can be placed."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """hits / total; NaN where there is nothing to place."""
        return self.hits / self.total if self.total else math.nan


def recall_at_1(
    predicted: Sequence[float | None],
    windows: Sequence[Sequence[tuple[float, float]]],
    *,
    outward: bool = False,
) -> Recall:
    """R@1: how many sentences have their one predicted second inside a true window.

    Args:
        predicted: one second a sentence; None or NaN is a miss and stays in the total.
        windows: the true (start, end) of every sentence, both ends inside; a sentence without
            one, or with NaN alone, cannot be aligned and is not counted.
        outward: starts are rounded down and ends up to whole seconds first, as CrossTask does.

    Raises:
        InputError: not as many predictions as sentences, or a window that ends before it starts.
    """
    if len(predicted) != len(windows):
        raise InputError(f"{len(windows)} sentences need as many seconds, not {len(predicted)}")
    hits = total = 0
    for second, given in zip(predicted, windows, strict=True):
        true = [(a, b) for a, b in given if not (math.isnan(a) or math.isnan(b))]
        if any(a > b for a, b in true):
            raise InputError(f"a window must not end before it starts: {true}")
        if true:
            total += 1
            ends = [(math.floor(a), math.ceil(b)) if outward else (a, b) for a, b in true]
            hits += second is not None and any(a <= second <= b for a, b in ends)
    return Recall(hits, total)


def mean_recall(recalls: Iterable[Recall]) -> float:
    """The plain mean over tasks that have something to place, as CrossTask reports it."""
    values = [recall.value for recall in recalls if recall.total]
    return sum(values) / len(values) if values else math.nan


def inside(seconds: Tensor, windows: Tensor) -> Tensor:
    """(B, S, T) bool: which of the seconds (B, T) lie in the windows (B, S, 2), ends included.

    A window of NaN holds none: the sentence cannot be aligned.
    """
    at = seconds[:, None]
    return (at >= windows[..., :1]) & (at <= windows[..., 1:])
