"""`VideoLLM`: a video file and a question in, an answer with seconds and a receipt out."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any, overload

from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.errors.bounds import check as check_number
from vidllm.errors.bounds import memory_answered
from vidllm.longvideo import index_video
from vidllm.longvideo.index import VideoIndex
from vidllm.models.answer import Answer
from vidllm.models.cost.memory import tensor_peak
from vidllm.models.cost.spending import Spending, weighed
from vidllm.models.engine import Engine, check_early, longest_answer, one_at_a_time
from vidllm.models.hooks.learned import Temporal
from vidllm.models.hooks.temporal import TemporalAdapter
from vidllm.models.load_options import LoadOptions
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.footage import KnownFootage, UnknownFootage, warning
from vidllm.models.native.model import NativeVideoLLM
from vidllm.models.question import letters_of, questions_of
from vidllm.progress import Listener, Stopwatch
from vidllm.timecode import Span, TimeCode
from vidllm.tokens import TokenMap
from vidllm.video import Limits, VideoClip

from .engines import load_engine, save_engine
from .letters import letter_scores
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


class VideoLLM:
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

    def __init__(
        self,
        model: NativeVideoLLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
        footage: KnownFootage | None = None,
    ) -> None:
        engine = NativeEngine(
            model, tokenizer, compressors=compressors, keep=keep, tokens=tokens, footage=footage
        )
        self._begin(engine, frames, fps, tokens, reader, seed)

    @classmethod
    def of(cls, engine: Engine, **sampling: Any) -> VideoLLM:
        """Around an engine; `sampling` (frames, fps, …) as for `from_pretrained`."""
        made = cls.__new__(cls)
        made._begin(engine, **sampling)
        return made

    def _begin(
        self,
        engine: Engine,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
    ) -> None:
        self.engine = engine
        self.frames, self.fps, self.tokens = frames, fps, tokens
        self.reader, self.seed = reader, seed
        self.spending = Spending(engine.config, engine.decoder_config)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] | nn.Module | None = None,
        *,
        recipe: str | None = None,
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
        temporal: Temporal | None = None,
        adapter: str | os.PathLike[str] | None = None,
        **loading: Unpack[LoadOptions],
    ) -> VideoLLM:
        """Load a model, or take one that is loaded.

        Args:
            name: a shipped model, a folder or a name on the hub; None for the shipped default.
                Its family is one of `models.families.FAMILIES`, or the project's own. Or a model
                object of such a family: as it is, quantized, dispatched or with PEFT's LoRA. It is
                put into evaluation mode and otherwise left as it is.
            recipe: a named system; `compressors` and `keep` override its own. One that reduces
                behind a temporal encoder is refused for a model without.
            compressors: a spec such as "temporal-pool" or "aim,uniform", or an instance; None
                for what the model was trained with.
            keep: share of the video tokens kept, in (0, 1]; `keep=1` alone is no compression.
                Without compressors it is "vidcom2" that keeps it where the model was trained with
                none; the receipt names the method.
            frames, fps, tokens: how many frames of a video are sampled and how many video tokens
                the LLM sees at most, if a call does not say (see `ask`).
            reader: "pyav" or "decord".
            seed: of everything random. temporal: of a hub model, an encoder between projector and
                decoder: a name, {"name": …, options}, a saved one's folder, or itself.
            adapter: a folder of `vidllm train hub` for this model; as `name` it brings its model.
            loading: `device` ("cpu", "cuda", …; None for a GPU where there is one); `dtype`
                ("float32", "bfloat16", "float16", torch's own, or "auto": float32 on a CPU,
                bfloat16 on a GPU); `attn_implementation` (or `attn`). For models of transformers
                also, with its meaning: `device_map`, `max_memory`, `offload_folder`,
                `quantization_config`, `revision`, `token`, `local_files_only`; and `processor`, or
                where its files are: a model object needs it. `engine="vllm"` lets vLLM run the
                model, with `engine_options` for its `LLM` (docs/serving.md).

        Raises:
            InputError: a name, option or combination that is wrong.
            WorkError: weights that cannot be loaded.
        """
        for option, value in (("fps", fps), ("tokens", tokens), ("seed", seed), ("frames", frames)):
            if value is not None and not isinstance(value, str):
                check_number(option, value)
        engine = load_engine(
            name,
            recipe=recipe,
            compressors=compressors,
            keep=keep,
            tokens=tokens,
            seed=seed,
            temporal=temporal,
            adapter=adapter,
            loading=loading,
        )
        return cls.of(engine, frames=frames, fps=fps, tokens=tokens, reader=reader, seed=seed)

    @property
    def model(self) -> Any:
        """The model itself: a `NativeVideoLLM`, or one of transformers."""
        return self.engine.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.engine.tokenizer

    @property
    def config(self) -> Any:
        """Its config."""
        return self.engine.config

    @property
    def code(self) -> TimeCode:
        """How it tells time."""
        return self.engine.code

    @property
    def temporal(self) -> TemporalAdapter | None:
        """The temporal encoder put into a hub model: train it, `save_pretrained` it."""
        return getattr(self.engine, "temporal", None)

    @property
    def compressor(self) -> Compressor:
        """What it is asked with, unless a call says otherwise."""
        return self.engine.compressor

    @compressor.setter
    def compressor(self, method: Compressor) -> None:
        self.engine.compressor = self.engine.with_trained(method)

    @property
    def footage(self) -> KnownFootage | None:
        """What footage the model knows; None for a model that makes no claim."""
        return self.engine.footage

    @property
    def worked_on(self) -> nn.Module:
        """The module whose layers are worked on, by one thread at a time."""
        return self.engine.worked_on

    @property
    def usual_frames(self) -> int:
        """Frames of a clip if nobody says how many."""
        return self.engine.usual_frames

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens without compression of so many frames of so many pixels, at most."""
        return self.engine.count(height, width, frames)

    def words(self, task: str, query: str = "") -> str:
        """What the model is asked for a task: "ground", "highlights" or "caption"."""
        return self.engine.words(task, query)

    def timed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a question for a time, from those of a call."""
        return self.engine.timed(options)

    def knows(self, clip: VideoClip) -> bool:
        """Whether a clip is of the world that the model was trained on, as far as it can tell.

        True for a model that carries no statistics of its footage (see docs/footage.md).
        """
        return self.engine.knows(clip)

    @overload
    def ask(self, video: Video, question: str, **options: Unpack[AskOptions]) -> Answer: ...
    @overload
    def ask(
        self, video: Video, question: list[str] | tuple[str, ...], **options: Unpack[AskOptions]
    ) -> list[Answer]: ...
    @one_at_a_time
    @memory_answered("the question")
    def ask(
        self,
        video: Video,
        question: str | list[str] | tuple[str, ...],
        *,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int | None = None,
        compressor: Method = None,
        keep: float | None = None,
        choices: Choices = None,
        listener: Listener | None = None,
        anyway: bool = False,
        times: bool = False,
    ) -> Answer | list[Answer]:
        """Answer one question, or several about the same video, which is then read once.

        Args:
            video: a file, or a clip from `load_video`.
            question: what to ask; a list for several.
            frames, fps: how to sample a file; start, end: seconds between which to look.
            tokens: video tokens that the LLM sees at most; with frames="auto" as many frames are
                sampled as go well with the compressors.
            max_new_tokens: the longest answer; default 128.
            compressor: instead of the model's own for this call: an instance, or a spec with a
                share such as "aim:keep=0.25".
            keep: another share for this call, of the compressor that it names or of the model's own
                (of a model without, `vidcom2`).
            choices: letters of the options, one entry a question, such as ("A", "B", "C") or
                None; their log-probabilities are in `Answer.letters`.
            listener: who hears of the stages and of the growing answer, and may stop the work.
            anyway: answer also about footage that the model does not know (`footage`); the first
                note of the answer then says so. Models of the hub make no claim about footage.
            times: write the seconds of all frames before the question, in words; for models of
                the hub that are not told them otherwise. `ground`, `highlights` and `caption` do
                it for LLaVA-OneVision and InternVL unless it is False.

        Raises:
            UnknownFootage: the model does not know such footage, and `anyway` is false.
            InputError: a video, question or option that is wrong.
            Stopped: the listener wanted the work to end.
        """
        engine, questions = self.engine, questions_of(question)
        longest = longest_answer(max_new_tokens)
        # A wrong question fails before the video costs anything.
        engine.check_questions(questions, max_new_tokens)
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
            how |= {"tokens": most, "compressor": compressor, "keep": keep}
            clip = self.sample(video, **how, listener=listener)
            watch.add("decode", clip.read_seconds)
            shared = engine.sharing_notes(clip, method, len(questions))
            with watch.stage("encode"):  # some methods merge inside the vision tower
                total = engine.check_room(clip, questions, max_new_tokens, times)
                if most is not None:
                    check_fits(method, len(clip), total, most)
                encoded = engine.encode(clip, work, weighed)
                unknown = self._check_footage(clip, anyway)
            if most is not None:
                check_fits(method, len(clip), encoded.total, most)
            said = engine.generate(clip, encoded, questions, work, watch, longest, times)
        most_mb = None if peak is None else peak.megabytes
        answers = []
        for text, one, some in zip(questions, said, letters, strict=True):
            receipt = self.spending.receipt(len(clip), encoded, one, most_mb, method.name)
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
        return answers[0] if isinstance(question, str) else answers

    def ground(self, video: Video, query: str, **options: Any) -> list[Span]:
        """When what `query` describes happens: spans in seconds, none if the model cannot say.

        Options as for `ask`.
        """
        return spans_of(self.ground_answer(video, query, **options))

    def ground_answer(self, video: Video, query: str, **options: Any) -> Answer:
        """As `ground`, with text and receipt."""
        return timed_answer(self.ask(video, self.words("ground", query), **self.timed(options)))

    def highlights(self, video: Video, query: str, **options: Any) -> list[Span]:
        """Every moment that fits `query`, as `ground`."""
        return spans_of(
            timed_answer(self.ask(video, self.words("highlights", query), **self.timed(options)))
        )

    def caption(self, video: Video, **options: Any) -> Answer:
        """What happens in the video and when."""
        return timed_answer(self.ask(video, self.words("caption"), **self.timed(options)))

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

    @one_at_a_time
    def prompt_text(self, video: Video, question: str, **options: Unpack[AskOptions]) -> str:
        """The prompt that `ask` would make, with its times; video tokens as "<video 196>".

        Tokens are counted before compression; the text stays where tokens go.
        """
        times = bool(options.get("times", False))
        self._check_times(times)
        self.engine.check_questions([question], 1)
        names = ("frames", "fps", "tokens", "start", "end", "compressor", "keep")
        sampling: dict[str, Any] = {k: v for k, v in options.items() if k in names}
        clip = self.sample(video, **sampling)
        return self.engine.prompt_text(clip, question, times)

    def sample(
        self,
        video: Video,
        *,
        frames: Frames = None,
        fps: float | None = None,
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
        options = {"tokens": tokens, "compressor": compressor, "keep": keep}
        return clip_of(self, video, given, options, limits, listener)

    def index(
        self, video: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, **plan: Any
    ) -> VideoIndex:
        """Read a long video once, to ask it often; options of `longvideo.index_video`.

        Args:
            video: a file. path: where the index is kept; None for the video's name with ".vidx".
            plan: fps, tokens_per_minute, near, precision, progress, anyway, …

        Raises:
            UnknownFootage: as `ask`.
            InputError: a video, model or option that is wrong.
            WorkError: the disk is full, the video is gone midway, …; what was done is kept.
        """
        return index_video(self, video, path, **plan)

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

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a model of transformers with its tokenizer, template and pixel settings.

        `from_pretrained` loads the folder again; of a model with PEFT's adapter it is the adapter
        alone, as PEFT saves it.

        Raises:
            InputError: a model of this project, or a path that is no folder.
            WorkError: the model or the disk refuses.
        """
        save_engine(self.engine, folder)

    def _check_times(self, times: bool) -> None:
        if times and not self.engine.writes_times:
            raise InputError(
                "times is for models from the hub: this one has a time code of its own"
            )

    def _check_footage(self, clip: VideoClip, anyway: bool) -> tuple[str, ...]:
        """The note on footage that the model does not know, or nothing.

        Raises:
            UnknownFootage: it does not know it, and `anyway` is false.
        """
        if self.knows(clip):
            return ()
        if not anyway:
            raise UnknownFootage
        return (warning(),)
