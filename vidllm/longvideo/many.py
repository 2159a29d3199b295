"""One question to many indexes: the windows of all in shared batches, ranked by how they fit.

Coarse to fine as for one index: the longest windows of all indexes are asked, then all windows of
the indexes that fit best. A window always names a span, whatever it shows; so spans are compared by
how probable the query is as their caption (`fitting`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from vidllm.models.cost.flops import kv_bytes_per_token
from vidllm.models.engine import USUAL_ANSWER, one_at_a_time
from vidllm.models.question import prompt_ids
from vidllm.timecode import Span

from .answering import KEPT_BYTES, Reader
from .choosing import Vote, elected, tious
from .fitting import Fitting
from .scan import ROWS, Batch, WindowAnswer, ask_batch

LEAST, TIMES = 20, 2  # indexes that are asked at every length: so many, or twice the hits wanted
_VOTE = 0.3  # IoU from which spans mean the same


@dataclass(frozen=True)
class _Window:
    """One window: of which reader, at which level, which row there, and its seconds."""

    reader: int
    level: int
    row: int
    start: float
    length: float


@dataclass
class _Votes:
    """The votes of one index, and how well the span of each fits the query."""

    votes: list[Vote] = field(default_factory=list)
    fits: list[float] = field(default_factory=list)

    def spans(self) -> list[Vote]:
        """The spans that the votes stand for, each with the best fit of its votes, best first."""
        votes = np.asarray([vote.span for vote in self.votes]).reshape(-1, 2)
        fits = np.asarray(self.fits)
        found = []
        for vote in elected(self.votes):
            agree = tious(votes, np.asarray([vote.span]))[:, 0] >= _VOTE
            if agree.any():
                found.append(Vote(vote.span, float(fits[agree].max())))
        return sorted(found, key=lambda v: -v.score)


class Many:
    """Asks many indexes of one model at once.

    Args:
        readers: of the indexes, all with the same model.
    """

    def __init__(self, readers: Sequence[Reader], model: nn.Module) -> None:
        self.readers, self.model = list(readers), model
        self._coarse: list[tuple[Batch, list[_Window]]] | None = None

    @property
    def worked_on(self) -> nn.Module:
        """The model, which one thread asks at a time."""
        return self.model

    @one_at_a_time
    def ground(self, query: str, limit: int) -> list[tuple[int, Span]]:
        """The best `limit` spans for a query: (number of the reader, span), the best first.

        Raises:
            InputError: an empty query.
        """
        if not self.readers:
            return []
        engine = self.readers[0].engine
        head, tail = prompt_ids(engine.tokenizer, engine.words("ground", query))
        most = max((b.total for r in self.readers for _, b in r.levels), default=0)
        engine.check_prompts([(head, tail)], most, USUAL_ANSWER)
        fitting = Fitting(engine.tokenizer, query)
        votes: defaultdict[int, _Votes] = defaultdict(_Votes)
        for batch, windows in self._first():
            self._ask(batch, windows, head, tail, fitting, votes)
            if self._coarse is None:
                batch.cache = None
        most = max(LEAST, TIMES * limit)
        for batch, windows in self._batches(self._finer(_best(votes, most))):
            self._ask(batch, windows, head, tail, fitting, votes)
        return [(number, Span(*vote.span, vote.score)) for number, vote in _ranked(votes)[:limit]]

    def _first(self) -> Iterator[tuple[Batch, list[_Window]]]:
        """The longest windows of all; kept with their caches where these are small enough."""
        if self._coarse is not None:
            yield from self._coarse
            return
        windows = [w for number in range(len(self.readers)) for w in self._windows(number, 0)]
        model = self.readers[0].model
        tokens = sum(len(r.levels[0][0]) * r.levels[0][1].features.shape[1] for r in self.readers)
        if tokens * kv_bytes_per_token(model.language_model.config, 4) > KEPT_BYTES:
            yield from self._batches(windows)
            return
        self._coarse = list(self._batches(windows))
        yield from self._coarse

    def _finer(self, numbers: Sequence[int]) -> list[_Window]:
        return [
            window
            for number in numbers
            for level in range(1, len(self.readers[number].levels))
            for window in self._windows(number, level)
        ]

    def _windows(self, number: int, level: int) -> list[_Window]:
        starts, batch = self.readers[number].levels[level]
        length = float(batch.length)
        return [_Window(number, level, row, s, length) for row, s in enumerate(starts.tolist())]

    def _batches(self, windows: Sequence[_Window]) -> Iterator[tuple[Batch, list[_Window]]]:
        """Windows of the same number of tokens as rows, whatever index they are of."""
        alike: defaultdict[tuple[int, int], list[_Window]] = defaultdict(list)
        for window in windows:
            batch = self._level(window)
            alike[batch.features.shape[1], batch.total].append(window)
        for (_, total), rows in alike.items():
            for at in range(0, len(rows), ROWS):
                part = rows[at : at + ROWS]
                levels = [(self._level(window), window.row) for window in part]
                yield (
                    Batch(
                        torch.stack([b.features[row].float() for b, row in levels]),
                        torch.stack([b.span[row] for b, row in levels]),
                        torch.stack([b.position[row] for b, row in levels]),
                        torch.tensor([window.length for window in part]),
                        total,
                    ),
                    part,
                )

    def _level(self, window: _Window) -> Batch:
        return self.readers[window.reader].levels[window.level][1]

    def _ask(
        self,
        batch: Batch,
        windows: Sequence[_Window],
        head: Sequence[int],
        tail: Sequence[int],
        fitting: Fitting,
        votes: defaultdict[int, _Votes],
    ) -> None:
        reader = self.readers[0]
        said: list[WindowAnswer] = ask_batch(
            reader.model, batch, head, tail, reader.engine.tokenizer, keep=True
        )
        fits = fitting(reader.model, batch, head, said)
        for window, told, fit in zip(windows, said, fits, strict=True):
            vote = reader.vote(window.start, window.length, told)
            if vote.score > 0:
                votes[window.reader].votes.append(vote)
                votes[window.reader].fits.append(fit)


def _ranked(votes: defaultdict[int, _Votes]) -> list[tuple[int, Vote]]:
    """Spans of all indexes, the best first; of equal ones that of the earlier index."""
    found = [(number, vote) for number in sorted(votes) for vote in votes[number].spans()]
    return sorted(found, key=lambda pair: -pair[1].score)


def _best(votes: defaultdict[int, _Votes], most: int) -> list[int]:
    """The indexes with the best spans, at most so many."""
    return list(dict.fromkeys(number for number, _ in _ranked(votes)))[:most]
