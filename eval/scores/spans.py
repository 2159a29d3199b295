"""Temporal grounding with one true span a query: tIoU, R1@m, mIoU, P@0.5 by video.

Sources: R1@m and mIoU as in Charades-STA (Gao et al., ICCV 2017, arXiv 1705.02101); the mean by
video as in ActivityNet-RTL (LITA, arXiv 2403.19046).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidllm.errors import InputError

from .common import Interval, Scores, average, same_length, true_span

THRESHOLDS: tuple[float, ...] = (0.3, 0.5, 0.7)


def tiou(one: Sequence[float], two: Sequence[float]) -> float:
    """tIoU of two spans in seconds: max(0, min(e, ê) − max(s, ŝ)) / (max(e, ê) − min(s, ŝ)).

    The hull below equals the union wherever the two overlap. 0 for two equal points, where
    released scripts divide by zero, for a span that ends before it starts, and for NaN.
    """
    return float(tiou_matrix([one], [two])[0, 0])


def tiou_matrix(
    ones: Sequence[Sequence[float]] | np.ndarray,
    twos: Sequence[Sequence[float]] | np.ndarray,
    *,
    official: bool = False,
) -> np.ndarray:
    """tIoU of every pair: (N, M) from (N, ≥2) and (M, ≥2) seconds; columns after two are left.

    Args:
        official: 1e-8 is added to the union, as the scripts of dense captioning do, so that equal
            spans have an IoU just below 1.
    """
    a, b = _ends(ones)[:, None], _ends(twos)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        meet = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
        union = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
        found = meet / (union + 1e-8 if official else union)
    return np.where((meet > 0) & np.isfinite(found), found, 0.0)


def _ends(spans: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    rows = [(float(span[0]), float(span[1])) for span in spans]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 2)


def ious(
    predicted: Sequence[Sequence[float] | None], truth: Sequence[Sequence[float]]
) -> np.ndarray:
    """tIoU of each prediction with its truth, (N,); 0 where the prediction is None.

    Raises:
        InputError: not one prediction a truth, or a true span that is wrong.
    """
    same_length(predictions=predicted, truths=truth)
    pairs = zip(predicted, map(true_span, truth), strict=True)
    return np.asarray([0.0 if p is None else tiou(p, t) for p, t in pairs], dtype=np.float64)


def recall_at(values: Sequence[float] | np.ndarray, threshold: float) -> float | None:
    """R1@m: the share of IoUs of at least m."""
    return average(np.asarray(values, dtype=np.float64) >= threshold)


def grounding_scores(
    predicted: Sequence[Sequence[float] | None],
    truth: Sequence[Sequence[float]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    official: bool = False,
) -> Scores:
    """mIoU, R1@m (≥) and the share of answers without a span.

    Args:
        predicted: the first span of each answer in seconds, None for none: counts 0 and stays.
        truth: the true span of each query.
        official: as VTimeLLM's script, which rounds every IoU to two decimals before the
            threshold and the mean, so that 0.696 passes 0.7. The scripts of TimeChat, VTG-LLM
            and TimeSuite agree with the default, except that they divide by zero on points.

    Raises:
        InputError: not one prediction a truth, or a true span that is wrong.
    """
    values = ious(predicted, truth)
    if official:
        values = np.asarray([round(float(value), 2) for value in values])
    scores: Scores = {"mIoU": average(values)}
    scores.update({f"R1@{m}": recall_at(values, m) for m in thresholds})
    scores["parse_failures"] = average([span is None for span in predicted])
    return scores


def by_video(values: Sequence[float] | np.ndarray, videos: Sequence[str]) -> dict[str, float]:
    """The mean of the values of each video, in order of first appearance.

    Raises:
        InputError: not one video a value.
    """
    same_length(values=values, videos=videos)
    groups: dict[str, list[float]] = {}
    for value, video in zip(values, videos, strict=True):
        groups.setdefault(video, []).append(float(value))
    return {video: float(np.mean(found)) for video, found in groups.items()}


def rtl_scores(
    predicted: Sequence[Sequence[float] | None],
    truth: Sequence[Sequence[float]],
    videos: Sequence[str],
    durations: Sequence[float] | None = None,
    *,
    official: bool = False,
) -> Scores:
    """ActivityNet-RTL: mIoU and P@0.5, averaged in each video and then over videos.

    Args:
        predicted: span of each answer in seconds, None where none could be read.
        truth, videos: the true span and the video of each question.
        durations: seconds of each question's video; needed when `official`.
        official: as LITA's script, where an answer that cannot be read is the whole video and so
            earns |truth| / duration; by default it earns 0.

    Raises:
        InputError: lists of unequal length, `official` without durations, or a wrong true span.
    """
    spans: list[Interval | Sequence[float] | None] = list(predicted)
    if official:
        if durations is None:
            raise InputError("ActivityNet-RTL's official score needs the duration of every video")
        same_length(predictions=predicted, durations=durations)
        whole = [(0.0, float(seconds)) for seconds in durations]
        spans = [w if span is None else span for span, w in zip(predicted, whole, strict=True)]
    values = ious(spans, truth)
    return {
        "mIoU": average(list(by_video(values, videos).values())),
        "P@0.5": average(list(by_video(values >= 0.5, videos).values())),
        "parse_failures": average([span is None for span in predicted]),
    }
