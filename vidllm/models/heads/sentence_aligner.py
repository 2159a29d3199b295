"""Sentences aligned with a clip's seconds: NaSVA on frozen features (arXiv 2312.14055)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.encoders.heads import NaSVA, get_head
from vidllm.encoders.heads.alignment import inside
from vidllm.encoders.heads.sentences import SentenceEncoder
from vidllm.errors import InputError

from ..engine import Decoded
from ..question import unknown_words
from .asked import Moment, moment_asked
from .frozen_frames import FrozenFrames
from .head_config import HeadConfig
from .system import HeadSystem

if TYPE_CHECKING:
    from vidllm.video import VideoClip


class SentenceAligner(HeadSystem):
    """Says when a sentence happens: one feature a second, sentences as queries over them.

    Questions for one second ("at which second …") that are asked together are read as a narration:
    in their order, each beside the others. Every other question stands alone.
    """

    course: ClassVar[str] = "alignment"

    def __init__(
        self,
        config: HeadConfig,
        frozen: FrozenFrames | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(config, frozen, tokenizer)
        self.text = SentenceEncoder(**config.text)
        options = dict(config.head)
        self.head = cast(NaSVA, get_head(options.pop("name"), **options))

    def see(self, clip: VideoClip) -> Tensor:
        """(T, D): one feature a frame."""
        return self.frozen.of_clip(clip)

    def sentences(self, texts: Sequence[str]) -> Tensor:
        """Texts to vectors (S, D)."""
        return cast(Tensor, self.text(*self.text.read(self.tokenizer, texts)))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch, and R@1 of its sentences in `recall` (no gradient).

        Args:
            batch: `video` (B, T, D), `mask` (B, T), `seconds` (B, T); `ids`, `real` (B, S, W) words
                of sentences, `windows` (B, S, 2) seconds or NaN; `ordered` (1,) bool.
        """
        ids, real = batch["ids"], batch["real"]
        there = real.any(-1)
        rows = self.text(ids.flatten(0, 1), real.flatten(0, 1)).unflatten(0, ids.shape[:2])
        positive = inside(batch["seconds"], batch["windows"])
        given = (batch["mask"], there, batch["seconds"])
        ordered = bool(batch["ordered"]) and self.head.order
        total, score = self.head.loss_and_scores(
            batch["video"], rows, positive, *given, ordered=ordered
        )
        with torch.no_grad():
            hit = positive.gather(2, score.argmax(2, keepdim=True))[..., 0]
            told = there & positive.any(2)
            recall = hit[told].float().mean()
        return {"total": total, "recall": recall}

    def _asked(self, question: str) -> Moment:
        return moment_asked(question, self.config.recipe)

    def check(self, question: str) -> None:
        asked = self._asked(question)
        ids, _ = self.text.read(self.tokenizer, [asked.sentence])
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if all(number == unknown for number in ids[0].tolist()):
            raise InputError(f"{self.config.recipe} knows no word of this: {asked.sentence[:80]}")

    @torch.no_grad()
    def answer(self, seen: Tensor, clip: VideoClip, questions: Sequence[str]) -> list[Decoded]:
        asked = [self._asked(question) for question in questions]
        told = [k for k, one in enumerate(asked) if one.one_second]
        found: dict[int, Decoded] = {}
        if told:
            rows = self.sentences([asked[k].sentence for k in told])
            ordered = bool(self.head.order and 1 < len(told) <= self.head.options["max_sentences"])
            score = self.best_seconds(seen, clip.seconds.tolist(), rows, ordered=ordered)
            for k, (second, _) in zip(told, score, strict=True):
                text = f"{second:.1f} s"
                found[k] = Decoded(text, (), text, self._notes(asked[k]))
        for k, one in enumerate(asked):
            if k not in found:
                end = clip.duration if clip.end is None else min(clip.end, clip.duration)
                (span,) = self.head.ground(
                    seen, clip.seconds.tolist(), self.sentences([one.sentence]),
                    duration=max(end, float(clip.seconds[-1])), ordered=False,
                )  # fmt: skip
                text = f"from {span.start:.1f} s to {span.end:.1f} s"
                found[k] = Decoded(text, (span,), text, self._notes(one))
        return [found[k] for k in range(len(asked))]

    @torch.no_grad()
    def choose(self, clip: VideoClip, sentence: str, frames: int) -> VideoClip:
        """The frames of a clip that fit a sentence best, in time order, for a model that sees few.

        Args:
            clip: a frame a second, as `load_video(path, fps=1)` gives it. frames: how many stay.

        Raises:
            InputError: fewer than one frame.
        """
        seen, seconds = self.see(clip), clip.seconds.tolist()
        kept = self.head.select(seen, seconds, self.sentences([sentence]), frames).cpu().numpy()
        return replace(
            clip,
            frames=clip.frames[kept],
            seconds=clip.seconds[kept],
            indices=clip.indices[kept],
        )

    @torch.no_grad()
    def best_seconds(
        self, seen: Tensor, seconds: Sequence[float], rows: Tensor, *, ordered: bool
    ) -> list[tuple[float, float]]:
        """The best second of every sentence and its cosine.

        Args:
            seen: (T, D). seconds: of these. rows: (S, D) sentences. ordered: they are a narration.
        """
        times = torch.tensor(list(seconds), device=seen.device)
        with self.head.still():
            score = self.head.similarity(
                seen[None], rows[None], seconds=times[None].float(), ordered=ordered
            )[-1, 0]
        best = score.argmax(1)
        value = score.gather(1, best[:, None])[:, 0] * self.head.temperature
        return [(float(seconds[k]), float(v)) for k, v in zip(best.tolist(), value, strict=True)]

    def _notes(self, asked: Moment) -> tuple[str, ...]:
        return unknown_words(cast(PreTrainedTokenizerBase, self.tokenizer), asked.sentence)


class SecondsByQuestion:
    """An aligner as the compressor `nasva` asks it: seconds scored by the words of a question.

    The words are found again by their embeddings, which those of the aligner began as.

    Args:
        system: trained on what the model that is compressed gives its compressors: `reads` is
            "mixed", and that model is the one that it stands on.

    Raises:
        InputError: it reads something else.
    """

    def __init__(self, system: SentenceAligner) -> None:
        if system.config.reads != "mixed":
            raise InputError(
                f"{system.config.recipe} reads {system.config.reads!r}, and compressors see tokens "
                "behind the temporal encoders: train it with reads='mixed'"
            )
        self.system = system
        self.words = system.frozen.words()

    def of_tokens(self, features: Tensor) -> Tensor:
        """(L, D) of unit variance, as `FrozenFrames` averages them."""
        return F.layer_norm(features.float(), features.shape[-1:])

    @torch.no_grad()
    def relevance(self, video: Tensor, seconds: Tensor, query: Tensor) -> Tensor:
        """(T,) scores of features (T, D) at seconds (T,) for word embeddings (Q, D)."""
        text, head = self.system.text, self.system.head
        own = text.table.weight
        ids = torch.cdist(query.to(own), self.words.to(own)).argmin(1)
        special = torch.tensor(self.system.tokenizer.all_special_ids, device=ids.device)  # type: ignore[union-attr]
        ids = ids[~torch.isin(ids, special)][: text.most][None]  # marks of turns are no words
        rows = text(ids, torch.ones_like(ids, dtype=torch.bool))
        return head.relevance(video.to(own), seconds, rows)
