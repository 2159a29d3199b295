"""The project's own model as an `Engine`: a clip's tokens, fewer of them, and answers from these.

The last clip's tokens are remembered (`ClipMemory`). The method at work makes fewer of them before
the decoder; prefill and decoding stand in `generation`.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.encoders.vision import VisionEncoder
from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import is_folder
from vidllm.progress import Listener, Stopwatch, attentive, check
from vidllm.timecode import Span, get_timecode, unfinished
from vidllm.timecode.scoring import scored_spans, whole_times
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from ..answer import shift_seconds
from ..deltas import WEIGHTS
from ..dialogue import ALONE, Dialogue
from ..engine import (
    Decoded,
    Engine,
    Generation,
    TowerCounter,
    by_question,
    check_early,
    check_needs,
    longest_answer,
    one_at_a_time,
    uncounted,
)
from ..load_options import choose_device, choose_dtype
from ..loading import choose_compressor, footage_home, load_native
from ..parts import ModelParts, native_parts
from ..question import PROMPTS, check_room, longest, positions_of, prompt_ids, unknown_words, wrap
from ..shipped import default_model
from .clip_memory import ClipMemory, NativeClip
from .config import NativeConfig
from .footage import ClipCheck, KnownFootage, load_known
from .generation import Prompt, answer_prompt
from .model import NativeVideoLLM, slots_of, window


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
        folder: where weights of learned compressors may lie beside the model's.

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
        folder: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.footage = model.eval(), tokenizer, footage
        self.config = model.config
        self.folder = folder
        chosen = choose_compressor(self.config, compressors, keep, tokens)
        self.compressor = self.with_trained(chosen)
        self.check_serves(self.compressor)
        options = {"n": self.config.time_tokens} if self.config.time_code == "relative" else {}
        self.code = get_timecode(self.config.time_code, **options)
        self.memory = ClipMemory(model)
        self._checked = ClipCheck(footage)

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
        footage = load_known(footage_home(folder), model.vision)
        nn.Module.to(model, device=device, dtype=dtype)
        torch.manual_seed(seed)
        home = Path(folder) if is_folder(folder) else None
        return cls(model, tokenizer, footage=footage, folder=home, **options)

    def save(self, folder: Path) -> None:
        """The whole weights, also where the model's own folder holds changes to another one; with
        the statistics of its footage and the weights of its learned methods."""
        config = self.config
        before = config.base, config.base_sha256
        config.base = config.base_sha256 = ""
        try:
            self.model.save_pretrained(folder)
        finally:
            config.base, config.base_sha256 = before
        self.tokenizer.save_pretrained(folder)
        if self.folder is None:
            return
        known = Path(footage_home(str(self.folder))).glob("footage.*")
        learned = (f for f in self.folder.glob("*.safetensors") if f.name != WEIGHTS)
        for file in {one.name: one for one in (*learned, *known)}.values():
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)

    def with_trained(self, method: Compressor) -> Compressor:
        """See `Engine.with_trained`."""
        return method if self.folder is None else method.trained_in(self.folder)

    @property
    def worked_on(self) -> nn.Module:
        return self.model

    @property
    def parts(self) -> ModelParts:
        return native_parts(vars(self.config), self.folder)

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
        return self._checked.knows(clip, self.model.vision)

    def check_serves(self, method: Compressor) -> None:
        check_needs(method, self.model.provides, "this model's vision tower")

    def check_questions(self, questions: Sequence[str], answer: int | None) -> None:
        prompts = [prompt_ids(self.tokenizer, text) for text in questions]
        self.check_prompts(prompts, 0, longest_answer(answer))

    def check_dialogue(self, dialogue: Dialogue) -> None:
        if dialogue.texts:
            raise InputError(
                "this model was trained on single questions without a system prompt, and would "
                "answer anything to others: ask one question, or use a model from the hub"
            )

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
        tower = self.config.vision
        check_room(
            positions_of(self.decoder_config),
            text=text,
            video=video,
            answer=answer,
            question=question,
            # Trained from nothing, on questions of a sentence.
            sentence=tower.get("type") == "conv" or "stem" in tower,
        )

    @contextmanager
    def at_work(self, method: Compressor, listener: Listener | None = None) -> Iterator[Compressor]:
        self.check_serves(method)
        with attentive(listener, self.model):
            yield method

    def check_room(
        self,
        clip: VideoClip,
        questions: Sequence[str],
        answer: int | None,
        times: bool = False,
        dialogue: Dialogue = ALONE,
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
        dialogue: Dialogue = ALONE,
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
            made += self._generate(clip, prompt, method, watch.copy(), answer, before, dialogue)
        return made

    @torch.inference_mode()
    def _generate(
        self,
        clip: VideoClip,
        prompt: Prompt,
        method: Compressor,
        watch: Stopwatch,
        most: int,
        before: Mapping[str, int],
        dialogue: Dialogue,
    ) -> list[Generation]:
        """Answers to questions that are asked together.

        `before` names the stages that are over, and how many answers share each.
        """
        with watch.stage("compress"):
            left, late = method.before_decoder(
                prompt.tokens, _query(self.model, method, prompt.tails[0])
            )
        replies, kept, cached, counts, apart, trace = answer_prompt(
            self.model,
            prompt,
            left,
            late,
            watch,
            max_new_tokens=most,
            eos=int(cast(int, self.tokenizer.eos_token_id)),
            heard=self._hear(watch, clip, prompt.duration),
            draw=dialogue.draws(self.model.device),
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

    def prompt_text(
        self, clip: VideoClip, question: str, times: bool = False, dialogue: Dialogue = ALONE
    ) -> str:
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
