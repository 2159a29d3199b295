"""One question to many indexes: the windows of all in shared batches, then side by side.

Coarse to fine as for one index: the longest windows of all indexes are asked, then all windows of
the indexes that look best. A window always finds what fits it most; so the best spans are put side
by side, a few in a clip and each in several clips with others, and the model chooses.

Scores mean the same in a video of a minute and of an hour. Of a span in its video: the IoU that
the model expects, averaged over all windows that showed the span, those that said something else
counting as 0. Of a hit: the share of the clips in which it was chosen, that mean counting as one
more clip.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vidllm.cost import kv_bytes_per_token
from vidllm.prompt import prompt_ids
from vidllm.timecode import Span

from .answering import KEPT_BYTES, Reader
from .choosing import Vote, elected, middle, tiou, tious
from .scan import ROWS, Batch, Said, ask_batch
from .windows import Cuts

_LEAST, _TIMES = 20, 2  # indexes that are asked at every length: so many, or twice the hits wanted
_COMPARED, _TURNS = 24, 6  # spans that are put side by side at least, and how often each
_SIDE, _MARGIN = 4, 8.0  # spans in a clip, with so many seconds around each
_VOTE = 0.3  # IoU from which spans mean the same
_SHOWN = 0.5  # share of a span that a window must show to have a say in it


@dataclass(frozen=True)
class _Window:
    """One window: of which reader, at which level, which row there, and its seconds."""

    reader: int
    level: int
    row: int
    start: float
    length: float


@dataclass
class _Heard:
    """What was heard of one index: votes, and the pieces that could have shown something."""

    votes: list[Vote] = field(default_factory=list)
    shown: list[tuple[float, float]] = field(default_factory=list)

    def spans(self) -> list[Vote]:
        """The spans that the votes stand for with their scores, the best first."""
        if not self.votes:
            return []
        heard = np.asarray([vote.span for vote in self.votes])
        score = np.asarray([vote.score for vote in self.votes])
        shown = np.asarray(self.shown)
        found = []
        for vote in elected(self.votes):
            low, high = vote.span
            part = np.minimum(shown[:, 1], high) - np.maximum(shown[:, 0], low)
            could = int((part >= _SHOWN * (high - low) - 1e-9).sum())
            agree = tious(heard, np.asarray([vote.span]))[:, 0] >= _VOTE
            found.append(Vote(vote.span, float(score[agree].sum()) / max(could, agree.sum(), 1)))
        return sorted(found, key=lambda v: -v.score)


class Many:
    """Asks many indexes of one model at once.

    Args:
        readers: of the indexes, all with the same model.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = list(readers)
        self._coarse: list[tuple[Batch, list[_Window]]] | None = None

    def ground(self, prompt: str, limit: int) -> list[tuple[int, Span]]:
        """The best `limit` spans for a prompt: (number of the reader, span), the best first.

        Raises:
            InputError: an empty prompt.
        """
        if not self.readers:
            return []
        head, tail = prompt_ids(self.readers[0].llm.tokenizer, prompt)
        heard: defaultdict[int, _Heard] = defaultdict(_Heard)
        for batch, windows in self._first():
            self._ask(batch, windows, head, tail, heard, keep=self._coarse is not None)
        most = max(_LEAST, _TIMES * limit)
        for batch, windows in self._batches(self._finer(_best(heard, most))):
            self._ask(batch, windows, head, tail, heard)
        best = _ranked(heard)[: max(_COMPARED, limit)]
        return self._compared(best, head, tail)[:limit]

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
        heard: defaultdict[int, _Heard],
        keep: bool = False,
    ) -> None:
        reader = self.readers[0]
        said: list[Said] = ask_batch(reader.model, batch, head, tail, reader.eos, keep=keep)
        for window, told in zip(windows, said, strict=True):
            mine = heard[window.reader]
            mine.shown.append((window.start, window.start + window.length))
            vote = reader.vote(window.start, window.length, told)
            if vote.score > 0:
                mine.votes.append(vote)

    def _compared(
        self, best: Sequence[tuple[int, Vote]], head: Sequence[int], tail: Sequence[int]
    ) -> list[tuple[int, Span]]:
        """The spans with the scores that they have side by side, the best first."""
        voices = [[vote] for _, vote in best]
        turns = np.ones(len(best))
        rows = list(_sides(len(best)))
        for at in range(0, len(rows), ROWS):
            part = rows[at : at + ROWS]
            clips = [self._beside([best[i] for i in row]) for row in part]
            batch = Batch(
                torch.cat([clip.features for clip, _ in clips]),
                torch.cat([clip.span for clip, _ in clips]),
                torch.cat([clip.position for clip, _ in clips]),
                torch.tensor([float(clip.length) for clip, _ in clips]),
                clips[0][0].total,
            )
            reader = self.readers[0]
            said = ask_batch(reader.model, batch, head, tail, reader.eos)
            for row, (_, cuts), told in zip(part, clips, said, strict=True):
                turns[list(row)] += 1
                if told.times is not None:
                    vote = reader.vote(0.0, cuts.length, told)
                    chosen = row[cuts.piece_of(*vote.span)]
                    voices[chosen].append(Vote(cuts.back(*vote.span), vote.score))
        found = []
        for (number, vote), mine, count in zip(best, voices, turns.tolist(), strict=True):
            low, high = middle([v for v in mine if tiou(v.span, vote.span) >= _VOTE] or [vote])
            found.append((number, Span(low, high, float((vote.score + len(mine) - 1) / count))))
        return sorted(found, key=lambda pair: -pair[1].score)

    def _beside(self, spans: Sequence[tuple[int, Vote]]) -> tuple[Batch, Cuts]:
        """A clip of some spans of any videos, one after the other."""
        pieces = []
        for number, vote in spans:
            around = Cuts.around([vote.span], _MARGIN, self.readers[number].index.duration)
            pieces.append(around.pieces[0])
        cuts, first = Cuts(tuple(pieces)), self.readers[0]
        moments, piece = cuts.moments(first.llm.usual_frames)
        seen = [
            self.readers[number].at(moments[piece == place])
            for place, (number, _) in enumerate(spans)
            if (piece == place).any()
        ]
        frames = torch.cat([tokens for tokens, _ in seen])
        told = cuts.joined(np.concatenate([seconds for _, seconds in seen]), piece)
        return first.made(frames, told, cuts.length), cuts


def _sides(count: int) -> Iterator[tuple[int, ...]]:
    """Which of so many spans stand side by side: each `_TURNS` times, always the same."""
    draw = np.random.default_rng(0)
    for _ in range(_TURNS if count > 1 else 0):
        for row in np.array_split(draw.permutation(count), -(-count // _SIDE)):
            yield tuple(row.tolist())


def _ranked(heard: defaultdict[int, _Heard]) -> list[tuple[int, Vote]]:
    """Spans of all indexes, the best first; of equal ones that of the earlier index."""
    found = [(number, vote) for number in sorted(heard) for vote in heard[number].spans()]
    return sorted(found, key=lambda pair: -pair[1].score)


def _best(heard: defaultdict[int, _Heard], most: int) -> list[int]:
    """The indexes with the best spans, at most so many."""
    return list(dict.fromkeys(number for number, _ in _ranked(heard)))[:most]
