"""TVSum: top-5 mAP of highlights, and rank correlations of frame scores.

Sources: Song et al., CVPR 2015; the top-5 protocol of UMT (arXiv 2203.12745) and UniVTG (arXiv
2307.16715); rank correlations after Otani et al., CVPR 2019 (arXiv 1903.11328).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .common import Scores, average, same_length


def top_precision(
    labels: Sequence[float] | np.ndarray, *, top: int = 5, positives: int | None = None
) -> float:
    """Trapezoid average precision of the first `top` ranked 0/1 labels.

    Args:
        positives: what recall is measured by; by default the positives among the first `top`.
    """
    ranks = np.asarray(labels, dtype=np.float64)[:top]
    count = ranks.sum() if positives is None else positives
    if not count or not len(ranks):
        return 0.0
    precision = np.cumsum(ranks) / np.arange(1, len(ranks) + 1)
    before = np.concatenate([[1.0], precision[:-1]])
    return float((ranks * (before + precision) / 2).sum() / count)


def tvsum_map(
    predicted: Sequence[Sequence[float] | np.ndarray | None],
    ratings: Sequence[np.ndarray],
    *,
    top: int = 5,
    official: bool = False,
) -> list[float]:
    """Top-5 AP of each video of TVSum, the mean over its annotators; mAP is the mean of these.

    For one annotator the highlights are the clips rated above that annotator's median; 0 if none.
    Clips of equal score stay in time order.

    Args:
        predicted: one score a clip for each video, None for no answer: 0.
        ratings: (clips, annotators) of each video.
        official: as the scripts of UMT and UniVTG, which divide by the highlights within the top
            five, so that one highlight at rank 1 is a perfect score. By default recall is
            measured by the highlights that five clips could hold.

    Raises:
        InputError: not one prediction a video, or not one score a clip.
    """
    same_length(predictions=predicted, ratings=ratings)
    found = []
    for values, table in zip(predicted, ratings, strict=True):
        if values is None:
            found.append(0.0)
            continue
        same_length(scores=values, ratings=table)
        order = np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")
        precisions = []
        for column in np.asarray(table, dtype=np.float64).T:
            labels = column > np.median(column)
            most = None if official else min(top, int(labels.sum()))
            precisions.append(top_precision(labels[order], top=top, positives=most))
        found.append(float(np.mean(precisions)))
    return found


def kendall_tau(one: Sequence[float] | np.ndarray, two: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b, which allows for ties; NaN where either is constant. O(n²) time.

    Raises:
        InputError: lists of unequal length.
    """
    same_length(one=one, two=two)
    a, b = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
    agree, pairs_a, pairs_b = 0.0, 0, 0
    for k in range(len(a) - 1):
        x, y = np.sign(a[k + 1 :] - a[k]), np.sign(b[k + 1 :] - b[k])
        agree += float(x @ y)
        pairs_a += int(np.count_nonzero(x))
        pairs_b += int(np.count_nonzero(y))
    return agree / float(np.sqrt(pairs_a) * np.sqrt(pairs_b)) if pairs_a and pairs_b else np.nan


def spearman_rho(one: Sequence[float] | np.ndarray, two: Sequence[float] | np.ndarray) -> float:
    """Spearman's rho: Pearson's correlation of mean ranks; NaN where either is constant.

    Raises:
        InputError: lists of unequal length.
    """
    same_length(one=one, two=two)
    a, b = _ranks(one), _ranks(two)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b))) if len(a) else 0.0
    return float(a @ b) / size if size else np.nan


def _ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have the mean of theirs."""
    _, group, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[group]


def rank_scores(
    predicted: Sequence[Sequence[float] | np.ndarray | None],
    ratings: Sequence[np.ndarray],
    *,
    official: bool = False,
) -> Scores:
    """Kendall's tau-b and Spearman's rho with each annotator, their mean, then that over videos.

    Args:
        predicted: one score a frame or clip for each video; None, or the same score everywhere,
            orders nothing and counts 0.
        ratings: (clips, annotators) of each video; an annotator who rates all clips alike is left
            out.
        official: undefined correlations stay NaN and make the mean NaN, as with scipy; None as 0.

    Raises:
        InputError: not one prediction a video, or not one score a clip.
    """
    same_length(predictions=predicted, ratings=ratings)
    scores: Scores = {}
    for name, correlation in (("tau", kendall_tau), ("rho", spearman_rho)):
        means: list[float] = []
        for values, table in zip(predicted, ratings, strict=True):
            columns = np.asarray(table, dtype=np.float64).T
            if not official:
                columns = columns[np.ptp(columns, axis=1) > 0]
            if not len(columns):
                continue
            if values is None or (not official and np.ptp(values) == 0):
                means.append(0.0)
                continue
            means.append(float(np.mean([correlation(values, column) for column in columns])))
        scores[name] = average(means)
    return scores
