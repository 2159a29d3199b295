"""The project's own model as an `Engine`: a clip's tokens, compressed, prefilled, and answered."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.encoders.vision import VisionEncoder
from vidllm.errors import InputError, WorkError
from vidllm.progress import Listener, Stopwatch, attentive, check
from vidllm.timecode import Span, get_timecode, unfinished
from vidllm.timecode.scoring import scored_spans, whole_times
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from ..answer import shift_seconds
from ..engine import (
    Counts,
    Decoded,
    Engine,
    Generation,
    TowerCounter,
    by_question,
    check_early,
    longest_answer,
    one_at_a_time,
    uncounted,
)
from ..hooks.cache import CacheChoice, decoder_layers, evict
from ..hooks.decoding import Trace, generate_from
from ..loading import choose_compressor, choose_device, choose_dtype, load_native
from ..question import PROMPTS, check_room, longest, positions_of, prompt_ids, unknown_words, wrap
from ..shipped import default_model
from .clip_memory import ClipMemory, NativeClip, slots_of, window
from .footage import KnownFootage, clip_pixels, load_known
from .model import NativeConfig, NativeVideoLLM

#: Said where another model is given for an index.
NOT_NATIVE = (
    "an index needs one of vidllm's own models with relative time tokens, such as the "
    "shipped one: leave out --model"
)


@dataclass(frozen=True)
class Prompt:
    """Ids before the video, the video tokens, and ids after it, one row a question.

    `stamps` are the ids written before every frame, or None; `duration` is in seconds.
    """

    head: Sequence[int]
    tails: Sequence[Sequence[int]]
    tokens: VideoTokens
    duration: float
    stamps: Sequence[Sequence[int]] | None = None


class Replies(NamedTuple):
    """The answers to a `Prompt`.

    Attributes:
        ids: new ids of every question. kept: the video tokens that were left in the end.
        cached: how many the KV cache held in the mean over the decoder's layers.
        counts: where in the decoder how many video tokens were.
        apart: for every question how many of its tokens were read behind the video's pass.
        trace: log-probabilities of what was answered.
    """

    ids: list[list[int]]
    kept: VideoTokens
    cached: float
    counts: Counts
    apart: list[int]
    trace: Trace


@torch.inference_mode()
def answer_prompt(
    model: NativeVideoLLM,
    prompt: Prompt,
    method: Compressor,
    watch: Stopwatch,
    *,
    max_new_tokens: int,
    eos: int,
    heard: Callable[[list[list[int]]], None] | None = None,
) -> Replies:
    """Answer the questions of a prompt; a method that reads the question gets one at a time.

    Args:
        heard: called behind every decode step with all new ids so far, a row a question.
    """
    tails = list(prompt.tails)
    with watch.stage("compress"):
        kept, late = method.before_decoder(prompt.tokens, _query(model, method, tails[0]))
    inside = late[0] if late and late[0][1] < len(kept) else None
    choice = None
    if inside is not None and inside[0].stage == "cache":  # at work while answering
        choice, inside = CacheChoice(*inside), None
    entering, depth, trace = len(kept), len(decoder_layers(model.language_model)), Trace(heard)
    with watch.stage("prefill"):
        if inside is None:
            prefix = model.prefill(prompt.head, kept, prompt.duration, prompt.stamps)
        else:
            prefix = model.prefill(
                prompt.head,
                kept,
                prompt.duration,
                prompt.stamps,
                tail=tails[0],
                method=inside[0],
                budget=inside[1],
            )
            tails = [tails[0][-1:]]
        layers: Sequence[float] = prefix.video_per_layer() or [entering] * depth
        if inside is not None:
            for method_behind, _ in late[1:]:
                prefix = evict(prefix, method_behind, kept, model.language_model)
    kept = prefix.kept or kept
    cached: Sequence[float] = prefix.video_per_layer() or layers
    with watch.stage("generate"):
        ids = generate_from(
            model.language_model,
            prefix,
            tails,
            max_new_tokens=max_new_tokens,
            eos=eos,
            choice=choice,
            trace=trace,
        )
    read = cached
    if choice is not None:
        kept, cached = choice.active(kept), choice.video_per_layer()
        step = sum(choice.read) / len(choice.read) if choice.read else entering  # of one step
        read = [entering] * choice.first + [step] * (depth - choice.first)
    counts = Counts(prompt.tokens.total, entering, layers, read)
    return Replies(ids, kept, sum(cached) / len(cached), counts, [*map(len, tails)], trace)


def _query(model: NativeVideoLLM, method: Compressor, tail: Sequence[int]) -> torch.Tensor | None:
    """(N, D) embeddings of a question for a method that reads it, else None."""
    if not method.query_aware:
        return None
    return model.embed_tokens(torch.tensor(list(tail), device=model.device))


class NativeEngine(Engine):
    """A model of this project, ready to be asked.

    Args:
        model, tokenizer: of it. compressors, keep, tokens: as for `loading.choose_compressor`.
        footage: what footage the model knows; None for a model that makes no claim.

    Raises:
        InputError: a method that the model cannot serve.
    """

    model: NativeVideoLLM
    config: NativeConfig
    family = "vidllm"
    writes_times = False

    def __init__(
        self,
        model: NativeVideoLLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        tokens: int | None = None,
        footage: KnownFootage | None = None,
    ) -> None:
        self.model, self.tokenizer, self.footage = model.eval(), tokenizer, footage
        self.config = model.config
        self.compressor = choose_compressor(self.config, compressors, keep, tokens)
        self.check_serves(self.compressor)
        options = {"n": self.config.time_tokens} if self.config.time_code == "relative" else {}
        self.code = get_timecode(self.config.time_code, **options)
        self.memory = ClipMemory(model)
        self._known: WeakKeyDictionary[VideoClip, bool] = WeakKeyDictionary()

    @classmethod
    def load(
        cls,
        folder: str | None = None,
        attn: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        seed: int = 0,
        **options: Any,
    ) -> NativeEngine:
        """From a folder, or the shipped default; `options` as for the class.

        Raises:
            WorkError: weights that cannot be loaded.
        """
        folder = str(default_model()) if folder is None else folder
        device = choose_device(None) if device is None else device
        dtype = choose_dtype(None, device) if dtype is None else dtype
        model, tokenizer = load_native(folder, attn)
        footage = load_known(folder, model.vision)
        nn.Module.to(model, device=device, dtype=dtype)
        torch.manual_seed(seed)
        return cls(model, tokenizer, footage=footage, **options)

    @property
    def worked_on(self) -> nn.Module:
        return self.model

    @property
    def usual_frames(self) -> int:
        """Frames that the model was trained with."""
        return self.config.frames

    @property
    def decoder_config(self) -> Any:
        return self.model.language_model.config

    def twin(self) -> NativeEngine:
        other = copy.copy(self)
        other.memory = ClipMemory(self.model)
        return other

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens of so many frames; a vision tower that sees time may make fewer."""
        return int(frames * self.model.grid_side**2)

    def words(self, task: str, query: str = "") -> str:
        return PROMPTS["caption"] if task == "caption" else wrap(task, query)

    def knows(self, clip: VideoClip) -> bool:
        if self.footage is None:
            return True
        if clip not in self._known:
            vision = self.model.vision
            pixels = clip_pixels(clip, vision.image_size)
            self._known[clip] = self.footage.knows(vision, pixels)
        return self._known[clip]

    def check_serves(self, method: Compressor) -> None:
        """Refuse a method that needs what the model cannot tell.

        Raises:
            InputError: with the needs that are missing.
        """
        missing = [need for need in method.needs if need not in self.model.provides]
        if missing:
            raise InputError(
                f"{method.name} needs {' and '.join(missing)}, which this model's vision tower "
                "does not give: choose a method without that need (vidllm list compressors)"
            )
        if method.late and method.late[0].follows:
            raise InputError(
                f"{method.name} keeps what a method between the decoder's layers kept: write for "
                f"example mustdrop-filter,{method.late[0].name}"
            )

    def check_questions(self, questions: Sequence[str], answer: int | None) -> None:
        prompts = [prompt_ids(self.tokenizer, text) for text in questions]
        self.check_prompts(prompts, 0, longest_answer(answer))

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
            positions_of(self.decoder_config),
            text=text,
            video=video,
            answer=answer,
            question=question,
            sentence=self.config.reads_sentences,
        )

    @contextmanager
    def at_work(self, method: Compressor, listener: Listener | None = None) -> Iterator[Compressor]:
        self.check_serves(method)
        with attentive(listener, self.model):
            yield method

    def check_room(
        self, clip: VideoClip, questions: Sequence[str], answer: int | None, times: bool = False
    ) -> int:
        if isinstance(self.model.vision, VisionEncoder):  # those may make fewer tokens
            return 0
        total = self.count(clip.height, clip.width, len(clip))
        prompts = [prompt_ids(self.tokenizer, text) for text in questions]
        self.check_prompts(prompts, total, longest_answer(answer))
        return total

    def encode(
        self, clip: VideoClip, work: Compressor, count_tower: TowerCounter = uncounted
    ) -> NativeClip:
        tokens, rest = self.memory.encode(clip, (), work, count_tower)
        slots = slots_of(self.config, clip, tokens)
        return NativeClip(tokens, rest or work, slots, self.memory.flops(tokens))

    @one_at_a_time
    def tokens(
        self, clip: VideoClip, compressors: Sequence[Compressor] = ()
    ) -> tuple[VideoTokens, float]:
        """Video tokens of a clip before compression, and the seconds that they are relative to.

        Nothing merges inside the vision tower here, so that any method may act on the tokens.

        `compressors` are those that will act on the tokens beside the model's own: the signals
        that they read are collected too, as far as the vision tower gives them.
        """
        tokens, _ = self.memory.encode(clip, (self.compressor, *compressors))
        return tokens, window(self.config, clip)[1]

    def generate(
        self,
        clip: VideoClip,
        video: NativeClip,
        questions: Sequence[str],
        work: Compressor,
        watch: Stopwatch,
        answer: int,
        times: bool = False,
    ) -> list[Generation]:
        prompts = [prompt_ids(self.tokenizer, q) for q in questions]
        if len({tuple(head) for head, _ in prompts}) != 1:
            raise WorkError("the chat template puts different text before the video")
        method, tails = video.rest, [tail for _, tail in prompts]
        # A method that reads the question makes other tokens of the video for every question.
        groups = [[i] for i in range(len(tails))] if by_question(method) else [range(len(tails))]
        stamps = self._stamps(clip, video)
        beside = sum(map(len, stamps or ()))
        self.check_prompts(prompts, math.prod(video.grid) + beside, answer)
        duration = window(self.config, clip)[1]
        whole = Prompt(prompts[0][0], tails, video.tokens, duration, stamps)
        before = dict.fromkeys(watch.seconds, len(tails))
        made: list[Generation] = []
        for group in groups:
            prompt = replace(whole, tails=[tails[i] for i in group])
            # Reading the video counts for every group.
            made += self._generate(clip, prompt, method, watch.copy(), answer, before)
        return made

    def _generate(
        self,
        clip: VideoClip,
        prompt: Prompt,
        method: Compressor,
        watch: Stopwatch,
        most: int,
        before: Mapping[str, int],
    ) -> list[Generation]:
        """Answers to questions that are asked together.

        `before` names the stages that are over, and how many answers share each.
        """
        replies, kept, cached, counts, apart, trace = answer_prompt(
            self.model,
            prompt,
            method,
            watch,
            max_new_tokens=most,
            eos=int(cast(int, self.tokenizer.eos_token_id)),
            heard=self._hear(watch, clip, prompt.duration),
        )
        beside = len(prompt.head) + sum(map(len, prompt.stamps or ()))
        shared = {**dict.fromkeys(watch.seconds, len(replies)), **before}
        return [
            Generation(
                ids,
                trace.scores[row],
                trace.first[row],
                kept,
                len(kept),
                cached,
                counts,
                beside + len(prompt.tails[row]),
                apart[row],
                min(most, len(ids) + 1),  # what ended it was a token too
                dict(watch.seconds),
                shared,
            )
            for row, ids in enumerate(replies)
        ]

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

    def decode(
        self, said: Generation, question: str, clip: VideoClip, times: bool = False
    ) -> Decoded:
        origin, duration = window(self.config, clip)

        def decode(ids: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

        raw = decode(said.ids).strip()
        found = scored_spans(
            self.code.find(raw, duration), said.ids, said.scores, decode, self.code
        )
        spans = tuple(Span(s.start + origin, s.end + origin, s.score) for s in found)
        text = shift_seconds(self.code.readable(raw, duration), origin)
        notes = (*unknown_words(self.tokenizer, question), *unfinished(raw))
        return Decoded(text, spans, raw, notes)

    @torch.inference_mode()
    def preview(
        self,
        clip: VideoClip,
        video: NativeClip,
        question: str,
        work: Compressor,
        times: bool = False,
    ) -> VideoTokens:
        check_early(video.rest)
        method = video.rest
        tail = prompt_ids(self.tokenizer, question)[1] if method.query_aware else []
        return method.before_decoder(video.tokens, _query(self.model, method, tail))[0]

    def prompt_text(self, clip: VideoClip, question: str, times: bool = False) -> str:
        head, tail = (str(self.tokenizer.decode(i)) for i in prompt_ids(self.tokenizer, question))
        tokens, _ = self.tokens(clip)
        stamps = self._stamps(
            clip, NativeClip(tokens, self.compressor, slots_of(self.config, clip, tokens))
        )
        if stamps is None:
            return f"{head}<video {tokens.total}>{tail}"
        frames = zip(stamps, tokens.per_frame().tolist(), strict=True)
        parts = [f"{self.tokenizer.decode(ids)}<video {count}>" for ids, count in frames]
        return head + "".join(parts) + tail

    def _stamps(self, clip: VideoClip, video: NativeClip) -> list[list[int]] | None:
        """Ids of the time that is written before every frame; None for models without."""
        if not self.config.stamps:
            return None
        origin, duration = window(self.config, clip)
        texts = self.code.stamps(video.slots - origin, duration)
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(row) for row in ids]


class HasEngine(Protocol):
    """What has an engine: a `VideoLLM`."""

    @property
    def engine(self) -> Engine: ...


def native_engine(llm: HasEngine | Engine) -> NativeEngine:
    """The engine of a model of this project.

    Raises:
        InputError: it is one of another family.
    """
    engine = llm if isinstance(llm, Engine) else llm.engine
    if not isinstance(engine, NativeEngine):
        raise InputError(NOT_NATIVE)
    return engine
