"""Scores of answers: temporal IoU, recall at IoU, exact short answers, dense captions.

An answer without a span counts as 0 and stays in the denominator. Sources: R1@m and mIoU as in
Charades-STA (Gao et al., ICCV 2017, arXiv 1705.02101), dense-caption matching after
ActivityNet-Captions (Krishna et al., ICCV 2017, arXiv 1705.00754) with exact sentences.
"""

from __future__ import annotations

import re
import string
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .common import Interval, Scores, average
from .statistics import bootstrap

THRESHOLDS: tuple[float, ...] = (0.3, 0.5, 0.7)
#: Kinds of questions whose answer names a time.
TIMED: tuple[str, ...] = ("ground", "why", "highlights", "caption")
#: Shares of the clip between which a true span counts as one length.
LENGTHS: tuple[tuple[float, float], ...] = ((0.0, 0.04), (0.04, 0.1), (0.1, 0.2), (0.2, 0.4))
_FIELD = re.compile(r"from\s+\{\}\s+to\s+\{\}")


@dataclass(frozen=True)
class Reply:
    """One question, its truth and what the model said.

    Args:
        id, vid, kind, question: which question.
        duration: of the clip, in seconds.
        truth: the right answer with `{}` for times; truth_spans: these times in seconds.
        text: the model's answer with times as seconds.
        spans: the times that it names; said: the text after each, up to the next.
    """

    id: str
    vid: str
    kind: str
    question: str
    duration: float
    truth: str
    truth_spans: tuple[Interval, ...]
    text: str
    spans: tuple[Interval, ...]
    said: tuple[str, ...]

    @property
    def iou(self) -> float:
        """IoU of the first span with the first true one; 0 without a span."""
        return iou(self.spans[0], self.truth_spans[0]) if self.spans else 0.0

    @property
    def is_timed(self) -> bool:
        """Whether the answer has to name a time."""
        return self.kind in TIMED

    @property
    def is_right(self) -> bool:
        """Whether a short answer is the right one, up to case, blanks and punctuation."""
        return normal(self.text) == normal(self.truth)

    @property
    def value(self) -> float:
        """IoU, the right cause with half of the span, F1 of events, or exact match, by kind."""
        if self.kind == "ground":
            return self.iou
        if self.kind == "why":
            cause = self.iou >= 0.5 and normal(self.said[0]) == normal(sentences(self.truth)[0])
            return float(cause)
        if self.kind == "highlights":
            return set_iou(self.spans, self.truth_spans)
        if self.kind == "caption":
            return event_f1(self.spans, self.said, self.truth_spans, sentences(self.truth))
        return float(self.is_right)


def iou(one: Interval, two: Interval) -> float:
    """Intersection over union of two intervals; the union is that of the sets, not their hull."""
    return set_iou([one], [two])


def set_iou(ones: Iterable[Interval], twos: Iterable[Interval]) -> float:
    """Intersection over union of two sets of intervals, each taken as one set of seconds."""
    a, b = merged(ones), merged(twos)
    meet = sum(max(0.0, min(x[1], y[1]) - max(x[0], y[0])) for x in a for y in b)
    union = sum(e - s for s, e in a) + sum(e - s for s, e in b) - meet
    return meet / union if union > 0 else 0.0


def merged(spans: Iterable[Interval]) -> list[Interval]:
    """The same seconds as disjoint intervals in order."""
    out: list[Interval] = []
    for start, end in sorted((min(s), max(s)) for s in spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def normal(text: str) -> str:
    """Lower case, no punctuation, single blanks."""
    bare = text.lower().translate(str.maketrans(string.punctuation, " " * len(string.punctuation)))
    return " ".join(bare.split())


def sentences(template: str) -> list[str]:
    """What a true answer says after each of its times."""
    return _FIELD.split(template)[1:]


def event_f1(
    spans: Sequence[Interval],
    said: Sequence[str],
    true_spans: Sequence[Interval],
    true_said: Sequence[str],
    threshold: float = 0.5,
) -> float:
    """F1 of events: a pair counts with IoU of at least `threshold` and the same sentence.

    Every event is matched at most once, the pairs of largest IoU first.
    """
    pairs = [
        (score, i, j)
        for i, (span, text) in enumerate(zip(spans, said, strict=True))
        for j, (true, right) in enumerate(zip(true_spans, true_said, strict=True))
        if normal(text) == normal(right) and (score := iou(span, true)) >= threshold
    ]
    used: tuple[set[int], set[int]] = (set(), set())
    for _, i, j in sorted(pairs, reverse=True):
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
    total = len(spans) + len(true_spans)
    return 2 * len(used[0]) / total if total else 0.0


def clustered_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int, rounds: int = 2000
) -> list[float] | None:
    """95 % bootstrap interval of the mean; whole clusters (videos) are drawn, not single values."""
    if not values:
        return None
    found = bootstrap(values, clusters, seed=seed, rounds=rounds)
    return [round(found.low, 4), round(found.high, 4)]


