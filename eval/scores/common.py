"""What all scores share: the mean of nothing, checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidllm.errors import InputError

#: Start and end in seconds.
Interval = tuple[float, float]
#: By name of the score; None where there was nothing to score.
Scores = dict[str, "float | None"]


def average(values: Sequence[float] | np.ndarray) -> float | None:
    """The mean, not rounded; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def same_length(**lists: Sequence[Any] | np.ndarray) -> int:
    """The common length of what belongs together.

    Raises:
        InputError: the lengths differ.
    """
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise InputError(f"one of each is needed for every item: got {counts}")
    return next(iter(lengths.values()))


def true_span(span: Sequence[float]) -> Interval:
    """A span of an annotation, checked; a wrong one is an error of the file, not of the model.

    Raises:
        InputError: not finite, or it ends before it starts.
    """
    start, end = float(span[0]), float(span[1])
    if not (math.isfinite(start) and math.isfinite(end)) or end < start:
        raise InputError(f"a true span needs finite seconds, start before end, not {[start, end]}")
    return start, end
