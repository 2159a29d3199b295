"""From a clip's tokens to answers: the native model's half of `VideoLLM` behind the encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.cost.flops import kv_bytes_per_token
from vidllm.cost.spending import Spending
from vidllm.errors import WorkError
from vidllm.errors.bounds import check as check_number
from vidllm.models.answer import Answer, Receipt, shift_seconds
from vidllm.models.locks import one_at_a_time
from vidllm.models.native.model import NativeConfig, NativeVideoLLM
from vidllm.models.native.prompt import prompt_ids, unknown_words
from vidllm.models.question import check_room, longest, positions_of
from vidllm.progress import check
from vidllm.progress.stopwatch import Stopwatch
from vidllm.timecode import Span, TimeCode, unfinished
from vidllm.tokens import TokenMap, VideoTokens
from vidllm.video import VideoClip

from .answering import Prompt, Record, by_question, check_serves, reply
from .asking import Asked, Choices
from .encode import Memory, slot_seconds, window
from .wording import Letters, letter_scores, letters_of, scored_spans, whole_times

#: Tokens of an answer at most, if nobody says.
USUAL_ANSWER = 128


class Replying(Asked):
    """Base of `VideoLLM`: everything from `encode` to an answer."""

    model: NativeVideoLLM
    tokenizer: PreTrainedTokenizerBase
    config: NativeConfig
    code: TimeCode
    memory: Memory
    spending: Spending

    @property
    def worked_on(self) -> nn.Module:
        """The module whose layers are worked on, by one thread at a time."""
        return self.model

    @one_at_a_time
    def answer(
        self,
        clip: VideoClip,
        tokens: VideoTokens,
        duration: float,
        questions: Sequence[str],
        *,
        compressor: Compressor | None = None,
        watch: Stopwatch | None = None,
        max_new_tokens: int | None = None,
        choices: Choices = None,
    ) -> list[Answer]:
        """The second half of `ask`: from the tokens of `encode` to answers.

        For those who encode a clip once and compress it in several ways.

        Args:
            clip, tokens, duration: a clip and what `encode` made of it.
            questions: at least one.
            compressor: instead of the model's own.
            watch: where the seconds of the stages so far are kept; the receipt shows them too,
                and its listener hears of the stages to come.
            max_new_tokens, choices: as for `ask`.

        Raises:
            InputError: an empty question, or one with control tokens.
        """
        watch = watch or Stopwatch()
        prompts = [prompt_ids(self.tokenizer, q) for q in questions]
        heads = {tuple(head) for head, _ in prompts}
        if len(heads) != 1:
            raise WorkError("the chat template puts different text before the video")
        method = compressor or self.compressor
        check_serves(self.model, method)
        letters = letters_of(questions, choices)
        tails = [tail for _, tail in prompts]
        # A method that reads the question makes other tokens of the video for every question.
        groups = [[i] for i in range(len(tails))] if by_question(method) else [range(len(tails))]
        stamps = self._stamps(clip, tokens, duration)
        beside = sum(map(len, stamps or ()))
        self.check_prompts(
            prompts, math.prod(tokens.grid) + beside, self.longest_answer(max_new_tokens)
        )
        asked = Prompt(prompts[0][0], tails, tokens, duration, stamps)
        answers: list[Answer] = []
        for group in groups:
            answers += self._reply(
                clip,
                replace(asked, tails=[tails[i] for i in group]),
                [questions[i] for i in group],
                [letters[i] for i in group],
                method,
                watch.copy(),  # reading the video counts for every group
                self.longest_answer(max_new_tokens),
                dict.fromkeys(watch.seconds, len(tails)),
            )
        return answers

    def longest_answer(self, max_new_tokens: int | None) -> int:
        """Tokens of an answer at most. Raises InputError for a number that cannot be."""
        if max_new_tokens is None:
            return USUAL_ANSWER
        check_number("max_new_tokens", max_new_tokens)
        return int(max_new_tokens)

    def check_prompts(
        self, prompts: Sequence[tuple[Sequence[int], Sequence[int]]], video: int, answer: int
    ) -> None:
        """See that prompts (ids before and after the video) have room beside a video.

        Args:
            video: positions that it takes. answer: tokens of the longest answer.

        Raises:
            InputError: one has not; the line counts.
        """
        text, question = longest(prompts)
        check_room(
            positions_of(self.model.language_model.config),
            text=text,
            video=video,
            answer=answer,
            question=question,
            sentence=self.config.reads_sentences,
        )

    def _reply(
        self,
        clip: VideoClip,
        prompt: Prompt,
        questions: Sequence[str],
        letters: Sequence[Letters],
        method: Compressor,
        watch: Stopwatch,
        most: int,
        shared_by: Mapping[str, int],
    ) -> list[Answer]:
        """Answers to questions that are asked together.

        `shared_by` names the stages that are over, and how many answers share each.
        """
        tokens, record = prompt.tokens, Record(self._hear(watch, clip, prompt.duration))
        replies, kept, cached = reply(
            self.model,
            prompt,
            method,
            watch,
            max_new_tokens=most,
            eos=int(self.tokenizer.eos_token_id),
            record=record,
        )
        size = kv_bytes_per_token(self.model.language_model.config, tokens.features.element_size())
        receipt = Receipt(
            len(clip),
            tokens.total,
            len(kept),
            tokens.total * size / 1e6,
            cached * size / 1e6,
            dict(watch.seconds),
            shared_by={**dict.fromkeys(watch.seconds, len(replies)), **shared_by},
        )
        there = TokenMap.of(kept, self._slots(clip, tokens))
        beside = len(prompt.head) + sum(map(len, prompt.stamps or ()))
        answers = []
        for row, said in enumerate(replies):
            flops = self.spending.flops(
                len(clip),
                tokens.grid,
                record.counts,
                beside + len(prompt.tails[row]),
                min(most, len(said) + 1),  # what ended it was a token too
                apart=record.apart[row],
                vision=self.memory.flops(tokens),
            )
            answer = self._answer(
                questions[row],
                said,
                clip,
                prompt.duration,
                replace(receipt, flops=flops),
                record.scores[row],
            )
            told = letter_scores(self.tokenizer, letters[row], record.first[row])
            answers.append(replace(answer, letters=told, kept=there))
        return answers

    def _hear(
        self, watch: Stopwatch, clip: VideoClip, duration: float
    ) -> Callable[[list[list[int]]], None] | None:
        """What is to be done behind every decode step: tell the listener, or stop."""
        listener, origin = watch.listener, window(self.config, clip)[0]
        if listener is None:
            return None

        def hear(replies: list[list[int]]) -> None:
            check(listener)
            raw = str(self.tokenizer.decode(replies[0], skip_special_tokens=False))
            said = self.code.readable(whole_times(raw), duration)
            listener.text(shift_seconds(said, origin))

        return hear

    def _slots(self, clip: VideoClip, tokens: VideoTokens) -> np.ndarray:
        """(T,) seconds of the video at which the slots of uncompressed tokens are."""
        if tokens.grid[0] == len(clip):
            return clip.seconds
        return slot_seconds(tokens) + window(self.config, clip)[0]

    @one_at_a_time
    def encode(
        self,
        clip: VideoClip,
        watch: Stopwatch | None = None,
        compressors: Sequence[Compressor] = (),
    ) -> tuple[VideoTokens, float]:
        """Video tokens of a clip before compression, and the seconds that they are relative to.

        Nothing merges inside the vision tower here, so that any method may act on the tokens.

        `compressors` are those that will act on the tokens beside the model's own: the signals
        that they read are collected too, as far as the vision tower gives them.
        """
        with (watch or Stopwatch()).stage("encode"):
            tokens, _ = self.memory.see(clip, (self.compressor, *compressors))
        return tokens, window(self.config, clip)[1]

    def compress(
        self,
        tokens: VideoTokens,
        watch: Stopwatch | None = None,
        compressor: Compressor | None = None,
    ) -> VideoTokens:
        """What the model's compressors, or another one, leave of the tokens before the decoder."""
        with (watch or Stopwatch()).stage("compress"):
            return (compressor or self.compressor).before_decoder(tokens)[0]

    def _stamps(
        self, clip: VideoClip, tokens: VideoTokens, duration: float
    ) -> list[list[int]] | None:
        if not self.config.stamps:
            return None
        seconds = self._slots(clip, tokens) - window(self.config, clip)[0]
        texts = self.code.stamps(seconds, duration)
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(row) for row in ids]

    def _answer(
        self,
        question: str,
        reply: Sequence[int],
        clip: VideoClip,
        duration: float,
        receipt: Receipt,
        scores: Sequence[float] = (),
    ) -> Answer:
        def decode(ids: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

        raw, origin = decode(reply).strip(), window(self.config, clip)[0]
        found = scored_spans(self.code.find(raw, duration), reply, scores, decode, self.code)
        spans = tuple(Span(s.start + origin, s.end + origin, s.score) for s in found)
        text = shift_seconds(self.code.readable(raw, duration), origin)
        notes = (*clip.notes, *unknown_words(self.tokenizer, question), *unfinished(raw))
        return Answer(text, spans, receipt, raw, notes=notes)