def span_scores(ious: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """mIoU and R1@m of the IoUs of first spans."""
    scores: dict[str, float | None] = {"mIoU": mean(ious)}
    for threshold in THRESHOLDS:
        scores[f"R1@{threshold}"] = mean([value >= threshold for value in ious])
    return scores


def mean(values: Sequence[float] | np.ndarray) -> float | None:
    """The mean to four decimals; None of nothing."""
    return round(float(np.mean(values)), 4) if len(values) else None


def scores_of(replies: Sequence[Reply], qa_kinds: Sequence[str]) -> Scores:
    """All scores of a run; a score without a question of its kind is None.

    Args:
        replies: one a question.
        qa_kinds: kinds that are scored by exact answer.
    """
    by_kind = _by_kind(replies)
    ious = [reply.iou for reply in by_kind.get("ground", [])]
    right = {kind: [r.is_right for r in by_kind[kind]] for kind in qa_kinds if kind in by_kind}
    scores: Scores = {"mIoU": average(ious)}
    scores |= {f"R1@{m}": average([value >= m for value in ious]) for m in THRESHOLDS}
    scores["qa_accuracy"] = average([one for found in right.values() for one in found])
    scores["why_mIoU"] = average([reply.iou for reply in by_kind.get("why", [])])
    for name, kind in (
        ("why_accuracy", "why"),
        ("highlights_mIoU", "highlights"),
        ("caption_f1", "caption"),
    ):
        scores[name] = average([reply.value for reply in by_kind.get(kind, [])])
    scores["parse_failures"] = average([not reply.spans for reply in replies if reply.is_timed])
    return scores | {f"qa_accuracy/{kind}": average(found) for kind, found in right.items()}


def summarise(replies: Sequence[Reply], qa_kinds: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The scores of `scores_of` to four decimals, nested, with counts and an interval.

    Args:
        seed: of the bootstrap.
    """
    by_kind = _by_kind(replies)
    ground = by_kind.get("ground", [])
    scores = {
        n: None if v is None else round(v, 4) for n, v in scores_of(replies, qa_kinds).items()
    }
    others = ("parse_failures", "why_mIoU", "why_accuracy", "highlights_mIoU", "caption_f1")
    return {
        "n": len(replies),
        "clips": len({r.vid for r in replies}),
        **{name: scores[name] for name in ("mIoU", *(f"R1@{m}" for m in THRESHOLDS))},
        "mIoU_ci95": clustered_interval([r.iou for r in ground], [r.vid for r in ground], seed),
        "mIoU_by_length": _by_length(ground),
        "qa_accuracy": scores["qa_accuracy"],
        "qa_by_kind": {k: scores[f"qa_accuracy/{k}"] for k in qa_kinds if k in by_kind},
        **{name: scores[name] for name in others},
        "n_by_kind": {kind: len(found) for kind, found in sorted(by_kind.items())},
    }


def _by_kind(replies: Sequence[Reply]) -> dict[str, list[Reply]]:
    found: dict[str, list[Reply]] = {}
    for reply in replies:
        found.setdefault(reply.kind, []).append(reply)
    return found


def _by_length(ground: Sequence[Reply]) -> dict[str, dict[str, Any]]:
    """mIoU by the share of the clip that the true span takes."""
    groups: dict[str, list[float]] = {f"{100 * a:.0f}-{100 * b:.0f}%": [] for a, b in LENGTHS}
    names = list(groups)
    for reply in ground:
        start, end = reply.truth_spans[0]
        share = (end - start) / max(reply.duration, 1e-9)
        groups[names[bisect_right([a for a, _ in LENGTHS], share + 1e-9) - 1]].append(reply.iou)
    return {
        name: {"mIoU": mean(found), "n": len(found)}
        for name, found in groups.items()
        if found or name != names[0]  # below 4 % only the long split has spans
    }
