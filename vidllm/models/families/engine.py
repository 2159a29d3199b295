"""The hub's models as an `Engine`: compressed from outside, by hooks; asked by `generate`.

The model is transformers' own. Frames are read by this project, and each family is told their
true seconds in its own way (`scripts`).
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import StoppingCriteriaList

from vidllm.compressors import LATE, Compressor
from vidllm.errors import InputError
from vidllm.progress import Listener, Stopwatch, attentive
from vidllm.timecode import Span, TextTime, answer_text, unfinished
from vidllm.timecode.scoring import scored_spans
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from ..dialogue import ALONE, Dialogue
from ..engine import (
    Decoded,
    Engine,
    Generation,
    TowerCounter,
    by_question,
    check_early,
    compressed_once,
    uncounted,
)
from ..hooks.layers import moved_cuts
from ..hooks.session import Session
from ..hooks.temporal import TemporalAdapter
from ..load_options import LoadPlan
from ..loading import choose_compressor, load_hub
from ..native.config import NativeConfig
from ..parts import ModelParts, hub_parts
from ..question import check_room, check_text, positions_of
from ..tuned import Tuned
from .clips import HubClip, HubClipMemory, device_of, wait
from .family import adapter_for
from .pixels import tokens_per_frame
from .processing import Processing
from .scripts import SCRIPTS, TASKS, Placed, Script, chat, marks_of, shorten, write
from .served import FAMILIES
from .steps import Enough, GenerateSteps, counts_of, report_of, seeded


class HubEngine(Engine):
    """A model of one of `FAMILIES`, ready to be asked.

    The vision tower's output of the last clip is kept: later questions about the same
    `VideoClip` do not encode it again.

    Args:
        model: of transformers, where it is to stay. beside: its tokenizer and the like.
        whole: what it is a part of, if anything: PEFT's wrapper, an Omni model.
        compressors, keep, tokens: as for `loading.choose_compressor`.

    Raises:
        InputError: a family or a method that cannot be served, by name and reason.
    """

    writes_times = True

    def __init__(
        self,
        model: Any,
        beside: Processing,
        *,
        whole: Any = None,
        compressors: str | Compressor | None = None,
        keep: float | None = None,
        tokens: int | None = None,
    ) -> None:
        self.model, self.tokenizer = model.eval(), beside.tokenizer
        self.beside, self.whole = beside, model if whole is None else whole
        self.config = model.config
        self.adapter = adapter_for(model, self.tokenizer)
        self.kind = str(self.adapter.config.model_type)
        self.family = FAMILIES[self.kind][0]
        self.script: Script = SCRIPTS[self.kind]
        self.compressor = choose_compressor(NativeConfig(), compressors, keep, tokens)
        self.check_serves(self.compressor)
        self.temporal: TemporalAdapter | None = None
        self.tuned: Tuned | None = None
        self.marks = marks_of(self.script, self.adapter.config, self.tokenizer)
        pixels, processor = beside.pixels, beside.processor
        self.memory = HubClipMemory(model, self.adapter, self.marks, pixels, processor)
        self._chats: dict[tuple[bool, int], str] = {}
        self.chat = self._chat(ALONE)  # a template without a place for a question is refused here
        self.code = TextTime()

    @classmethod
    def load(cls, folder: str, plan: LoadPlan, *, seed: int = 0, **options: Any) -> HubEngine:
        """From a folder or a name on the hub; `options` as for the class."""
        model, beside = load_hub(folder, plan)
        torch.manual_seed(seed)
        return cls(model, beside, **options)

    @classmethod
    def around(cls, model: nn.Module, processor: Any, **options: Any) -> HubEngine:
        """Around a model object: as it is, quantized, dispatched, or with an adapter of PEFT.

        Args:
            processor: see `Processing.of`. options: as for the class.

        Raises:
            InputError: a model that is not served, or no processor of it.
        """
        adapter = adapter_for(model, processor)
        prompts: Any = getattr(model, "active_peft_config", None)
        if getattr(prompts, "is_prompt_learning", False):
            raise InputError(
                f"an adapter of {prompts.peft_type.value} puts tokens of its own into the prompt, "
                "which is not served: use LoRA or another that changes layers"
            )
        kind = str(adapter.config.model_type)
        return cls(adapter.model, Processing.of(processor, kind, {}), whole=model, **options)

    def save(self, folder: Path) -> None:
        if self.tuned is not None:  # the adapters alone, as they were loaded
            for file in self.tuned.folder.iterdir():
                same = file.resolve() == (folder / file.name).resolve()
                if file.suffix in (".json", ".safetensors", ".md") and not same:
                    shutil.copyfile(file, folder / file.name)
            return
        if self.temporal is not None:
            raise InputError(
                "a temporal encoder beside this model is saved by itself (vl.temporal."
                "save_pretrained): load the model without, and save that"
            )
        self.whole.save_pretrained(folder)
        self.beside.save(folder)

    def put_temporal(self, temporal: TemporalAdapter) -> None:
        """Let every video pass a temporal encoder between projector and decoder."""
        self.temporal = temporal.to(self.model.device).eval()

    def with_trained(self, method: Compressor) -> Compressor:
        return method if self.tuned is None else method.trained_in(self.tuned.folder)

    @property
    def worked_on(self) -> nn.Module:
        """The part of the model that `compress` works on."""
        core: nn.Module = self.adapter.core
        return core

    @property
    def pixel_settings(self) -> Mapping[str, Any]:
        own = self.memory.processor
        return self.memory.options if own is None else own.processor.video_processor.to_dict()

    @property
    def parts(self) -> ModelParts:
        return hub_parts(self.kind, () if self.temporal is None else self.temporal.names)

    @property
    def usual_frames(self) -> int:
        """The family's usual number."""
        return self.script.frames if self.tuned is None else self.tuned.frames

    @property
    def decoder_config(self) -> Any:
        return self.adapter.decoder.config

    def twin(self) -> HubEngine:
        other, known = copy.copy(self), self.memory
        made = (known.options, known.processor)
        other.memory = HubClipMemory(self.model, self.adapter, self.marks, *made)
        return other

    def count(self, height: int, width: int, frames: int) -> int:
        if self.memory.processor is not None:
            return self.memory.count(height, width, frames)
        options, config = self.memory.options, self.adapter.config
        return math.prod(tokens_per_frame(self.kind, height, width, frames, options, config))

    def words(self, task: str, query: str = "") -> str:
        check_text(query)
        query = query.strip().rstrip(" .")
        if task != "caption" and not query:
            raise InputError("the query is empty: say what to look for")
        name = "question" if query.endswith("?") else task
        return TASKS[name].format(query=query)

    def timed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a question for a time: families that are not told any get them in words."""
        return {"times": self.script.clock == "none", **options}

    def check_serves(self, method: Compressor) -> None:
        Session(self.adapter, method)

    def check_questions(self, questions: Sequence[str], answer: int | None) -> None:
        for text in questions:
            self._check(text, answer or 1)  # the usual length may be cut short

    def check_dialogue(self, dialogue: Dialogue) -> None:
        for text in dialogue.texts:
            self._check(text)
        self._chat(dialogue)

    def _chat(self, dialogue: Dialogue) -> str:
        """The chat around a question; rendered once for every shape of a conversation."""
        shape = bool(dialogue.system), len(dialogue.turns)
        if shape not in self._chats:
            template = self.beside.template
            made = chat(self.script, self.tokenizer, template, self.marks, *shape)
            self._chats[shape] = made
        return self._chats[shape]

    def sharing_notes(self, clip: VideoClip, method: Compressor, questions: int) -> tuple[str, ...]:
        late = [item for item in method.methods if item.stage in LATE]
        moved = moved_cuts(late, list(cast(Any, self.adapter.decoder).layers))
        if by_question(method) and (questions > 1 or self.memory.last(clip) is not None):
            return (
                *moved,
                f"{method.name} reads the question: the video is encoded once and compressed "
                "anew for every question",
            )
        return tuple(moved)

    @contextmanager
    def at_work(self, method: Compressor, listener: Listener | None = None) -> Iterator[Session]:
        adapter = adapter_for(self.model, self.tokenizer)
        session = Session(adapter, method, self.temporal)
        with (
            torch.inference_mode(),
            compressed_once(adapter.core),
            session.attached(exclusive=True),
            attentive(listener, self.adapter.tower, self.adapter.decoder),
        ):
            yield session

    def check_room(
        self,
        clip: VideoClip,
        questions: Sequence[str],
        answer: int | None,
        times: bool,
        dialogue: Dialogue = ALONE,
    ) -> int:
        """See that prompts have room. Positions of time, row and column go side by side."""
        placed = self.memory.open(clip).placed
        video = sum(placed.counts)
        for question in questions:
            ids = self.prompt_ids(placed, question, times, dialogue)
            check_room(
                self._positions,
                text=ids.shape[1] - video,
                answer=answer or 1,
                video=max(placed.grid) if self.adapter.mrope else video,
            )
        return video

    def encode(
        self, clip: VideoClip, work: Session, count_tower: TowerCounter = uncounted
    ) -> HubClip:
        return self.memory.encode(clip, work, count_tower)

    def generate(
        self,
        clip: VideoClip,
        video: HubClip,
        questions: Sequence[str],
        work: Session,
        watch: Stopwatch,
        answer: int,
        times: bool = False,
        dialogue: Dialogue = ALONE,
    ) -> list[Generation]:
        before = dict.fromkeys(watch.seconds, len(questions))
        made = []
        for question in questions:
            ids = self.prompt_ids(video.placed, question, times, dialogue)
            with video.share(work, dialogue.system), seeded(dialogue, self.model):
                said = self._generate(video, ids, work, watch.copy(), answer, dialogue)
            made.append(replace(said, shared_by=before))
        if by_question(work.method):
            return made
        # The first question's pass over the video served them all.
        return _pooled(made, ("compress", "prefill"))

    def _generate(
        self,
        video: HubClip,
        ids: Tensor,
        session: Session,
        watch: Stopwatch,
        answer: int,
        dialogue: Dialogue,
    ) -> Generation:
        """An answer to a prompt (1, L), greedy or drawn.

        The seconds of compressing, of the prefill (the model's first call without it) and of the
        rest go to `watch` as "compress", "prefill" and "generate".
        """
        model, tokenizer = self.model, self.tokenizer
        stop, pad = self.stop_ids(), tokenizer.pad_token_id
        pad = stop[0] if pad is None else pad
        watch.begin("compress")
        steps = GenerateSteps(session, watch, tokenizer, ids.shape[1])
        with steps.attached(model):
            out = model.generate(
                **self.memory.arguments(video, session, ids),
                max_new_tokens=answer,
                do_sample=bool(dialogue.temperature),
                num_beams=1,
                num_return_sequences=1,
                temperature=dialogue.temperature or None,
                top_p=dialogue.top_p if dialogue.temperature else None,
                top_k=None,
                eos_token_id=stop,
                pad_token_id=pad,
                stopping_criteria=StoppingCriteriaList([steps]),
            )
            wait(model)
        if steps.prefilled is None:  # no call of the model at all
            steps.ends()
        watch.add("generate", time.perf_counter() - cast(float, steps.prefilled))
        report = report_of(session)
        counts, text = counts_of(report, steps.entering)
        new = cast(list[int], out[0, ids.shape[1] :].tolist())
        return Generation(
            new,
            torch.cat(steps.scores).tolist() if steps.scores else [],
            steps.first,
            steps.left(),
            report.kept,
            report.mean_cached,
            counts,
            text,
            0,
            len(new),
            dict(watch.seconds),
        )

    def decode(
        self, said: Generation, question: str, clip: VideoClip, times: bool = False
    ) -> Decoded:
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
        origin = self.origin(clip, times)
        found = self.code.find(raw, clip.duration)
        spans = tuple(
            Span(
                min(span.start + origin, clip.duration),
                min(span.end + origin, clip.duration),
                span.score,
            )
            for span in scored_spans(found, said.ids, said.scores, decode, self.code)
        )
        notes = unfinished(raw)
        if spans and origin >= 0.05:
            notes += (
                f"times in the text count from the first frame, at {origin:.1f} s; spans are in "
                "the video's seconds",
            )
        if spans and self.script.clock == "none" and not times:
            notes += (f"{self.family} is told no times: ask with times=True (--times)",)
        return Decoded(text, spans, raw, notes)

    def origin(self, clip: VideoClip, times: bool = False) -> float:
        """Second 0 of the model in the video's seconds: positions begin with the first frame."""
        return float(clip.seconds[0]) if self.script.clock == "positions" and not times else 0.0

    def stop_ids(self) -> list[int]:
        """Ids that end an answer, the usual one first."""
        stop: Any = self.model.generation_config.eos_token_id
        own: Any = self.tokenizer.eos_token_id
        every = [own] if stop is None else stop if isinstance(stop, list) else [stop]
        return sorted(every, key=lambda one: one != own)

    def preview(
        self, clip: VideoClip, video: HubClip, question: str, work: Session, times: bool = False
    ) -> VideoTokens:
        check_early(work.method)
        ids = self.prompt_ids(video.placed, question, times)
        found: list[VideoTokens] = []

        def enough(*_: Any) -> None:
            found.extend(work.call.after if work.call is not None else ())
            raise Enough

        handle = work.decoder.register_forward_pre_hook(enough)
        try:
            self.model(**self.memory.arguments(video, work, ids))
        except Enough:
            pass
        finally:
            handle.remove()
        return found[0]

    def prompt_text(
        self, clip: VideoClip, question: str, times: bool = False, dialogue: Dialogue = ALONE
    ) -> str:
        text = self._written(self.memory.open(clip).placed, question, times, dialogue)
        return shorten(text, self.marks["pad"])

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

    def _written(self, placed: Placed, question: str, times: bool, dialogue: Dialogue) -> str:
        frame = self._chat(dialogue)
        return write(self.script, frame, placed, question, times=times, dialogue=dialogue)

    def prompt_ids(
        self, placed: Placed, question: str, times: bool, dialogue: Dialogue = ALONE
    ) -> Tensor:
        """The prompt about a clip, (1, L)."""
        text = self._written(placed, question, times, dialogue)
        bos = self.tokenizer.bos_token
        plain = bool(bos) and text.startswith(str(bos))
        made: Any = self.tokenizer(text, add_special_tokens=not plain)
        return torch.tensor([made["input_ids"]], device=device_of(self.model))


def _pooled(answers: Sequence[Generation], stages: Sequence[str]) -> list[Generation]:
    """The answers of one call with some stages summed up and shared by all.

    For what is done once, with the first question, and serves those that follow.
    """
    sums = {s: sum(r.seconds.get(s, 0.0) for r in answers) for s in stages}
    return [
        replace(
            r,
            seconds={s: sums.get(s, v) for s, v in r.seconds.items()},
            shared_by={**r.shared_by, **dict.fromkeys(sums, len(answers))},
        )
        for r in answers
    ]
