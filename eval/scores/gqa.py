"""NExT-GQA: grounded question answering, IoP, IoU and Acc@GQA.

Source: Xiao et al., CVPR 2024 (arXiv 2309.01327).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .common import Scores, average, same_length, true_span
from .spans import tiou


def iop(predicted: Sequence[float], truth: Sequence[float]) -> float:
    """Intersection over prediction: the share of the predicted span that is true.

    A predicted point counts 1 inside the true span (ends included) and 0 outside, the limit of
    ever shorter spans; a span that ends before it starts, or NaN, counts 0.
    """
    (start, end), (first, last) = predicted[:2], truth[:2]
    if start == end:
        return float(first <= start <= last)
    if not end > start:
        return 0.0
    return max(0.0, min(end, last) - max(start, first)) / (end - start)


def best(
    predicted: Sequence[float] | None, truth: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """(IoP, IoU), each the largest over the true segments; (0, 0) without a prediction."""
    if predicted is None:
        return 0.0, 0.0
    segments = [true_span(span) for span in truth]
    return (
        max((iop(predicted, span) for span in segments), default=0.0),
        max((tiou(predicted, span) for span in segments), default=0.0),
    )


def gqa_scores(
    predicted: Sequence[Sequence[float] | None],
    truth: Sequence[Sequence[Sequence[float]]],
    right: Sequence[bool],
    *,
    official: bool = False,
) -> Scores:
    """mIoP, IoP@.3/.5, mIoU, IoU@.3/.5 (≥), Acc@QA, and Acc@GQA = right answer with IoP ≥ 0.5.

    Args:
        predicted: one span a question in seconds, None where there is none.
        truth: the true segments of each question.
        right: whether the answer to each question is right.
        official: as the authors' script, which skips questions without a predicted span
            silently; by default they count 0 in every score of spans.

    Raises:
        InputError: lists of unequal length, or a true span that is wrong.
    """
    same_length(predictions=predicted, truths=truth, answers=right)
    rows = [
        (*best(span, segments), bool(good), span is None)
        for span, segments, good in zip(predicted, truth, right, strict=True)
        if span is not None or not official
    ]
    iops, ious, answers, missing = (
        np.asarray(c) for c in (zip(*rows, strict=True) if rows else [()] * 4)
    )
    scores: Scores = {}
    for name, values in (("IoP", iops), ("IoU", ious)):
        scores[f"m{name}"] = average(values)
        scores.update({f"{name}@{m}": average(values >= m) for m in (0.3, 0.5)})
    scores["Acc@QA"] = average(answers)
    scores["Acc@GQA"] = average(answers.astype(bool) & (iops >= 0.5))
    scores["parse_failures"] = average(missing)
    return scores
