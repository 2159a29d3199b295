"""One of several options chosen by Tem-Adapter on frozen features (arXiv 2308.08414)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.encoders.heads import TemAdapter, get_head
from vidllm.encoders.heads.sentences import SentenceEncoder
from vidllm.errors import InputError
from vidllm.errors.bounds import short

from ..engine import Decoded
from ..question import unknown_words
from .asked import choice_asked
from .frozen_frames import FrozenFrames
from .head_config import HeadConfig
from .system import HeadSystem

if TYPE_CHECKING:
    from vidllm.video import VideoClip


#: Questions of the stage language, and what an option {o} to each states.
_FORMS: tuple[tuple[str, str], ...] = (
    (r"what does (?P<who>.+) do after it (?P<what>.+)", "after {who} {what} it {o}"),
    (r"what does (?P<who>.+) do first", "{who} first {o}"),
    (r"what does (?P<who>.+) do", "{who} {o}"),
    (r"what colour is (?P<who>the \w+) that (?P<what>.+)", "the {o} {noun} {what}"),
    (r"which colour does (?P<who>.+) change to", "{who} changes colour to {o}"),
    (r"how many times does (?P<who>.+)", "{o} times {who}"),
    (r"how many objects (?P<what>.+)", "{o} objects {what}"),
    (r"what happens (?P<what>first|last)", "{what} {o}"),
    (r"(?:what|which object) (?P<what>.+)", "{o} {what}"),
    (r"where does (?P<who>.+)", "{who} {o}"),
)


class OptionChooser(HeadSystem):
    """Chooses among the options of a question: each states something that fits the clip or not."""

    course: ClassVar[str] = "choice"

    def __init__(
        self,
        config: HeadConfig,
        frozen: FrozenFrames | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(config, frozen, tokenizer)
        self.text = SentenceEncoder(**config.text)
        options = dict(config.head)
        self.head = cast(TemAdapter, get_head(options.pop("name"), **options))

    def see(self, clip: VideoClip) -> Tensor:
        """(T, D): one feature a frame."""
        return self.frozen.of_clip(clip)

    def states(self, ids: Tensor, real: Tensor) -> Tensor:
        """Statements (…, W) to vectors (…, D) of the length that the head's products expect."""
        rows = self.text(ids.flatten(0, -2), real.flatten(0, -2)).unflatten(0, ids.shape[:-1])
        return F.layer_norm(rows, rows.shape[-1:])

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch, and its accuracy (no gradient).

        Args:
            batch: `video` (B, T, D), `mask` (B, T); `ids`, `real` (B, K, W) words of statements;
                `answer` (B,).
        """
        rows, there = self.states(batch["ids"], batch["real"]), batch["real"].any(-1)
        video, mask = _unit(batch["video"]), batch["mask"]
        hinge, error = self.head.losses(video, rows, batch["answer"], mask, there)
        total = self.head.rank_weight * hinge + error
        with torch.no_grad():
            best = self.head.scores(video, rows, mask, there).argmax(1)
            right = (best == batch["answer"]).float().mean()
        return {"total": total, "hinge": hinge, "error": error, "accuracy": right}

    @torch.no_grad()
    def scores(self, video: Tensor, statements: Sequence[str]) -> Tensor:
        """(K,) how well every statement fits features (T, D)."""
        ids, real = self.text.read(self.tokenizer, statements)
        rows = self.states(ids[None], real[None])
        with self.head.still():
            return self.head.scores(_unit(video[None]), rows)[0]

    def check(self, question: str) -> None:
        if not choice_asked(question).options:
            raise InputError(
                f"{self.config.recipe} chooses among options and says nothing else: write them "
                f"behind the question, as A. … B. …; this has none: {short(question)}"
            )

    def answer(self, seen: Tensor, clip: VideoClip, questions: Sequence[str]) -> list[Decoded]:
        found = []
        for question in questions:
            asked = choice_asked(question)
            said = [statement(asked.question, option) for option in asked.options]
            best = int(self.scores(seen, said).argmax())
            text = f"{asked.letters[best]}. {asked.options[best]}"
            words = unknown_words(cast(PreTrainedTokenizerBase, self.tokenizer), " ".join(said))
            found.append(Decoded(text, (), text, words))
        return found


def _unit(video: Tensor) -> Tensor:
    """Features of unit variance, so that inner products and errors have one size."""
    return F.layer_norm(video.float(), video.shape[-1:])


def statement(question: str, option: str) -> str:
    """What an option states as the answer to a question, as one sentence.

    Tem-Adapter (arXiv 2308.08414) fuses question and option so, for text encoders that learned from
    statements. "does … ?" takes yes or no behind what it asks; other questions, which this language
    does not have, are followed by the option.
    """
    asked = " ".join(re.sub(r"\s*[?.]\s*$", "", question.strip().lower()).split())
    said = " ".join(option.strip().lower().split())
    for form, fused in _FORMS:
        if found := re.fullmatch(form, asked):
            parts = found.groupdict()
            noun = parts.get("who", "").removeprefix("the ")
            return fused.format(**parts, o=said, noun=noun)
    return f"{asked} {said}"
