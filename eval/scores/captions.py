"""Dense captions: localisation P/R/F1 and SODA_c. For CIDEr and METEOR see `matched_captions`.

Sources: ActivityNet-Captions (Krishna et al., ICCV 2017, arXiv 1705.00754); SODA (Fujita et al.,
ECCV 2020), its dynamic programme written from the equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidllm.errors import InputError

from .caption_scorers import PairScorer
from .common import Interval, Scores, average, same_length, true_span
from .spans import tiou_matrix

TAUS: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)


class Event(NamedTuple):
    """A described span, in seconds."""

    start: float
    end: float
    sentence: str

    @property
    def span(self) -> Interval:
        """(start, end)."""
        return self.start, self.end


#: The events of one video as each of its annotators wrote them: truth[annotator][event].
References = Sequence[Sequence[Event]]


def check(predicted: Sequence[object], truth: Sequence[References]) -> None:
    """Whether every video has one prediction (None for no answer) and true events.

    Raises:
        InputError: it has not, or a true span is wrong.
    """
    same_length(predictions=predicted, truths=truth)
    for video, references in enumerate(truth):
        if not references or not all(references):
            raise InputError(f"video {video} has no true event: leave it out or mend the file")
        for event in (event for events in references for event in events):
            true_span(event.span)


def overlaps(true: Sequence[Event], said: Sequence[Event], *, official: bool = False) -> np.ndarray:
    """(G, P) tIoU of events."""
    return tiou_matrix([e.span for e in true], [e.span for e in said], official=official)


def localisation(
    predicted: Sequence[Sequence[float]],
    truth: Sequence[Sequence[float]],
    *,
    taus: Sequence[float] = TAUS,
    official: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) of one video at each tau, (len(taus),) each.

    Precision is the share of predicted spans with an IoU of at least tau with any true one,
    recall that of true spans with any predicted one; 0 without a prediction.

    Args:
        official: as the common script: strictly more than tau, and 1e-8 added to the union.
    """
    if not len(predicted) or not len(truth):
        return np.zeros(len(taus)), np.zeros(len(taus))
    overlap = tiou_matrix(truth, predicted, official=official)
    best = overlap.max(axis=0), overlap.max(axis=1)
    p, r = ([np.mean(b > t if official else b >= t) for t in taus] for b in best)
    return np.asarray(p), np.asarray(r)


def f_measure(precision: float, recall: float) -> float:
    """2PR / (P + R); 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


def localisation_scores(
    predicted: Sequence[Sequence[Event] | None],
    truth: Sequence[References],
    *,
    taus: Sequence[float] = TAUS,
    official: bool = False,
) -> Scores:
    """Means over videos of P and R at each tau, of their means over tau, and of the F1 of these.

    Args:
        predicted: events of each video; None or empty for none: counts 0 and stays.
        truth: the references of each video; several annotators are averaged.
        official: as the common script: see `localisation`; videos without a prediction are left
            out; of several annotators the best P and the best R count, each at each tau.

    Raises:
        InputError: not one prediction a video, or no or wrong true spans.
    """
    check(predicted, truth)
    rows = []
    for events, references in zip(predicted, truth, strict=True):
        if official and not events:
            continue
        said = [event.span for event in events or ()]
        each = np.asarray(
            [
                localisation(said, [e.span for e in t], taus=taus, official=official)
                for t in references
            ]
        )
        if official:
            each = each.max(axis=0, keepdims=True)
        f1 = [f_measure(float(p), float(r)) for p, r in each.mean(axis=-1)]
        rows.append((each.mean(axis=0), float(np.mean(f1))))
    tables = np.asarray([table for table, _ in rows]).reshape(-1, 2, len(taus))
    scores: Scores = {}
    for k, name in enumerate(("P", "R")):
        scores.update({f"{name}@{tau}": average(tables[:, k, j]) for j, tau in enumerate(taus)})
        scores[name] = average(tables[:, k].mean(axis=1))
    scores["F1"] = average([f1 for _, f1 in rows])
    scores["parse_failures"] = average([not events for events in predicted])
    return scores


def order_preserving(scores: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """The best sum of scores (G, P) over pairs that keep the order of rows and columns.

    d[i, j] = max(d[i−1, j], d[i, j−1], d[i−1, j−1] + S[i, j]).

    Returns:
        The sum, and the (row, column) pairs chosen, without pairs of score 0.
    """
    table = np.asarray(scores, dtype=np.float64)
    rows, columns = table.shape
    best = np.zeros((rows + 1, columns + 1))
    for i in range(rows):
        pair = np.maximum(best[i, 1:], best[i, :-1] + table[i])
        best[i + 1, 1:] = np.maximum.accumulate(np.maximum(pair, 0.0))
    pairs, i, j = [], rows, columns
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return float(best[rows, columns]), pairs[::-1]


def soda_f(scores: np.ndarray) -> tuple[float, float, float]:
    """(P, R, F) of S = IoU × similarity (G, P): P = best / P, R = best / G."""
    if not scores.size:
        return 0.0, 0.0, 0.0
    best, _ = order_preserving(scores)
    precision, recall = best / scores.shape[1], best / scores.shape[0]
    return precision, recall, f_measure(precision, recall)


def soda_scores(
    predicted: Sequence[Sequence[Event] | None],
    truth: Sequence[References],
    scorer: PairScorer,
    *,
    official: bool = False,
) -> Scores:
    """SODA_c: the mean over videos of the F of the best order-preserving match of events.

    The key is "SODA_c" with METEOR, the similarity of the paper, and names any other:
    "SODA_c (word-F1)".

    Args:
        predicted: events of each video; None or empty for none: counts 0 and stays.
        truth: the references of each video; the F of several annotators are averaged (VTimeLLM).
        scorer: similarity of two sentences, e.g. `caption_scorers.Meteor()`.
        official: as VTG-LLM's script: videos without a prediction are left out, 1e-8 is added to
            unions, and events are matched in the order in which they are written; by default in
            the order of their times.

    Raises:
        InputError: not one prediction a video, no or wrong true spans.
    """
    check(predicted, truth)
    tables: list[list[np.ndarray]] = []
    asked: list[tuple[np.ndarray, int, int, str, str]] = []
    for events, references in zip(predicted, truth, strict=True):
        if official and not events:
            continue
        said = list(events or ()) if official else sorted(events or (), key=lambda e: e.span)
        tables.append([])
        for written in references:
            true = list(written) if official else sorted(written, key=lambda e: e.span)
            overlap = overlaps(true, said, official=official)
            asked += [
                (overlap, int(i), int(j), true[i].sentence, said[j].sentence)
                for i, j in np.argwhere(overlap > 0)
            ]
            tables[-1].append(overlap)
    # One call for all videos: METEOR and its tokeniser are slow to start.
    values = scorer.scores([row[3] for row in asked], [row[4] for row in asked])
    for (overlap, i, j, _, _), value in zip(asked, values, strict=True):
        overlap[i, j] *= value
    found = np.asarray([np.mean([soda_f(t) for t in video], axis=0) for video in tables])
    name = "SODA_c" if scorer.name == "METEOR" else f"SODA_c ({scorer.name})"
    p, r, f = found.reshape(-1, 3).T
    return {f"{name} P": average(p), f"{name} R": average(r), name: average(f)}
