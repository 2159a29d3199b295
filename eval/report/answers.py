"""What answers show beside their scores: how far spans are off, how well letters are calibrated.

Sources: expected calibration error and reliability diagram as Guo et al., ICML 2017
(arXiv 1706.04599), with bins of equal width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..scores.choices import choose
from ..scores.common import Interval
from ..scores.spans import tiou
from ..tasks.base import Item
from .load import Row

#: Families of tasks whose answers name spans; of dense captions which event answers which is a
#: question of its own, so that they have no errors.
SPANS: tuple[str, ...] = ("grounding", "made", "captions")
ERRORS: tuple[str, ...] = ("grounding", "made")
BINS = 10


def true_spans(item: Item, family: str) -> list[Interval]:
    """The true spans of a question, in seconds; none where it does not ask for a time.

    Args:
        family: of the task. Of several references of dense captions the first one counts.
    """
    if family not in SPANS or item.choices:
        return []
    truth = item.truth.get("spans") if isinstance(item.truth, Mapping) else item.truth
    if family == "captions" and isinstance(truth, (list, tuple)) and truth:
        truth = truth[0]
    return _spans(truth)


def said_spans(row: Row, item: Item, family: str) -> list[Interval]:
    """The spans that an answer names: as the task read them, else as the time code found them."""
    if family not in SPANS or item.choices:
        return []
    return _spans(row.parsed) or [(float(s), float(e)) for s, e in row.response.spans]


def _spans(value: Any) -> list[Interval]:
    """Spans of [s, e] or [[s, e], …]; what follows in a span (a score, a sentence) is left."""
    if not isinstance(value, (list, tuple)) or not value:
        return []
    if not all(isinstance(part, (list, tuple)) for part in value):
        value = [value]
    if not all(len(part) in (2, 3) and all(map(_is_number, part[:2])) for part in value):
        return []
    return [(float(part[0]), float(part[1])) for part in value if part[1] >= part[0]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class SpanErrors:
    """How far the first span of each answer is from the true one that it meets best.

    Args:
        start, end: (N,) seconds, negative for too early. duration: (N,) seconds of the video,
            NaN where nobody knows. iou: (N + missing,), 0 where an answer names no span.
        missing: answers without a span.
    """

    start: np.ndarray
    end: np.ndarray
    duration: np.ndarray
    iou: np.ndarray
    missing: int


def span_errors(items: Mapping[str, Item], rows: Mapping[str, Row], family: str) -> SpanErrors:
    """The errors of one setting; questions whose truth is not a span are left out."""
    start, end, duration, overlap = [], [], [], []
    missing = 0
    for name, item in items.items():
        asked = family in ERRORS and item.kind != "caption"
        truth = true_spans(item, family) if asked else []
        row = rows.get(name)
        if not truth or row is None:
            continue
        said = said_spans(row, item, family)
        if not said:
            missing += 1
            overlap.append(0.0)
            continue
        first = said[0]
        best = max(truth, key=lambda span: (tiou(first, span), -abs(sum(first) - sum(span))))
        start.append(first[0] - best[0])
        end.append(first[1] - best[1])
        duration.append(row.response.duration or item.duration or math.nan)
        overlap.append(tiou(first, best))
    begins, ends, lengths, met = (np.asarray(v, float) for v in (start, end, duration, overlap))
    return SpanErrors(begins, ends, lengths, met, missing)


@dataclass(frozen=True)
class Letters:
    """Generated letters against the most probable ones, over the questions that have both.

    Args:
        generated, likely: accuracy. agree: share of questions where both are the same.
        confidence, right: (N,) probability of the most probable letter among the options, and
            whether it is right. ece: expected calibration error over `BINS` bins.
        n: questions.
    """

    generated: float
    likely: float
    agree: float
    confidence: np.ndarray
    right: np.ndarray
    ece: float
    n: int


def letter_accuracy(items: Mapping[str, Item], rows: Mapping[str, Row]) -> Letters | None:
    """Both ways of answering a multiple choice; None without log-probabilities.

    An answer without a letter, and a tie of the most probable ones, is wrong.
    """
    generated, likely, agree, confidence = [], [], [], []
    for name, item in items.items():
        row = rows.get(name)
        truth = true_letter(item)
        if row is None or truth is None or not row.response.letters:
            continue
        known = row.response.letters
        values = [float(known.get(letter, -math.inf)) for letter in item.letters]
        if not any(math.isfinite(v) for v in values):
            continue
        best = choose(values)
        letter = None if best is None else item.letters[best]
        shares = np.exp(np.asarray(values) - max(values))
        generated.append(said_letter(row, item) == truth)
        likely.append(letter == truth)
        agree.append(letter is not None and said_letter(row, item) == letter)
        confidence.append(float(shares.max() / shares.sum()))
    if not likely:
        return None
    sure, right = np.asarray(confidence), np.asarray(likely, float)
    return Letters(
        float(np.mean(generated)),
        float(np.mean(likely)),
        float(np.mean(agree)),
        sure,
        right,
        calibration_error(sure, right),
        len(likely),
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Σ over bins of n_b / n · |accuracy − mean confidence|."""
    total = 0.0
    for inside in bin_masks(confidence, bins):
        if inside.any():
            gap = abs(float(right[inside].mean()) - float(confidence[inside].mean()))
            total += gap * float(inside.mean())
    return total


def bin_masks(confidence: np.ndarray, bins: int = BINS) -> list[np.ndarray]:
    """(N,) masks of the bins (k/B, (k+1)/B]; the first one also holds 0."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [place == k for k in range(bins)]


def true_letter(item: Item) -> str | None:
    """The right letter of a multiple choice, whether the truth is a letter, a number or a text."""
    truth = item.truth
    if isinstance(truth, Mapping):
        keys = ("letter", "answer", "correct", "choice")
        truth = next((truth[key] for key in keys if key in truth), None)
    if not item.choices or truth is None or isinstance(truth, bool):
        return None
    if isinstance(truth, int):
        return item.letters[truth] if 0 <= truth < len(item.letters) else None
    if str(truth) in item.letters:
        return str(truth)
    same = [k for k, text in enumerate(item.choices) if text == truth]
    return item.letters[same[0]] if len(same) == 1 else None


def said_letter(row: Row, item: Item) -> str | None:
    """The letter that the task read in an answer."""
    said = row.parsed
    if isinstance(said, Mapping):
        said = next((said[key] for key in ("letter", "answer", "choice") if key in said), None)
    return said if isinstance(said, str) and said in item.letters else None
