"""Answers from an index: windows first, then a closer look, within a fixed number of tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.models.answer import Answer, Receipt
from vidllm.models.cost.flops import kv_bytes_per_token
from vidllm.models.engine import USUAL_ANSWER, one_at_a_time
from vidllm.models.question import PROMPTS, prompt_ids, unknown_words
from vidllm.progress import Stopwatch
from vidllm.timecode import Span
from vidllm.timecode.clock import clock

from .choosing import LOOKS, Vote, elected, grouped
from .finishing import compressed
from .marks import method_of
from .scan import ROWS, Batch, WindowAnswer, ask_batch
from .windows import LEVELS, Cuts, on_screen

if TYPE_CHECKING:
    from vidllm.models.native.engine import NativeEngine


KEPT_BYTES = 512e6  # of windows' caches that stay for the next question
_ALSO = 0.5  # further spans are told from this share of the best one's score
_BEST = 4  # windows that a question without a time looks at again
#: Share of the windows that name a time from which a question asks for one: windows that do not
#: show what is asked for break off ("from no ."), and to other questions none names a time.
_TIMED = 0.1


class IndexContents(Protocol):
    """What is read of an index, see `VideoIndex`."""

    facts: dict[str, Any]

    @property
    def duration(self) -> float: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def frames(self) -> tuple[np.ndarray, Tensor]: ...

    def tensor(self, name: str) -> Tensor: ...


def stretch_of(index: IndexContents, start: float | None, end: float | None) -> tuple[float, float]:
    """Where a stretch begins and ends, in seconds; None for where the index does.

    Raises:
        InputError: a range outside what is indexed.
    """
    begin = 0.0 if start is None else float(start)
    stop = index.duration if end is None else float(end)
    if not 0 <= begin < min(stop, index.duration) or stop > index.duration + 1:
        raise InputError(
            f"start and end must lie in the {clock(index.duration)} that are indexed, "
            f"start first: got {begin:g} and {stop:g}"
        )
    return begin, min(stop, index.duration)


def asks_for_time(said: Sequence[WindowAnswer]) -> bool:
    """Whether a question is one for a time, by what every window says to it."""
    timed = [told for told in said if told.times is not None]
    return len(timed) >= _TIMED * len(said) and any(told.score > 0 for told in timed)


class Reader:
    """Asks the windows of an index, and clips cut from it.

    Args:
        index: the index. engine: the model that made it; whatever compressor it has, clips are
            compressed as the index was.

    Raises:
        InputError: the index's compressor cannot be made.
    """

    def __init__(self, index: IndexContents, engine: NativeEngine) -> None:
        self.index, self.engine, self.model = index, engine, engine.model
        self.method = method_of(index.facts["compressor"], engine)
        self.seconds, self.row = index.frames()
        self.tokens = index.tensor("tokens")
        self.cells = self.tokens.shape[1]
        self.mix = not index.facts["carried"]
        self.levels: list[tuple[np.ndarray, Batch]] = []
        self._kept: dict[int, list[Batch]] = {}
        for at, level in enumerate(index.facts["levels"]):
            batch = Batch(
                index.tensor(f"features.{at}"),
                index.tensor(f"span.{at}"),
                index.tensor(f"position.{at}"),
                level["length"],
                level["frames"] * self.cells,
            )
            self.levels.append((index.tensor(f"start.{at}").numpy(), batch))

    @property
    def worked_on(self) -> nn.Module:
        """The model, which one thread asks at a time."""
        return self.model

    @one_at_a_time
    def ground(self, prompt: str) -> Answer:
        """A prompt that asks for a time."""
        watch = Stopwatch()
        head, tail = self._prompt(prompt)
        with watch.stage("scan"):
            votes = [vote for vote, _ in self._scan(head, tail)]
        return self._grounded(prompt, head, tail, votes, watch)

    @one_at_a_time
    def ask(self, question: str) -> Answer:
        """Any question; see `VideoIndex.ask`."""
        watch = Stopwatch()
        head, tail = self._prompt(question)
        with watch.stage("scan"):
            said = self._scan(head, tail, timed=False)
        votes = [vote for vote, _ in said]
        if asks_for_time([told for _, told in said]):
            return self._grounded(question, head, tail, votes, watch)
        return self._told(question, head, tail, said, watch)

    def _prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Ids before and after the video. Raises InputError where a window has no room beside."""
        head, tail = prompt_ids(self.engine.tokenizer, question)
        most = max((batch.total for _, batch in self.levels), default=0)
        whole = max(most, self.engine.usual_frames * self.cells)
        self.engine.check_prompts([(head, tail)], whole, USUAL_ANSWER)
        return head, tail

    @one_at_a_time
    def caption(self, start: float | None, end: float | None) -> Answer:
        """Captions of a stretch, in pieces as long as the windows."""
        begin, stop = stretch_of(self.index, start, end)
        watch, texts, raws = Stopwatch(), [], []
        spans: list[Span] = []
        head, tail = prompt_ids(self.engine.tokenizer, PROMPTS["caption"])
        count = max(1, round((stop - begin) / LEVELS[0]))
        edges = np.linspace(begin, stop, count + 1)
        read = 0
        with watch.stage("look"):
            for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                cuts = Cuts(((low, high),))
                batch = self._clip(cuts)
                read += batch.features.shape[1]
                told = ask_batch(
                    self.model, batch, head, tail, self.engine.tokenizer, most=128, timed=False
                )[0]
                raw = str(self.engine.tokenizer.decode(told.ids)).strip()
                raws.append(raw)
                for span, sentence in self.engine.code.captions(raw, cuts.length):
                    first, last = cuts.back(span.start, span.end)
                    spans.append(Span(first, last, told.sure))
                    texts.append(f"from {first:.1f} s to {last:.1f} s {sentence}")
        pieces = "1 piece" if count == 1 else f"{count} pieces"
        notes = (f"looked at {pieces} of {edges[1] - edges[0]:.0f} s",)
        return self._answer(" ".join(texts), spans, watch, read, "\n".join(raws), notes)

    def look(self, cuts: Cuts, head: Sequence[int], tail: Sequence[int]) -> tuple[int, Vote | None]:
        """Look closely at some pieces: tokens that were read, and the span that is said."""
        batch = self._clip(cuts)
        told = ask_batch(self.model, batch, head, tail, self.engine.tokenizer)[0]
        if told.times is None:
            return batch.features.shape[1], None
        inside = self.vote(0.0, cuts.length, told)
        return batch.features.shape[1], Vote(cuts.back(*inside.span), inside.score)

    def _scan(
        self, head: Sequence[int], tail: Sequence[int], timed: bool = True
    ) -> list[tuple[Vote, WindowAnswer]]:
        """What every window says, with its span in the video (the window, if it says none)."""
        found = []
        for starts, batch in self.levels:
            keep = self._keeps(batch)
            if not keep:
                said = ask_batch(self.model, batch, head, tail, self.engine.tokenizer, timed=timed)
            else:
                said = []
                for part in self._parts(batch):
                    said += ask_batch(
                        self.model, part, head, tail, self.engine.tokenizer, timed=timed, keep=True
                    )
            for start, told in zip(starts.tolist(), said, strict=True):
                found.append((self.vote(start, float(batch.length), told), told))
        return found

    def _keeps(self, batch: Batch) -> bool:
        """Whether the caches of all windows are small enough to stay."""
        size = kv_bytes_per_token(self.model.language_model.config, 4)
        tokens = sum(b.features.shape[0] * b.features.shape[1] for _, b in self.levels)
        return tokens * size <= KEPT_BYTES

    def _parts(self, batch: Batch) -> list[Batch]:
        """A level as batches that remember their caches."""
        if id(batch) not in self._kept:
            self._kept[id(batch)] = [
                batch.rows(slice(at, at + ROWS)) for at in range(0, len(batch.features), ROWS)
            ]
        return self._kept[id(batch)]

    def vote(self, start: float, length: float, told: WindowAnswer) -> Vote:
        """The span that a window says, in seconds of the video; the window if it says none."""
        if told.times is None:
            return Vote((start, start + length), 0.0)
        last = self.model.config.time_tokens - 1
        low, high = sorted(start + t / last * length for t in told.times)
        return Vote((low, high), told.score)

    def _grounded(
        self,
        prompt: str,
        head: Sequence[int],
        tail: Sequence[int],
        votes: Sequence[Vote],
        watch: Stopwatch,
    ) -> Answer:
        voted = [vote for vote in votes if vote.score > 0]
        read = sum(b.features.shape[0] * b.features.shape[1] for _, b in self.levels)
        notes = [self._looked()]
        if not voted:
            notes.append("no window names a span of time")
            return self._answer("", [], watch, read, "", tuple(notes), failed=True)
        groups = grouped(voted)
        looks: list[Cuts] = []
        with watch.stage("look"):
            for count, margin in LOOKS:
                spans = [group.span for group in groups[:count]]
                cuts = Cuts.around(spans, margin, self.index.duration)
                if cuts in looks or (len(cuts.pieces) == 1 and len(groups) > 1 and looks):
                    continue
                looks.append(cuts)
                seen, vote = self.look(cuts, head, tail)
                read += seen
                voted += [] if vote is None else [vote]
        widest = max(looks, key=lambda cuts: len(cuts.pieces))
        where = ", ".join(f"{clock(a)}–{clock(b)}" for a, b in widest.pieces)
        notes.append(f"then closely at {where}, in {len(looks)} cuts")
        won = elected(voted)
        best = [v for v in won if v.score >= _ALSO * won[0].score]
        found = [Span(v.span[0], v.span[1], v.score) for v in best]
        text = f"from {found[0].start:.1f} s to {found[0].end:.1f} s"
        notes += unknown_words(self.engine.tokenizer, prompt)
        return self._answer(text, found, watch, read, text, tuple(notes))

    def _told(
        self,
        question: str,
        head: Sequence[int],
        tail: Sequence[int],
        said: Sequence[tuple[Vote, WindowAnswer]],
        watch: Stopwatch,
    ) -> Answer:
        """A question without a time: the surest windows, seen together, have the last word."""
        read = sum(b.features.shape[0] * b.features.shape[1] for _, b in self.levels)
        ranked = sorted(said, key=lambda pair: -pair[1].sure)
        words: defaultdict[str, float] = defaultdict(float)
        for _, told in ranked[: 2 * _BEST]:
            words[self._words(told)] += told.sure
        with watch.stage("look"):
            spans = [vote.span for vote, _ in ranked[:_BEST]]
            cuts = Cuts.around(spans, 0.0, self.index.duration)
            batch = self._clip(cuts)
            read += batch.features.shape[1]
            told = ask_batch(self.model, batch, head, tail, self.engine.tokenizer, timed=False)[0]
        words[self._words(told)] += _BEST / 2 * told.sure
        text = max(words, key=lambda word: words[word])
        where = ", ".join(f"{clock(a)}–{clock(b)}" for a, b in cuts.pieces)
        notes = (self._looked(), f"then again at {where}",
                 *unknown_words(self.engine.tokenizer, question))  # fmt: skip
        return self._answer(text, [], watch, read, text, notes)

    def _words(self, told: WindowAnswer) -> str:
        text = str(self.engine.tokenizer.decode(told.ids, skip_special_tokens=True)).strip()
        return text or "nothing"

    @torch.inference_mode()
    def _clip(self, cuts: Cuts) -> Batch:
        """A clip of the pieces, of as many frames as the model takes, as the decoder sees it."""
        count = min(self.engine.usual_frames, max(1, round(cuts.length * self.index.facts["fps"])))
        moments, piece = cuts.moments(count)
        frames, told = self.at(moments)
        return self.made(frames, cuts.joined(told, piece), cuts.length)

    def at(self, moments: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Tokens (T, N, D) of the frames on the screen at some seconds, and their own seconds."""
        facts = self.index.facts
        chosen, told = on_screen(self.seconds, moments, 1 / facts["fps"], facts["lost"])
        return self.tokens[self.row[torch.from_numpy(chosen)].long()].float(), told

    def made(self, frames: Tensor, seconds: np.ndarray, length: float) -> Batch:
        """Frames at seconds of a clip of `length` seconds as a batch of one window."""
        tokens = compressed(self.engine, self.method, frames, seconds, length, mix=self.mix)
        return Batch(
            tokens.features[None],
            tokens.span[None].float(),
            tokens.position[None],
            length,
            len(frames) * self.cells,
        )

    def _looked(self) -> str:
        parts = [
            f"{len(starts)} windows of {clock(float(batch.length))} "
            f"({batch.features.shape[1]} tokens each)"
            for starts, batch in self.levels
        ]
        return f"looked at {' and '.join(parts)}"

    def _answer(
        self,
        text: str,
        spans: Sequence[Span],
        watch: Stopwatch,
        read: int,
        raw: str,
        notes: tuple[str, ...],
        failed: bool = False,
    ) -> Answer:
        size = kv_bytes_per_token(self.model.language_model.config, 4) / 1e6
        full = len(self.seconds) * self.cells
        receipt = Receipt(
            len(self.seconds),
            full,
            read,
            full * size,
            read * size,
            dict(watch.seconds),
            method=self.method.name,
            model=self.engine.name,
        )
        return Answer(text, tuple(spans), receipt, raw, failed, (*self.index.notes, *notes))
