"""`VideoLLM` on the hub's families: a video file and a question in, times and a receipt out.

`VideoLLM.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct", compressors="aim", keep=0.25)` gives a
`HubVideoLLM`. The model is transformers' own, compressed from outside (`vidllm.compress`); frames
are read here, and each family is told their true seconds in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.cost.memory import peak_memory
from vidllm.cost.spending import Spending
from vidllm.errors import InputError
from vidllm.errors.bounds import memory_answered
from vidllm.models.answer import Answer, Receipt, pooled
from vidllm.models.families import FAMILIES, adapter_for
from vidllm.models.families.pixels import tokens_per_frame
from vidllm.models.families.prompting import chat, marks_of, shorten, write
from vidllm.models.families.scripts import SCRIPTS, TASKS, Placed, Script
from vidllm.models.hooks.session import Session
from vidllm.models.loading import choose_compressor, load_hub
from vidllm.models.locks import one_at_a_time
from vidllm.models.native.model import NativeConfig
from vidllm.models.question import check_room, check_text, positions_of, questions_of
from vidllm.progress import Listener, attentive
from vidllm.progress.stopwatch import Stopwatch
from vidllm.timecode import Span, TextTime, answer_text, unfinished
from vidllm.tokens import TokenMap, VideoTokens
from vidllm.video import VideoClip

from .answering import by_question, check_early
from .asking import Choices, Frames, Method, Video, sampling_of
from .compression import Compression, compress
from .hub_encode import Eyes, Seen
from .hub_run import Said, generate, survey
from .video_llm import VideoLLM
from .wording import Letters, letter_scores, letters_of, scored_spans

__all__ = ["HubVideoLLM"]


class HubVideoLLM(VideoLLM):
    """A model of one of `models.families.FAMILIES`; make one with `VideoLLM.from_pretrained`.

    The vision tower's output of the last clip is kept: later questions about the same
    `VideoClip` do not encode it again.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str | None,
        pixels: Mapping[str, Any],
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
    ) -> None:
        """See `VideoLLM.from_pretrained`.

        Args:
            template: the checkpoint's chat template; None for the family's documented one.
            pixels: options of `models.hf.pixels.video_pixels`.

        Raises:
            InputError: a family or a method that cannot be served, by name and reason.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = model.config
        self.adapter = adapter_for(model, tokenizer)
        self.kind = str(self.adapter.config.model_type)
        self.family = FAMILIES[self.kind][0]
        self.script: Script = SCRIPTS[self.kind]
        self.compressor = choose_compressor(NativeConfig(), compressors, keep, tokens)
        Session(self.adapter, self.compressor)  # refuses what cannot be served
        self.marks = marks_of(self.script, self.adapter.config, tokenizer)
        self.eyes = Eyes(model, self.adapter, self.marks, pixels)
        self.chat = chat(self.script, tokenizer, template, self.marks)
        self.code = TextTime()
        self.frames, self.fps, self.tokens = frames, fps, tokens
        self.reader, self.seed = reader, seed
        self.spending = Spending(model.config)

    @classmethod
    def load(
        cls,
        folder: str,
        attn: str | None,
        device: torch.device,
        dtype: torch.dtype,
        **options: Any,
    ) -> HubVideoLLM:
        """From a folder or a name on the hub; `options` as for the class."""
        model, tokenizer, template, pixels = load_hub(folder, attn, dtype)
        torch.manual_seed(int(options.get("seed", 0)))
        return cls(model.to(device), tokenizer, template=template, pixels=pixels, **options)

    @property
    def worked_on(self) -> nn.Module:
        """The part of the model that `compress` works on."""
        core: nn.Module = self.adapter.core
        return core

    @one_at_a_time
    @memory_answered("the question")
    def ask(  # type: ignore[override]
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
        times: bool = False,
    ) -> Answer | list[Answer]:
        """Answer one question, or several about the same video, which is encoded once.

        A method that does not read the question leaves the same of the video for all of them.
        Answers are greedy.

        Args:
            video, question, frames, fps, tokens, start, end, max_new_tokens, compressor, choices,
                listener: as `VideoLLM.ask`.
            anyway: changes nothing: these models make no claim about what footage they know.
            times: write the seconds of all frames before the question, in words; for families
                that are not told them otherwise. `ground`, `highlights` and `caption` do it for
                LLaVA-OneVision and InternVL unless it is False.

        Raises:
            InputError: a video, question or option that is wrong.
            Stopped: the listener wanted the work to end.
        """
        questions, answer = questions_of(question), self.longest_answer(max_new_tokens)
        for text in questions:
            self._check(text, max_new_tokens or 1)  # the usual length may be cut short
        letters = letters_of(questions, choices)
        most, watch = self.budget(tokens), Stopwatch(listener=listener)
        method = self.within(self.chosen(compressor, most), most)
        answers = []
        with (
            peak_memory(self.model.device, self.measures_memory) as peak,
            torch.inference_mode(),
            compress(self.model, method, processor=self.tokenizer, exclusive=True) as c,
            attentive(listener, self.adapter.tower, self.adapter.decoder),
        ):
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
            notes: tuple[str, ...] = ()
            if by_question(method) and (len(questions) > 1 or self.eyes.last(clip) is not None):
                notes = (
                    f"{method.name} reads the question: the video is encoded once and compressed "
                    "anew for every question",
                )
            with watch.stage("encode"):
                placed = self.eyes.open(clip).placed
                self.check_fits(method, len(clip), sum(placed.counts), most)
                prompts = [
                    self._ids(write(self.script, self.chat, placed, text, times=times))
                    for text in questions
                ]
                for ids in prompts:
                    self._check_room(ids, placed, max_new_tokens or 1)
                seen = self.eyes.see(clip, c)
            for ids, wanted in zip(prompts, letters, strict=True):
                spent = watch.copy()
                with seen.share(c):
                    said = generate(self.eyes, c, seen, ids, spent, self.tokenizer, answer)
                receipt = self._receipt(c, clip, spent, said, seen)
                shared_by = dict.fromkeys(watch.seconds, len(questions))
                receipt = replace(receipt, shared_by=shared_by)
                more = (*notes, *self.method_notes(method, receipt, most))
                answers.append(self._said(said, clip, receipt, more, times, wanted, seen))
        receipts = [replace(a.receipt, peak_mb=peak.megabytes) for a in answers]
        if not by_question(method):  # the first question's pass over the video served them all
            receipts = pooled(receipts, ("compress", "prefill"))
        answers = [replace(a, receipt=r) for a, r in zip(answers, receipts, strict=True)]
        return answers[0] if isinstance(question, str) else answers

    @one_at_a_time
    def preview(
        self,
        video: Video,
        question: str = "",
        *,
        compressor: Method = None,
        tokens: int | None = None,
        times: bool = False,
        **sampling: Any,
    ) -> TokenMap:
        """What a compressor leaves of a video, without running the LLM (see `VideoLLM.preview`)."""
        most = self.budget(tokens)
        method = self.within(self.chosen(compressor, most), most)
        check_early(method)
        if method.query_aware:
            self._check(question)
        with (
            torch.inference_mode(),
            compress(self.model, method, processor=self.tokenizer, exclusive=True) as c,
        ):
            clip = self.sample(video, tokens=most, compressor=compressor, **sampling)
            placed = self.eyes.open(clip).placed
            self.check_fits(method, len(clip), sum(placed.counts), most)
            seen = self.eyes.see(clip, c)
            ids = self._ids(write(self.script, self.chat, placed, question, times=times))
            return TokenMap.of(survey(self.eyes, c, seen, ids), placed.slots)

    @one_at_a_time
    def prompt_text(self, video: Video, question: str, **options: Any) -> str:
        """The prompt that `ask` would make, with its times; video tokens as "<video 196>".

        Tokens are counted before compression; the text stays where tokens go.
        """
        self._check(question)
        placed = self.eyes.open(self.sample(video, **sampling_of(options))).placed
        times = bool(options.get("times", False))
        text = write(self.script, self.chat, placed, question, times=times)
        return shorten(text, self.marks["pad"])

    @property
    def usual_frames(self) -> int:
        """Frames of a clip if nobody says how many: the family's usual number."""
        return self.script.frames

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens of so many frames without compression, at most."""
        steps, rows, columns = tokens_per_frame(
            self.kind, height, width, frames, self.eyes.options, self.adapter.config
        )
        return steps * rows * columns

    def words(self, task: str, query: str = "") -> str:
        """What the model is asked for a task: "ground", "highlights" or "caption"."""
        check_text(query)
        query = query.strip().rstrip(" .")
        if task != "caption" and not query:
            raise InputError("the query is empty: say what to look for")
        name = "question" if query.endswith("?") else task
        return TASKS[name].format(query=query)

    def timed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a question for a time: families that are not told any get them in words."""
        return {"times": self.script.clock == "none", **options}

    def encode(self, *_: Any, **__: Any) -> tuple[VideoTokens, float]:
        """Not for these models: raises `InputError`."""
        raise InputError(
            f"{self.family} makes its video tokens itself: ask it, or use vidllm.compress"
        )

    def compress(self, *_: Any, **__: Any) -> VideoTokens:
        """Not for these models: raises `InputError`."""
        raise InputError(f"{self.family} is compressed while it is asked: use vidllm.compress")

    def answer(self, *_: Any, **__: Any) -> list[Answer]:
        """Not for these models: raises `InputError`."""
        raise InputError(f"{self.family} answers from a clip: use ask")

    def _check_room(self, ids: Tensor, placed: Placed, answer: int) -> None:
        """See that a prompt (1, L) has room. Positions of time, row and column go side by side."""
        video, whole = sum(placed.counts), ids.shape[1]
        beside = self.kind in ("qwen2_5_vl", "qwen3_vl")
        check_room(
            self._positions, text=whole - video, answer=answer,
            video=max(placed.grid) if beside else video,
        )  # fmt: skip

    @property
    def _positions(self) -> int | None:
        return positions_of(self.model.config.get_text_config())

    def _check(self, question: str, answer: int = 0) -> None:
        check_text(question, self._positions)
        if not question.strip():
            raise InputError("the question is empty: ask something")
        control = {*self.marks.values(), *self.tokenizer.all_special_tokens} - {""}
        for mark in sorted(control):
            if mark in question:
                raise InputError(f"the question holds '{mark}', a control token: leave it out")
        alone: Any = self.tokenizer(question, add_special_tokens=False)
        check_room(self._positions, text=len(alone["input_ids"]), answer=answer)

    def _ids(self, text: str) -> Tensor:
        bos = self.tokenizer.bos_token
        plain = bool(bos) and text.startswith(str(bos))
        made: Any = self.tokenizer(text, add_special_tokens=not plain)
        return torch.tensor([made["input_ids"]], device=self.model.device)

    def _receipt(
        self, c: Compression, clip: VideoClip, watch: Stopwatch, said: Said, seen: Seen
    ) -> Receipt:
        told = c.receipt
        return Receipt(
            len(clip),
            told.tokens_full,
            told.tokens_kept,
            told.kv_full_mb,
            told.kv_kept_mb,
            dict(watch.seconds),
            flops=self.spending.flops(
                len(clip),
                seen.placed.grid,
                said.counts,
                said.text,
                len(said.ids),
                vision=seen.flops,
            ),
        )

    def _said(
        self,
        said: Said,
        clip: VideoClip,
        receipt: Receipt,
        notes: tuple[str, ...],
        times: bool,
        letters: Letters,
        seen: Seen,
    ) -> Answer:
        """What the model said, and its times in the video's seconds."""

        def decode(ids: Sequence[int]) -> str:
            # With special tokens: the marks of thinking may be some.
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

        raw = decode(said.ids).strip()
        text = str(self.tokenizer.decode(said.ids, skip_special_tokens=True)).strip()
        if answer_text(raw) != raw and answer_text(text) == text:
            # The marks of thinking are special tokens, so that the text would not show its end.
            text = answer_text(raw)
            for mark in self.tokenizer.all_special_tokens:
                text = text.replace(str(mark), "")
            text = text.strip()
        # Positions begin with the clip: second 0 of the model is the first frame's.
        origin = float(clip.seconds[0]) if self.script.clock == "positions" and not times else 0.0
        found = self.code.find(raw, clip.duration)
        notes += unfinished(raw)
        spans = tuple(
            Span(
                min(span.start + origin, clip.duration),
                min(span.end + origin, clip.duration),
                span.score,
            )
            for span in scored_spans(found, said.ids, said.scores, decode, self.code)
        )
        if spans and origin >= 0.05:
            notes += (
                f"times in the text count from the first frame, at {origin:.1f} s; spans are in "
                "the video's seconds",
            )
        if spans and self.script.clock == "none" and not times:
            notes += (f"{self.family} is told no times: ask with times=True (--times)",)
        return Answer(
            text,
            spans,
            receipt,
            raw,
            notes=(*clip.notes, *notes),
            letters=letter_scores(self.tokenizer, letters, said.first),
            kept=None if said.tokens is None else TokenMap.of(said.tokens, seen.placed.slots),
        )
