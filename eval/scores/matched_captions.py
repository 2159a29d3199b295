"""CIDEr and METEOR of dense captions: sentences of the events that overlap enough.

Source: ActivityNet-Captions (Krishna et al., ICCV 2017, arXiv 1705.00754) and its common script.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .caption_scorers import PairScorer
from .captions import TAUS, Event, References, check, overlaps


@dataclass(frozen=True)
class CaptionScore:
    """A caption score with what it depends on.

    Attributes:
        name: of the scorer.
        value: mean over tau; None if no video counts.
        by_tau: the mean over videos at each tau.
        idf: what the idf of words comes from, "corpus" or "video"; None where there is none.
        videos: in the mean; unanswered: without a prediction (in the mean unless official).
    """

    name: str
    value: float | None
    by_tau: dict[float, float]
    idf: str | None
    videos: int
    unanswered: int


def caption_score(
    predicted: Sequence[Sequence[Event] | None],
    truth: Sequence[References],
    scorer: PairScorer,
    *,
    taus: Sequence[float] = TAUS,
    official: bool = False,
    seed: int = 0,
) -> CaptionScore:
    """The mean score of all pairs of events with IoU ≥ tau, by video, then over videos, then tau.

    Every pair counts, so an event may be matched several times; a predicted event without a match
    counts as one pair of score 0; a true event that nobody found costs nothing (see recall).

    Args:
        predicted: events of each video; None or empty for none: the video counts 0 and stays.
        truth: the references of each video; events of several annotators are pooled.
        scorer: e.g. `caption_scorers.Cider()`, whose idf comes from the true sentences of all
            videos ("corpus"), so that predictions do not change it.
        official: as the common script: idf "video" from the *pairs* of the video, so that it
            depends on the predictions and a single pair has CIDEr 0; a prediction without a match
            is scored against random letters, which are part of that corpus; METEOR's statistics
            are summed over a video's pairs; videos without a prediction are left out.
        seed: of the random letters.

    Raises:
        InputError: not one prediction a video, or no or wrong true spans.
    """
    check(predicted, truth)
    true = [[event for events in references for event in events] for references in truth]
    said = [list(events or ()) for events in predicted]
    tables = [overlaps(t, s) for t, s in zip(true, said, strict=True)]
    rows: list[list[float]] = []
    if official:
        letters = random.Random(seed)
        for t, s, overlap in zip(true, said, tables, strict=True):
            if s:
                rows.append([_official(t, s, overlap, m, scorer, letters) for m in taus])
    else:
        filled = [np.zeros(overlap.shape) for overlap in tables]
        _fill(filled, true, said, [overlap >= min(taus) for overlap in tables], scorer)
        for values, overlap in zip(filled, tables, strict=True):
            rows.append([_mean(values, overlap >= m) for m in taus])
    means = np.asarray(rows).mean(axis=0) if rows else np.zeros(len(taus))
    return CaptionScore(
        name=scorer.name,
        value=float(means.mean()) if rows else None,
        by_tau={tau: float(value) for tau, value in zip(taus, means, strict=True)} if rows else {},
        idf=("video" if official else "corpus") if scorer.uses_corpus else None,
        videos=len(rows),
        unanswered=sum(not events for events in said),
    )


def _mean(values: np.ndarray, match: np.ndarray) -> float:
    """Over matched pairs, and zeros for predictions without any; 0 without a prediction."""
    count = int(match.sum()) + int((~match.any(axis=0)).sum())
    return float(values[match].sum()) / count if count else 0.0


def _fill(
    values: Sequence[np.ndarray],
    true: Sequence[Sequence[Event]],
    said: Sequence[Sequence[Event]],
    matches: Sequence[np.ndarray],
    scorer: PairScorer,
) -> None:
    """(G, P) scores of the matching pairs of each video, with all true events as the corpus.

    A scorer takes its idf from the references of a call. So that every true event is in there
    once, call after call asks for the next match of each event, and for nothing where it has none.
    """
    events = [(v, i) for v, rows in enumerate(true) for i in range(len(rows))]
    left = [[int(j) for j in np.flatnonzero(matches[v][i])] for v, i in events]
    if not scorer.uses_corpus:  # no need to keep to one match of an event a call
        pairs = [(v, i, j) for (v, i), js in zip(events, left, strict=True) for j in js]
        _ask(values, true, said, pairs, scorer)
        return
    for turn in range(max(map(len, left), default=0)):
        now = [
            (v, i, js[turn] if turn < len(js) else -1)
            for (v, i), js in zip(events, left, strict=True)
        ]
        _ask(values, true, said, now, scorer)


def _ask(
    values: Sequence[np.ndarray],
    true: Sequence[Sequence[Event]],
    said: Sequence[Sequence[Event]],
    pairs: Sequence[tuple[int, int, int]],
    scorer: PairScorer,
) -> None:
    found = scorer.scores(
        [true[v][i].sentence for v, i, _ in pairs],
        [said[v][j].sentence if j >= 0 else "" for v, _, j in pairs],
    )
    for (v, i, j), value in zip(pairs, found, strict=True):
        if j >= 0:
            values[v][i, j] = value


def _official(
    true: Sequence[Event],
    said: Sequence[Event],
    overlap: np.ndarray,
    tau: float,
    scorer: PairScorer,
    letters: random.Random,
) -> float:
    references, candidates = [], []
    for j, prediction in enumerate(said):
        found = [event.sentence for event, o in zip(true, overlap[:, j], strict=True) if o >= tau]
        noise = "".join(letters.choices(string.ascii_lowercase, k=letters.randint(10, 20)))
        references += found or [noise]
        candidates += [prediction.sentence] * max(1, len(found))
    return scorer.total(references, candidates)
