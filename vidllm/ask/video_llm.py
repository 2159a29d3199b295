"""`VideoLLM`: a video file and a question in, an answer with seconds and a receipt out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np
from typing_extensions import Unpack

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.errors.bounds import check as check_number
from vidllm.errors.bounds import memory_answered
from vidllm.errors.keywords import known_keywords
from vidllm.longvideo import index_video
from vidllm.longvideo.index import VideoIndex
from vidllm.models.answer import Answer
from vidllm.models.cost.memory import tensor_peak
from vidllm.models.cost.spending import weighed
from vidllm.models.dialogue import Dialogue, History
from vidllm.models.engine import check_early, longest_answer, one_at_a_time
from vidllm.models.native.footage import unknown_notes
from vidllm.models.question import letters_of, questions_of
from vidllm.progress import Listener, Stopwatch
from vidllm.timecode import Span
from vidllm.tokens import TokenMap
from vidllm.video import Limits, VideoClip

from .comparing import Comparison, compare
from .letters import letter_scores
from .loaded_model import LoadedModel
from .moments import spans_of, timed_answer
from .options import (
    AskOptions,
    Choices,
    Frames,
    Method,
    Video,
    check_fits,
    chosen,
    fit_notes,
    with_share,
    within,
)
from .sampling import clip_of
from .sharing import twin
from .streaming import AnswerStream

_LOG = logging.getLogger("vidllm")
F = TypeVar("F", bound=Callable[..., Any])


def _or_streamed(ask: F) -> F:
    """A method `ask` that with ``stream=True`` gives what the object's `stream` gives.

    To stand outside of what holds the model: a stream holds it while it is read.
    """

    @wraps(ask)
    def called(self: Any, *args: Any, stream: bool = False, **options: Any) -> Any:
        return self.stream(*args, **options) if stream else ask(self, *args, **options)

    return cast(F, called)


class VideoLLM(LoadedModel):
    """A model that answers questions about videos; make one with `from_pretrained`.

    What the last `VideoClip` was encoded to is kept while the clip lives: later questions about
    this very object, with whatever compressor, do not encode it again.

    Attributes:
        engine: the model with its tokenizer, compressors and prompts. spending: what answers cost.
        frames, fps, tokens, reader, seed: as for `from_pretrained`.
        measures_memory: also measure memory on a CPU, where every tensor is counted as it is made
            (slower by a tenth and more); on a GPU it is always measured.
    """

    measures_memory = False

    @overload
    def ask(
        self,
        video: Video,
        question: str,
        *,
        stream: Literal[False] = False,
        **options: Unpack[AskOptions],
    ) -> Answer: ...
    @overload
    def ask(
        self,
        video: Video,
        question: list[str] | tuple[str, ...],
        *,
        stream: Literal[False] = False,
        **options: Unpack[AskOptions],
    ) -> list[Answer]: ...
    @overload
    def ask(
        self,
        video: Video,
        question: str,
        *,
        stream: Literal[True],
        **options: Unpack[AskOptions],
    ) -> AnswerStream: ...
    @overload
    def ask(
        self, video: Video, question: str, *, stream: bool, **options: Unpack[AskOptions]
    ) -> Answer | AnswerStream: ...
    @known_keywords(compressors="compressor")
    @_or_streamed
    @one_at_a_time
    @memory_answered("the question")
    def ask(
        self,
        video: Video,
        question: str | list[str] | tuple[str, ...],
        *,
        frames: Frames = None,
        fps: float | None = None,
        seconds: Sequence[float] | np.ndarray | None = None,
        tokens: int | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int | None = None,
        compressor: Method = None,
        keep: float | None = None,
        choices: Choices = None,
        system: str | None = None,
        history: History | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        listener: Listener | None = None,
        anyway: bool = False,
        times: bool = False,
        stream: bool = False,
    ) -> Answer | list[Answer] | AnswerStream:
        """Answer one question, or several about the same video, which is then read once.

        Args:
            video: a file, a clip from `load_video`, or frames in memory: an array of numpy, a
                tensor of torch, a list of these or of PIL's pictures (`VideoClip.from_frames`).
            question: what to ask; a list for several.
            frames, fps: how to sample a file; start, end: seconds between which to look.
            seconds: when frames in memory are shown, one a frame; or their rate as fps.
            tokens: video tokens that the LLM sees at most; with frames="auto" as many frames are
                sampled as go well with the compressors.
            max_new_tokens: the longest answer; default 128.
            compressor: instead of the model's own for this call: an instance, or a spec with a
                share such as "aim:keep=0.25".
            keep: another share for this call, of the compressor that it names or of the model's own
                (of a model without, `vidcom2`).
            choices: letters of the options, one entry a question, such as ("A", "B", "C") or
                None; their log-probabilities are in `Answer.letters`.
            system: a system prompt, and history: what was said before, as (question, answer) pairs
                or as messages {"role": …, "content": …}; for models of the hub. The video stands
                in the first turn. The project's own models were trained on single questions.
            temperature: above 0 tokens are drawn, of the likeliest ones that have the share top_p
                together, from the seed (None for the model's own); else the likeliest is taken.
            listener: who hears of the stages and of the growing answer, and may stop the work.
            anyway: answer also about footage that the model does not know (`footage`); the first
                note of the answer then says so. Models of the hub make no claim about footage.
            times: write the seconds of all frames before the question, in words; for models of
                the hub that are not told them otherwise. `ground`, `highlights` and `caption` do
                it for LLaVA-OneVision and InternVL unless it is False.
            stream: give the answer to one question piece by piece instead, as `stream` does.

        Raises:
            UnknownFootage: the model does not know such footage, and `anyway` is false.
            InputError: a video, question or option that is wrong.
            Stopped: the listener wanted the work to end.
        """
        engine, questions = self.engine, questions_of(question)
        longest = longest_answer(max_new_tokens)
        # A wrong question fails before the video costs anything.
        engine.check_questions(questions, max_new_tokens)
        seed = self.seed if seed is None else seed
        dialogue = Dialogue.of(system, history, temperature, top_p, seed)
        engine.check_dialogue(dialogue)
        self._check_times(times)
        letters = letters_of(questions, choices)
        watch, most = Stopwatch(listener=listener), self._most(tokens)
        method, device = self._method(compressor, most, keep), self.model.device
        measured = self.measures_memory or device.type == "cuda"
        with (
            tensor_peak(device) if measured else nullcontext() as peak,
            engine.at_work(method, listener) as work,
        ):
            if not isinstance(video, VideoClip):
                watch.begin("decode")
            how: dict[str, Any] = {"frames": frames, "fps": fps, "start": start, "end": end}
            how |= {"seconds": seconds, "tokens": most, "compressor": compressor, "keep": keep}
            clip = self.sample(video, **how, listener=listener)
            watch.add("decode", clip.read_seconds)
            shared = engine.sharing_notes(clip, method, len(questions))
            with watch.stage("encode"):  # some methods merge inside the vision tower
                total = engine.check_room(clip, questions, max_new_tokens, times, dialogue)
                if most is not None:
                    check_fits(method, len(clip), total, most)
                encoded = engine.encode(clip, work, weighed)
                unknown = () if self.knows(clip) else unknown_notes(anyway)
            if most is not None:
                check_fits(method, len(clip), encoded.total, most)
            told = times, dialogue
            said = engine.generate(clip, encoded, questions, work, watch, longest, *told)
        most_mb = None if peak is None else peak.megabytes
        answers = []
        for text, one, some in zip(questions, said, letters, strict=True):
            ran = method.name, engine.name or type(engine.model).__name__
            receipt = self.spending.receipt(len(clip), encoded, one, most_mb, *ran)
            made = engine.decode(one, text, clip, times)
            fit = (*method.notes(), *fit_notes(method, receipt, most))
            answers.append(
                Answer(
                    made.text,
                    made.spans,
                    receipt,
                    made.raw,
                    notes=(*unknown, *clip.notes, *shared, *made.notes, *fit),
                    letters=letter_scores(self.tokenizer, some, one.first),
                    kept=None if one.tokens is None else TokenMap.of(one.tokens, encoded.slots),
                )
            )
        for answer in answers:
            _LOG.info("answered: %s", answer.receipt)
        return answers[0] if isinstance(question, str) else answers

    @known_keywords(AskOptions, compressors="compressor")
    def stream(self, video: Video, question: str, **options: Any) -> AnswerStream:
        """An answer piece by piece: ``for piece in vl.stream(video, question): print(piece)``.

        Args:
            video, question, options: as for `ask`.

        Returns:
            The pieces; their `answer` is the whole one, with spans and receipt. What is wrong is
            raised with the first piece.
        """
        if not isinstance(question, str):
            raise InputError("a stream answers one question, given as text: ask takes several")
        listener = options.pop("listener", None)
        return AnswerStream(
            lambda heard: self.ask(video, question, listener=heard, **options), listener
        )

    @known_keywords(AskOptions, compressors="compressor")
    def ground(self, video: Video, query: str, **options: Any) -> list[Span]:
        """When what `query` describes happens: spans in seconds, none if the model cannot say.

        Options as for `ask`.
        """
        return spans_of(self.ground_answer(video, query, **options))

    @known_keywords(AskOptions, compressors="compressor")
    def ground_answer(self, video: Video, query: str, **options: Any) -> Answer:
        """As `ground`, with text and receipt."""
        return timed_answer(self.ask(video, self.words("ground", query), **self.timed(options)))

    @known_keywords(AskOptions, compressors="compressor")
    def highlights(self, video: Video, query: str, **options: Any) -> list[Span]:
        """Every moment that fits `query`, as `ground`."""
        return spans_of(
            timed_answer(self.ask(video, self.words("highlights", query), **self.timed(options)))
        )

    @known_keywords(AskOptions, compressors="compressor")
    def caption(self, video: Video, **options: Any) -> Answer:
        """What happens in the video and when."""
        return timed_answer(self.ask(video, self.words("caption"), **self.timed(options)))

    @known_keywords(AskOptions, compressors="compressor")
    @one_at_a_time
    def preview(
        self,
        video: Video,
        question: str = "",
        *,
        compressor: Method = None,
        keep: float | None = None,
        tokens: int | None = None,
        times: bool = False,
        **sampling: Any,
    ) -> TokenMap:
        """What a compressor leaves of a video, without running the LLM.

        Args:
            video: a file, or better a clip from `load_video`, which is encoded once for all calls.
            question: for methods that read it.
            compressor, keep, tokens, times, sampling: as the options of `ask`.

        Raises:
            InputError: as `ask`; a method that chooses while the LLM runs, or one that reads the
                question where there is none.
        """
        engine, most = self.engine, self._most(tokens)
        method = self._method(compressor, most, keep)
        engine.check_serves(method)
        check_early(method)
        if method.query_aware:
            engine.check_questions([question], 1)
        self._check_times(times)
        with engine.at_work(method) as work:
            clip = self.sample(video, tokens=most, compressor=compressor, keep=keep, **sampling)
            encoded = engine.encode(clip, work, weighed)
            if most is not None:
                check_fits(method, len(clip), encoded.total, most)
            kept = engine.preview(clip, encoded, question, work, times)
        return TokenMap.of(kept, encoded.slots)

    @known_keywords(AskOptions, compressors="compressor")
    @one_at_a_time
    def prompt_text(self, video: Video, question: str, **options: Unpack[AskOptions]) -> str:
        """The prompt that `ask` would make, with its times; video tokens as "<video 196>".

        Tokens are counted before compression; the text stays where tokens go.
        """
        times = bool(options.get("times", False))
        self._check_times(times)
        self.engine.check_questions([question], 1)
        dialogue = Dialogue.of(options.get("system"), options.get("history"), None, None, 0)
        self.engine.check_dialogue(dialogue)
        names = ("frames", "fps", "seconds", "tokens", "start", "end", "compressor", "keep")
        sampling: dict[str, Any] = {k: v for k, v in options.items() if k in names}
        clip = self.sample(video, **sampling)
        return self.engine.prompt_text(clip, question, times, dialogue)

    @known_keywords(compressors="compressor")
    def sample(
        self,
        video: Video,
        *,
        frames: Frames = None,
        fps: float | None = None,
        seconds: Sequence[float] | np.ndarray | None = None,
        tokens: int | None = None,
        start: float | None = None,
        end: float | None = None,
        limits: Limits | None = None,
        compressor: Method = None,
        keep: float | None = None,
        listener: Listener | None = None,
    ) -> VideoClip:
        """The clip that `ask` would look at; options as there.

        Raises:
            InputError: a video or option that is wrong.
        """
        given: dict[str, Any] = {"frames": frames, "fps": fps, "start": start, "end": end}
        given["seconds"] = seconds
        if isinstance(video, VideoClip) and not any(v is not None for v in given.values()):
            return video
        options = {"tokens": tokens, "compressor": compressor, "keep": keep}
        return clip_of(self, video, given, options, limits, listener)

    @known_keywords(AskOptions, compressors="compressor")
    def compare(self, video: Video, question: str, **options: Any) -> Comparison:
        """The same question without compression and with it, both measured.

        Args:
            video, question, options: as for `ask`, but for choices; a file is sampled once.

        Raises:
            InputError, UnknownFootage, Stopped: as `ask`.
        """
        listener = options.pop("listener", None)
        names = ("frames", "fps", "seconds", "start", "end")
        part = {name: options.pop(name, None) for name in names}
        told = {name: options.get(name) for name in ("tokens", "compressor", "keep")}
        clip = self.sample(video, listener=listener, **part, **told)
        return compare(self, clip, question, listeners=(listener, listener), **options)

    @known_keywords(index_video, compressors="compressor")
    def index(
        self,
        video: str | os.PathLike[str],
        path: str | os.PathLike[str] | None = None,
        *,
        compressor: Method = None,
        keep: float | None = None,
        **plan: Any,
    ) -> VideoIndex:
        """Read a long video once, to ask it often; options of `longvideo.index_video`.

        Args:
            video: a file. path: where the index is kept; None for the video's name with ".vidx".
            compressor, keep: of the questions, as for `ask`; None for the model's own.
            plan: fps, tokens_per_minute, near, precision, progress, anyway, …

        Raises:
            UnknownFootage: as `ask`.
            InputError: a video, model or option that is wrong.
            WorkError: the disk is full, the video is gone midway, …; what was done is kept.
        """
        if compressor is None and keep is None:
            return index_video(self, video, path, **plan)
        own = twin(self)
        own.engine.compressor = self.method_of(compressor, None, keep)
        own.engine.check_serves(own.engine.compressor)
        return index_video(own, video, path, **plan)

    def _most(self, tokens: int | None) -> int | None:
        """The tokens of a call, or else those of the model; checked."""
        tokens = self.tokens if tokens is None else tokens
        if tokens is not None:
            check_number("tokens", tokens)
        return tokens

    def method_of(self, compressor: Method, most: int | None, keep: float | None) -> Compressor:
        """The compressors of a call, with its share."""
        if compressor is not None:
            return self.engine.with_trained(chosen(compressor, most, keep))
        return self.compressor if keep is None else with_share(self.compressor, keep)

    def _method(self, compressor: Method, most: int | None, keep: float | None) -> Compressor:
        """The compressors of a call, with an exact budget where one is given."""
        method = self.method_of(compressor, most, keep)
        return method if most is None else within(method, most)

    def _check_times(self, times: bool) -> None:
        if times and not self.engine.writes_times:
            raise InputError(
                "times is for models from the hub: this one has a time code of its own"
            )
