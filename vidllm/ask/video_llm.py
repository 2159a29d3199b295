"""`VideoLLM`: a video file and a question in, an answer with seconds and a receipt out."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.cost.memory import peak_memory
from vidllm.cost.spending import Spending
from vidllm.encoders.vision import VisionEncoder
from vidllm.errors.bounds import check as check_number
from vidllm.errors.bounds import memory_answered
from vidllm.models.answer import Answer
from vidllm.models.loading import (
    choose_compressor,
    choose_device,
    choose_dtype,
    has_temporal,
    load_native,
    model_kind,
)
from vidllm.models.locks import one_at_a_time
from vidllm.models.native.footage import (
    KnownFootage,
    UnknownFootage,
    clip_pixels,
    load_known,
    warning,
)
from vidllm.models.native.model import NativeConfig, NativeVideoLLM
from vidllm.models.native.prompt import prompt_ids
from vidllm.models.question import questions_of
from vidllm.models.shipped import default_model, find_model
from vidllm.progress import Listener, attentive
from vidllm.progress.stopwatch import Stopwatch
from vidllm.timecode import get_timecode
from vidllm.tokens import TokenMap
from vidllm.video import VideoClip

from .answering import before_prefill, check_early, check_serves
from .asking import AskOptions, Choices, Frames, Method, Video, sampling_of
from .encode import Memory, window
from .recipes import get_recipe
from .replying import Replying
from .wording import letters_of

__all__ = ["Answer", "VideoLLM"]

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from vidllm.longvideo.index import VideoIndex


class VideoLLM(Replying):
    """A model that answers questions about videos; make one with `from_pretrained`.

    What the last `VideoClip` was encoded to is kept while the clip lives: later questions about
    this very object, with whatever compressor, do not encode it again.
    """

    #: What footage the model knows; None for a model that makes no claim.
    footage: KnownFootage | None = None

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
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config: NativeConfig = model.config
        self.compressor = choose_compressor(self.config, compressors, keep, tokens)
        check_serves(model, self.compressor)
        options = {"n": self.config.time_tokens} if self.config.time_code == "relative" else {}
        self.code = get_timecode(self.config.time_code, **options)
        self.frames, self.fps, self.tokens = frames, fps, tokens
        self.reader, self.seed = reader, seed
        self.memory = Memory(model)
        self.spending = Spending(model.config)
        self.footage = footage
        self._known: weakref.WeakKeyDictionary[VideoClip, bool] = weakref.WeakKeyDictionary()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] | None = None,
        *,
        recipe: str | None = None,
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        device: str | None = None,
        dtype: str | None = None,
        attn: str | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
    ) -> VideoLLM:
        """Load a model.

        Args:
            name: a shipped model, a folder or a name on the hub; None for the shipped default.
                Models of `models.families.FAMILIES` come back as a `hub.HubVideoLLM`.
            recipe: a named system; `compressors` and `keep` override its own. One that reduces
                behind a temporal encoder is refused for a model without.
            compressors: a spec such as "temporal-pool" or "aim,uniform", or an instance; None
                for what the model was trained with.
            keep: share of the video tokens kept, in (0, 1]; `keep=1` alone is no compression.
            device: "cpu", "cuda", …; None for a GPU where there is one.
            dtype: "float32", "bfloat16", "float16" or "auto" (float32 on a CPU, bfloat16 on a GPU).
            attn: attention implementation of transformers; None for its default.
            frames, fps, tokens: how many frames of a video are sampled and how many video tokens
                the LLM sees at most, if a call does not say (see `ask`).
            reader: "pyav" or "decord".
            seed: of everything random.

        Raises:
            InputError: a name, option or combination that is wrong.
            WorkError: weights that cannot be loaded.
        """
        for option, value in (("fps", fps), ("tokens", tokens), ("seed", seed), ("frames", frames)):
            if value is not None and not isinstance(value, str):
                check_number(option, value)
        named = None if recipe is None else get_recipe(recipe)
        folder = str(default_model()) if name is None else find_model(str(name))
        if named is not None and compressors is None:
            if named.temporal:
                named.check_model(str(name or Path(folder).name), has_temporal(folder))
            compressors, keep = named.compressors, named.keep if keep is None else keep
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        if compressors is not None:  # what is wrong here must not wait for the weights
            choose_compressor(NativeConfig(), compressors, keep, tokens)
        options: dict[str, Any] = {"compressors": compressors, "keep": keep, "frames": frames}
        options |= {"fps": fps, "tokens": tokens, "reader": reader, "seed": seed}
        if model_kind(folder) != NativeConfig.model_type:
            from .hub import HubVideoLLM  # it is a VideoLLM itself

            return HubVideoLLM.load(folder, attn, place, kind, **options)
        model, tokenizer = load_native(folder, attn)
        footage = load_known(folder, model.vision)
        torch.nn.Module.to(model, device=place, dtype=kind)
        torch.manual_seed(seed)
        return cls(model, tokenizer, footage=footage, **options)

    @overload  # type: ignore[override]
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
        choices: Choices = None,
        listener: Listener | None = None,
        anyway: bool = False,
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
            choices: letters of the options, one entry a question, such as ("A", "B", "C") or
                None; their log-probabilities are in `Answer.letters`.
            listener: who hears of the stages and of the growing answer, and may stop the work.
            anyway: answer also about footage that the model does not know (`footage`); the first
                note of the answer then says so.

        Raises:
            UnknownFootage: the model does not know such footage, and `anyway` is false.
            InputError: a video, question or option that is wrong.
            Stopped: the listener wanted the work to end.
        """
        questions, answer = questions_of(question), self.longest_answer(max_new_tokens)
        # A wrong question fails before the video costs anything.
        prompts = [prompt_ids(self.tokenizer, text) for text in questions]
        self.check_prompts(prompts, 0, answer)
        letters = letters_of(questions, choices)
        watch, most = Stopwatch(listener=listener), self.budget(tokens)
        method = self.within(self.chosen(compressor, most), most)
        check_serves(self.model, method)
        with peak_memory(self.model.device, self.measures_memory) as peak:
            clip = self.read(
                watch,
                video,
                frames=frames,
                fps=fps,
                tokens=most,
                start=start,
                end=end,
                compressor=compressor,
            )
            if not isinstance(self.model.vision, VisionEncoder):  # those may make fewer tokens
                video_tokens = self.count(clip.height, clip.width, len(clip))
                self.check_prompts(prompts, video_tokens, answer)
            with attentive(listener, self.model):
                with watch.stage("encode"):  # some methods merge inside the vision tower
                    seen, rest = self.memory.see(clip, (), method)
                    unknown = self.check_footage(clip, anyway=anyway)
                self.check_fits(method, len(clip), seen.total, most)
                answers = self.answer(
                    clip,
                    seen,
                    window(self.config, clip)[1],
                    questions,
                    compressor=rest,
                    watch=watch,
                    max_new_tokens=max_new_tokens,
                    choices=letters,
                )
        answers = [
            replace(
                a,
                receipt=replace(a.receipt, peak_mb=peak.megabytes),
                notes=(*unknown, *a.notes, *self.method_notes(method, a.receipt, most)),
            )
            for a in answers
        ]
        return answers[0] if isinstance(question, str) else answers

    def knows(self, clip: VideoClip) -> bool:
        """Whether a clip is of the world that the model was trained on, as far as it can tell.

        True for a model that carries no statistics of its footage (see docs/footage.md).
        """
        if self.footage is None:
            return True
        if clip not in self._known:
            pixels = clip_pixels(clip, self.model.vision.image_size)
            self._known[clip] = self.footage.knows(self.model.vision, pixels)
        return self._known[clip]

    def check_footage(self, clip: VideoClip, *, anyway: bool) -> tuple[str, ...]:
        """The note on footage that the model does not know, or nothing.

        Raises:
            UnknownFootage: it does not know it, and `anyway` is false.
        """
        if self.knows(clip):
            return ()
        if not anyway:
            raise UnknownFootage
        return (warning(),)

    @one_at_a_time
    def preview(
        self,
        video: Video,
        question: str = "",
        *,
        compressor: Method = None,
        tokens: int | None = None,
        **sampling: Any,
    ) -> TokenMap:
        """What a compressor leaves of a video, without running the LLM.

        Args:
            video: a file, or better a clip from `load_video`, which is encoded once for all calls.
            question: for methods that read it.
            compressor, tokens, sampling: as the options of `ask`.

        Raises:
            InputError: as `ask`; a method that chooses while the LLM runs, or one that reads the
                question where there is none.
        """
        most = self.budget(tokens)
        method = self.within(self.chosen(compressor, most), most)
        check_serves(self.model, method)
        check_early(method)
        tail = prompt_ids(self.tokenizer, question)[1] if method.query_aware else []
        clip = self.sample(video, tokens=most, compressor=compressor, **sampling)
        seen, rest = self.memory.see(clip, (), method)
        self.check_fits(method, len(clip), seen.total, most)
        kept = before_prefill(self.model, seen, rest or method, tail)
        return TokenMap.of(kept, self._slots(clip, seen))

    @one_at_a_time
    def prompt_text(self, video: Video, question: str, **options: Unpack[AskOptions]) -> str:
        """The prompt that `ask` would make, with its times; video tokens as "<video 196>".

        Tokens are counted before compression; the times stay where tokens go.
        """
        clip = self.sample(video, **sampling_of(options))
        head, tail = (str(self.tokenizer.decode(i)) for i in prompt_ids(self.tokenizer, question))
        tokens, duration = self.encode(clip)
        stamps = self._stamps(clip, tokens, duration)
        if stamps is None:
            return f"{head}<video {tokens.total}>{tail}"
        told = zip(stamps, tokens.per_frame().tolist(), strict=True)
        parts = [f"{self.tokenizer.decode(ids)}<video {count}>" for ids, count in told]
        return head + "".join(parts) + tail

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
        from vidllm.longvideo import index_video

        return index_video(self, video, path, **plan)

    @property
    def usual_frames(self) -> int:
        """Frames that the model was trained with."""
        return self.config.frames

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens of so many frames; a vision tower that sees time may make fewer."""
        return int(frames * self.model.grid_side**2)
