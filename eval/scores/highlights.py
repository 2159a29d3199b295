"""QVHighlights highlight detection: HL mAP and HIT@1 at three ratings.

Source: Lei et al., NeurIPS 2021 (arXiv 2107.09609).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidllm.errors import InputError

from .common import Scores, average, same_length

#: Names of the least rating that makes a clip a highlight.
RATINGS: dict[str, int] = {"Fair": 2, "Good": 3, "VeryGood": 4}


def rating_table(
    clips: int, clip_ids: Sequence[int], ratings: Sequence[Sequence[float]], raters: int = 3
) -> np.ndarray:
    """(clips, raters): the ratings of the relevant clips, 0 for all others.

    Raises:
        InputError: not one row of ratings a clip, or a clip that the video does not have.
    """
    same_length(clips=clip_ids, ratings=ratings)
    table = np.zeros((clips, raters))
    for clip, row in zip(clip_ids, ratings, strict=True):
        if not 0 <= clip < clips or len(row) != raters:
            raise InputError(
                f"clip {clip} with {len(row)} ratings: expected {raters} of 0–{clips - 1}"
            )
        table[clip] = row
    return table


def clip_precision(
    labels: Sequence[float] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    *,
    official: bool = False,
) -> float:
    """Interpolated average precision of clip scores against 0/1 labels; 0 without a positive.

    Clips of equal score enter together, so their order in the file does not matter.

    Args:
        official: as the authors' script, where every step of recall weighs the same, however many
            positives it holds: only with equal scores does this differ.

    Raises:
        InputError: not one score a label.
    """
    same_length(labels=labels, scores=scores)
    positive = np.asarray(labels, dtype=np.float64) > 0
    if not positive.any() or positive.all():
        return float(positive.any())
    _, group = np.unique(-np.asarray(scores, dtype=np.float64), return_inverse=True)
    hits = np.cumsum(np.bincount(group, weights=positive))
    precision = hits / np.cumsum(np.bincount(group))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    gain = np.diff(hits, prepend=0.0)
    if official:
        return float(envelope[gain > 0].mean())
    return float((envelope * gain).sum() / hits[-1])


def highlight_scores(
    predicted: Sequence[Sequence[float] | np.ndarray | None],
    ratings: Sequence[np.ndarray],
    *,
    official: bool = False,
) -> Scores:
    """HL mAP and HIT@1 of QVHighlights at ratings of at least 2, 3 and 4 ("VeryGood").

    mAP is the mean over raters and queries, where a rater without a highlight counts 0 in both
    variants. HIT@1 asks whether the best-scored clip is a highlight for any rater.

    Args:
        predicted: one score a clip for each query; None for an answer that cannot be read. What
            exceeds the clips is cut, missing clips rank last.
        ratings: (clips, raters) of each query (`rating_table`).
        official: as the authors' script and those built on it: no answer means all zeros, so that
            clip 0 is the best; the first of equal clips wins; clips past the end of a short
            prediction score 0. By default no answer counts 0, and equal best clips share the hit.

    Raises:
        InputError: not one prediction a query, or a table of ratings that is not (clips, raters).
    """
    same_length(predictions=predicted, ratings=ratings)
    tables = [np.asarray(table, dtype=np.float64) for table in ratings]
    if any(table.ndim != 2 or not table.size for table in tables):
        raise InputError("the ratings of every query must be (clips, raters)")
    fitted = [_fitted(p, len(t), official) for p, t in zip(predicted, tables, strict=True)]
    scores: Scores = {}
    for name, least in RATINGS.items():
        precisions, hits = [], []
        for values, longer, table in zip(fitted, predicted, tables, strict=True):
            labels = table >= least
            if values is None:
                precisions.append(0.0)
                hits.append(0.0)
                continue
            raters = [clip_precision(c, values, official=official) for c in labels.T]
            precisions.append(float(np.mean(raters)))
            given = longer if official and longer is not None else values
            hits.append(_hit(given, labels, official))
        scores[f"HL mAP {name}"] = average(precisions)
        scores[f"HIT@1 {name}"] = average(hits)
    scores["parse_failures"] = average([values is None for values in predicted])
    return scores


def _fitted(
    values: Sequence[float] | np.ndarray | None, clips: int, official: bool
) -> np.ndarray | None:
    if values is None or not len(values):
        return np.zeros(clips) if official else None
    given = np.asarray(values, dtype=np.float64)[:clips]
    given = np.where(np.isnan(given), -np.inf, given)
    return np.pad(given, (0, clips - len(given)), constant_values=0.0 if official else -np.inf)


def _hit(values: Sequence[float] | np.ndarray, labels: np.ndarray, official: bool) -> float:
    scores = np.asarray(values, dtype=np.float64)
    good = np.asarray(labels.any(axis=1))
    if official:
        best = int(scores.argmax()) if len(scores) else 0
        return float(best < len(good) and good[best])
    return float(good[scores == scores.max()].mean())
