"""QVHighlights moment retrieval: R1 of the best window, mAP over IoU 0.5 to 0.95, by length.

Source: Lei et al., NeurIPS 2021 (arXiv 2107.09609); average precision interpolated as in PASCAL
VOC 2010 and later (Everingham et al., IJCV 2010).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vidllm.errors import InputError

from .common import Scores, average, same_length, true_span
from .spans import tiou_matrix

#: A predicted window: (start, end, score) in seconds, or (start, end) in order of confidence.
Window = Sequence[float]

IOUS: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: Lengths of true windows in seconds, the lower end outside.
LENGTHS: Mapping[str, tuple[float, float]] = {
    "short": (0.0, 10.0),
    "middle": (10.0, 30.0),
    "long": (30.0, math.inf),
}
MOST = 10


def ranked(windows: Sequence[Window] | None, *, official: bool = False) -> list[Window]:
    """At most ten windows, best score first; equal scores, or windows without one, as written.

    Args:
        official: the first ten as written are ranked, as the authors' script does, so that an
            unsorted list loses its best windows.
    """
    found = list(windows or ())
    if official:
        found = found[:MOST]
    if all(len(window) > 2 for window in found):
        found.sort(key=lambda w: -math.inf if math.isnan(w[2]) else w[2], reverse=True)
    return found[:MOST]


def average_precision(
    windows: Sequence[Window],
    truth: Sequence[Sequence[float]],
    thresholds: Sequence[float] = IOUS,
) -> np.ndarray:
    """Interpolated average precision of ranked windows at each IoU, (len(thresholds),).

    In order of rank a window takes the free true window that it overlaps most, if their IoU
    reaches the threshold; otherwise it is false.

    Raises:
        InputError: no true window.
    """
    if not len(truth):
        raise InputError("a query without a true window has no average precision")
    if not len(windows):
        return np.zeros(len(thresholds))
    overlap = tiou_matrix(windows, truth)
    return np.asarray([_interpolated(_hits(overlap, m), len(truth)) for m in thresholds])


def _hits(overlap: np.ndarray, threshold: float) -> np.ndarray:
    free, hits = np.ones(overlap.shape[1], dtype=bool), np.zeros(len(overlap), dtype=bool)
    for rank, row in enumerate(overlap):
        reach = np.where(free & (row >= threshold), row, -1.0)
        taken = int(reach.argmax())
        if reach[taken] >= 0:
            hits[rank], free[taken] = True, False
    return hits


def _interpolated(hits: np.ndarray, positives: int) -> float:
    """Area under the falling precision: each hit at the best precision from it on."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / positives)


def moment_scores(
    predicted: Sequence[Sequence[Window] | None],
    truth: Sequence[Sequence[Sequence[float]]],
    *,
    official: bool = False,
) -> Scores:
    """R1@.5, R1@.7, mIoU, mAP, mAP@.5, mAP@.75; the same of short, middle and long windows.

    R1 takes the top window and the true window that it overlaps most. mAP is the mean over IoU
    .5:.05:.95 of the average precision of a query, then the mean over queries. A length counts
    the queries that have a true window of that length (≤ 10 s, ≤ 30 s, longer) and only these
    windows, so a window that finds one of another length is false there; the authors do so too.

    Args:
        predicted: windows of each query, None or empty for none: counts 0 and stays.
        truth: the true windows of each query.
        official: as the authors' script: the first window as written is the top one, the first
            ten as written are ranked, and windows longer than 150 s are in no length.

    Raises:
        InputError: not one list of windows a query, or a query without a true window.
    """
    same_length(predictions=predicted, truths=truth)
    spans = [[true_span(span) for span in windows] for windows in truth]
    if empty := [k for k, windows in enumerate(spans) if not windows]:
        raise InputError(f"query {empty[0]} has no true window: leave it out or mend the file")
    scores = _scores(predicted, spans, official)
    for name, (low, high) in LENGTHS.items():
        top = min(high, 150.0) if official else high
        kept = [[s for s in windows if low < s[1] - s[0] <= top] for windows in spans]
        some = [k for k, windows in enumerate(kept) if windows]
        part = _scores([predicted[k] for k in some], [kept[k] for k in some], official)
        scores.update({f"{key}_{name}": value for key, value in part.items()})
    scores["parse_failures"] = average([not windows for windows in predicted])
    return scores


def _scores(
    predicted: Sequence[Sequence[Window] | None],
    truth: Sequence[Sequence[Sequence[float]]],
    official: bool,
) -> Scores:
    first, precisions = [], []
    for windows, true in zip(predicted, truth, strict=True):
        order = ranked(windows, official=official)
        top = list(windows or ())[:1] if official else order[:1]
        first.append(float(tiou_matrix(top, true).max(initial=0.0)))
        precisions.append(average_precision(order, true))
    table = np.asarray(precisions).reshape(-1, len(IOUS))
    return {
        "R1@0.5": average(np.asarray(first) >= 0.5),
        "R1@0.7": average(np.asarray(first) >= 0.7),
        "mIoU": average(first),
        "mAP": average(table.mean(axis=1)),
        "mAP@0.5": average(table[:, IOUS.index(0.5)]),
        "mAP@0.75": average(table[:, IOUS.index(0.75)]),
    }
