"""`VideoLLM`: a video file and a question in, an answer with seconds and a receipt out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import torch
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Chain, Compressor

from .answer import Answer, shift_seconds
from .answering import Prompt, by_question, check_serves, reply
from .asking import Asked, AskOptions, Frames, Video
from .cost import Receipt, Stopwatch, kv_bytes_per_token
from .errors import InputError, WorkError
from .loading import choose_compressor, choose_device, choose_dtype, load_native, model_kind
from .models.native import NativeConfig, NativeVideoLLM
from .prompt import prompt_ids, unknown_words
from .recipes import get_recipe
from .seeing import see, slot_seconds, window
from .shipped import default_model, find_model
from .timecode import Span, get_timecode
from .tokens import VideoTokens
from .video import VideoClip

__all__ = ["Answer", "VideoLLM"]

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VideoLLM(Asked):
    """A model that answers questions about videos; make one with `from_pretrained`."""

    def __init__(
        self,
        model: NativeVideoLLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        compressors: str | Compressor | Chain | None = None,
        keep: float | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
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

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] | None = None,
        *,
        recipe: str | None = None,
        compressors: str | Compressor | Chain | None = None,
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
                Models of `vidllm.models.hf.FAMILIES` come back as a `vidllm.hub.HubVideoLLM`.
            recipe: a named system; `compressors` and `keep` override its own.
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
        if recipe is not None:
            named = get_recipe(recipe)
            if compressors is None:
                compressors, keep = named.compressors, named.keep if keep is None else keep
        folder = str(default_model()) if name is None else find_model(str(name))
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
        torch.nn.Module.to(model, device=place, dtype=kind)
        torch.manual_seed(seed)
        return cls(model, tokenizer, **options)

    @overload  # type: ignore[override]
    def ask(self, video: Video, question: str, **options: Unpack[AskOptions]) -> Answer: ...
    @overload
    def ask(
        self, video: Video, question: list[str] | tuple[str, ...], **options: Unpack[AskOptions]
    ) -> list[Answer]: ...
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
    ) -> Answer | list[Answer]:
        """Answer one question, or several about the same video, which is then read once.

        Args:
            video: a file, or a clip from `load_video`.
            question: what to ask; a list for several.
            frames, fps: how to sample a file; start, end: seconds between which to look.
            tokens: video tokens that the LLM sees at most; with frames="auto" as many frames are
                sampled as go well with the model's compressors.
            max_new_tokens: the longest answer; default 128.

        Raises:
            InputError: a video, question or option that is wrong.
        """
        questions = [question] if isinstance(question, str) else list(question)
        if not questions:
            raise InputError("no question was asked: give at least one")
        for text in questions:  # a wrong question fails before the video costs anything
            prompt_ids(self.tokenizer, text)
        watch, most = Stopwatch(), self.budget(tokens)
        clip = self.sample(video, frames=frames, fps=fps, tokens=most, start=start, end=end)
        watch.add("decode", clip.read_seconds)
        with watch.stage("encode"):  # some methods merge inside the vision tower
            seen, rest = see(self.model, clip, (), self.within(most))
        self.check_fits(len(clip), seen.total, most)
        answers = self.answer(
            clip,
            seen,
            window(self.config, clip)[1],
            questions,
            compressor=rest,
            watch=watch,
            max_new_tokens=max_new_tokens,
        )
        if most is not None:
            more = self.fit_notes(answers[0].receipt, most)
            answers = [replace(a, notes=(*a.notes, *more)) for a in answers]
        return answers[0] if isinstance(question, str) else answers

    def prompt_text(self, video: Video, question: str, **options: Unpack[AskOptions]) -> str:
        """The prompt that `ask` would make, with its times; video tokens as "<video 196>".

        Tokens are counted before compression; the times stay where tokens go.
        """
        more = {name: value for name, value in options.items() if name != "max_new_tokens"}
        clip = self.sample(video, **more)  # type: ignore[arg-type]
        head, tail = (str(self.tokenizer.decode(i)) for i in prompt_ids(self.tokenizer, question))
        tokens, duration = self.encode(clip)
        stamps = self._stamps(clip, tokens, duration)
        if stamps is None:
            return f"{head}<video {tokens.total}>{tail}"
        told = zip(stamps, tokens.per_frame().tolist(), strict=True)
        parts = [f"{self.tokenizer.decode(ids)}<video {count}>" for ids, count in told]
        return head + "".join(parts) + tail

    @property
    def usual_frames(self) -> int:
        """Frames that the model was trained with."""
        return self.config.frames

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens of so many frames; a vision tower that sees time may make fewer."""
        return int(frames * self.model.grid_side**2)

    def answer(
        self,
        clip: VideoClip,
        tokens: VideoTokens,
        duration: float,
        questions: Sequence[str],
        *,
        compressor: Compressor | Chain | None = None,
        watch: Stopwatch | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Answer]:
        """The second half of `ask`: from the tokens of `encode` to answers.

        For those who encode a clip once and compress it in several ways.

        Args:
            clip, tokens, duration: a clip and what `encode` made of it.
            questions: at least one.
            compressor: instead of the model's own.
            watch: where the seconds of the stages so far are kept; the receipt shows them too.
            max_new_tokens: the longest answer; default 128.

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
        tails = [tail for _, tail in prompts]
        # A method that reads the question makes other tokens of the video for every question.
        groups = [[i] for i in range(len(tails))] if by_question(method) else [range(len(tails))]
        stamps = self._stamps(clip, tokens, duration)
        answers: list[Answer] = []
        for group in groups:
            spent = Stopwatch(dict(watch.seconds))  # reading the video counts for every group
            replies, kept, cached = reply(
                self.model,
                Prompt(prompts[0][0], [tails[i] for i in group], tokens, duration, stamps),
                method,
                spent,
                max_new_tokens=max_new_tokens or 128,
                eos=int(self.tokenizer.eos_token_id),
            )
            text = self.model.language_model.config
            size = kv_bytes_per_token(text, tokens.features.element_size())
            receipt = Receipt(
                len(clip),
                tokens.total,
                len(kept),
                tokens.total * size / 1e6,
                cached * size / 1e6,
                dict(spent.seconds),
            )
            answers += [
                self._answer(questions[i], said, clip, duration, receipt)
                for i, said in zip(group, replies, strict=True)
            ]
        return answers

    def encode(
        self,
        clip: VideoClip,
        watch: Stopwatch | None = None,
        compressors: Sequence[Compressor | Chain] = (),
    ) -> tuple[VideoTokens, float]:
        """Video tokens of a clip before compression, and the seconds that they are relative to.

        Nothing merges inside the vision tower here, so that any method may act on the tokens.

        `compressors` are those that will act on the tokens beside the model's own: the signals
        that they read are collected too, as far as the vision tower gives them.
        """
        with (watch or Stopwatch()).stage("encode"):
            tokens, _ = see(self.model, clip, (self.compressor, *compressors))
        return tokens, window(self.config, clip)[1]

    def compress(
        self,
        tokens: VideoTokens,
        watch: Stopwatch | None = None,
        compressor: Compressor | Chain | None = None,
    ) -> VideoTokens:
        """What the model's compressors, or another one, leave of the tokens before the decoder."""
        with (watch or Stopwatch()).stage("compress"):
            return (compressor or self.compressor).before_decoder(tokens)[0]

    def _stamps(
        self, clip: VideoClip, tokens: VideoTokens, duration: float
    ) -> list[list[int]] | None:
        if not self.config.stamps:
            return None
        seconds = clip.seconds - window(self.config, clip)[0]
        if tokens.grid[0] != len(seconds):  # a slot of the tower stands for several frames
            seconds = slot_seconds(tokens)
        texts = self.code.stamps(seconds, duration)
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(row) for row in ids]

    def _answer(
        self, question: str, reply: list[int], clip: VideoClip, duration: float, receipt: Receipt
    ) -> Answer:
        raw = str(self.tokenizer.decode(reply, skip_special_tokens=False)).strip()
        origin = window(self.config, clip)[0]
        found = self.code.find(raw, duration)
        spans = tuple(Span(s.start + origin, s.end + origin, s.score) for s, *_ in found)
        text = shift_seconds(self.code.readable(raw, duration), origin)
        notes = (*clip.notes, *unknown_words(self.tokenizer, question))
        return Answer(text, spans, receipt, raw, notes=notes)
