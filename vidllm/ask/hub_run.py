"""A prompt about a clip through a hub model: timed by stages, scored, heard, and stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from vidllm.cost.spending import Counts
from vidllm.models.hooks.pruning import bare
from vidllm.models.hooks.state import Report
from vidllm.progress import check
from vidllm.progress.stopwatch import Stopwatch
from vidllm.tokens import Keep, VideoTokens

from .compression import Compression
from .hub_encode import Eyes, Seen, wait


@dataclass
class Said:
    """What came of a prompt.

    Attributes:
        ids: of the answer. scores: their natural log-probabilities, none where nobody looked.
        first: (V,) log-probabilities of the first token.
        tokens: what the LLM's last layers had of the video, its books without features.
        counts: where in the decoder how many video tokens were. text: other tokens of the prompt.
    """

    ids: list[int]
    scores: list[float]
    first: Tensor
    tokens: VideoTokens | None
    counts: Counts
    text: int


class _Hearing(StoppingCriteria):
    """Beside `generate`: times its stages, scores its tokens, tells and asks the listener."""

    def __init__(self, c: Compression, watch: Stopwatch, tokenizer: Any, start: int) -> None:
        self.session, self.watch, self.tokenizer, self.start = c._session, watch, tokenizer, start
        self.first = self.last = torch.empty(0)
        self.scores: list[Tensor] = []
        self.tokens: VideoTokens | None = None
        self.entering = 0
        self.began = time.perf_counter()
        self.prefilled: float | None = None

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Hooks on the model, and off again whatever happens."""
        decoder = self.session.decoder
        handles = [
            model.register_forward_hook(self._called),
            # Before the session's own, which closes its books.
            decoder.register_forward_hook(self._read, prepend=True),
            self.session.layers[0].register_forward_pre_hook(self._starts),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _starts(self, *_: Any) -> None:
        if self.prefilled is None and not self.entering:
            self.watch.begin("prefill")

    def _read(self, *_: Any) -> None:
        call = self.session.call
        if call is not None:
            self.entering = len(call.after[0])
            run = call.after[0] if call.pruner is None else call.pruner.runs[0].tokens
            self.tokens = bare(run)

    def _called(self, model: Any, _args: Any, output: Any) -> None:
        self.last = output.logits[0, -1].float()
        if self.prefilled is None:
            wait(model)
            self.first = torch.log_softmax(self.last, dim=-1)
            self.ends()
            self.watch.begin("generate")

    def ends(self) -> None:
        """The prefill is done."""
        self.prefilled = time.perf_counter()
        report = self.session.report
        chosen = 0.0 if report is None else report.seconds
        self.watch.add("compress", chosen)
        self.watch.add("prefill", max(0.0, self.prefilled - self.began - chosen))

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Behind every token."""
        self.scores.append(torch.log_softmax(self.last, dim=-1).gather(0, input_ids[0, -1:]))
        listener = self.watch.listener
        if listener is not None:
            check(listener)
            said = self.tokenizer.decode(input_ids[0, self.start :], skip_special_tokens=True)
            listener.text(str(said).rstrip("\ufffd").strip())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def left(self) -> VideoTokens | None:
        """What the last layers had of the video at the last step."""
        report = self.session.report
        if self.tokens is None or report is None or report.choice is None:
            return self.tokens
        chosen = report.choice.chosen[0]
        return self.tokens if chosen is None else self.tokens.apply(Keep(chosen))


def generate(
    eyes: Eyes,
    c: Compression,
    seen: Seen,
    ids: Tensor,
    watch: Stopwatch,
    tokenizer: Any,
    max_new_tokens: int,
) -> Said:
    """A greedy answer to a prompt (1, L).

    The seconds of compressing, of the prefill (the model's first call without it) and of the rest
    go to `watch` as "compress", "prefill" and "generate".

    Raises:
        Stopped: the watch's listener wanted the work to end.
    """
    model = eyes.model
    stop = model.generation_config.eos_token_id
    stop = tokenizer.eos_token_id if stop is None else stop
    pad = tokenizer.pad_token_id
    pad = (stop[0] if isinstance(stop, list) else stop) if pad is None else pad
    watch.begin("compress")
    hearing = _Hearing(c, watch, tokenizer, ids.shape[1])
    with hearing.attached(model):
        out = model.generate(
            **eyes.told(seen, c, ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=stop,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([hearing]),
        )
        wait(model)
    if hearing.prefilled is None:  # no call of the model at all
        hearing.ends()
    watch.add("generate", time.perf_counter() - cast(float, hearing.prefilled))
    scores = torch.cat(hearing.scores).tolist() if hearing.scores else []
    counts, text = _counts(c._session.report, hearing.entering)
    new = cast(list[int], out[0, ids.shape[1] :].tolist())
    return Said(new, scores, hearing.first, hearing.left(), counts, text)


def survey(eyes: Eyes, c: Compression, seen: Seen, ids: Tensor) -> VideoTokens:
    """What is left of the video of a prompt (1, L) when the decoder would begin; it does not."""
    found: list[VideoTokens] = []

    def enough(*_: Any) -> None:
        found.extend(c._session.call.after if c._session.call is not None else ())
        raise _Enough

    handle = c._session.decoder.register_forward_pre_hook(enough)
    try:
        eyes.model(**eyes.told(seen, c, ids))
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]


class _Enough(Exception):
    """Nothing more is wanted of this call."""


def _counts(report: Report | None, entering: int) -> tuple[Counts, int]:
    """Video tokens by layer, and the other tokens of the prompt."""
    if report is None:
        return Counts(0, 0, (), ()), 0
    text = report.prompt[0] - report.full
    layers = [len(rows[0]) - text for rows in report.rows]
    read: list[float] = [len(rows[0]) - text for rows in report.held]
    choice = report.choice
    if choice is not None and choice.history:
        steps = [len(rows[0]) - text for rows in choice.history]
        mean = sum(steps) / len(steps)
        read[choice.first :] = [mean] * (choice.depth - choice.first)
    return Counts(report.full, entering, layers, read), text
