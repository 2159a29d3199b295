"""What happens beside `generate` of a model from the hub: seconds, scores, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from vidllm.errors import InputError
from vidllm.progress import Stopwatch, check
from vidllm.tokens import Keep, VideoTokens

from ..dialogue import Dialogue
from ..engine import Counts
from ..hooks.pruning import bare
from ..hooks.session import Session
from ..hooks.state import Report
from .clips import device_of, wait


class GenerateSteps(StoppingCriteria):
    """Beside `generate`: times its stages, scores its tokens, tells and asks the listener."""

    def __init__(self, session: Session, watch: Stopwatch, tokenizer: Any, start: int) -> None:
        self.session, self.watch, self.tokenizer, self.start = session, watch, tokenizer, start
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


@contextmanager
def seeded(dialogue: Dialogue, model: Any) -> Iterator[None]:
    """Where tokens are drawn: from the seed, and with torch's own state as before afterwards."""
    if not dialogue.temperature:
        yield
        return
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(dialogue.seed)
        yield


class Enough(Exception):
    """Nothing more is wanted of this call."""


def report_of(session: Session) -> Report:
    """The account of the last prompt.

    Raises:
        InputError: none went through the session.
    """
    session.net.check()
    if session.report is None:
        raise InputError("no prompt went through the model's own forward pass: load it again")
    return session.report


def counts_of(report: Report, entering: int) -> tuple[Counts, int]:
    """Video tokens by layer, and the other tokens of the prompt."""
    text = report.prompt[0] - report.full
    layers = [len(rows[0]) - text for rows in report.rows]
    read: list[float] = [len(rows[0]) - text for rows in report.held]
    choice = report.choice
    if choice is not None and choice.history:
        steps = [len(rows[0]) - text for rows in choice.history]
        mean = sum(steps) / len(steps)
        read[choice.first :] = [mean] * (choice.depth - choice.first)
    return Counts(report.full, entering, layers, read), text
