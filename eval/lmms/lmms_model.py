"""vidllm's models inside lmms-eval: ``lmms-eval --model vidllm --model_args keep=0.25 --tasks …``.

lmms-eval finds `manifest` through its entry-point group "lmms_eval.models" and then loads the
class `VidLLM` of this module, which is made on first use: importing the module needs neither
lmms-eval nor torch. Needs the extra ``vidllm[lmms-eval]``; written for its API of version 0.7.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError, WorkError
from vidllm.errors.registry import closest

from .lmms_requests import Wanted, clip_of, one_video, wanted

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.models.answer import Answer
    from vidllm.video import VideoClip

_LOG = logging.getLogger("vidllm")


def manifest() -> Any:
    """What lmms-eval registers: the object of the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vidllm", simple_class_path=f"{__name__}.VidLLM")


def __getattr__(name: str) -> Any:
    if name == "VidLLM":
        return _plugin()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _plugin() -> type[Answers]:
    """The class that lmms-eval loads.

    Raises:
        InputError: lmms-eval is not installed, or lacks something itself.
    """
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise InputError(
            f"lmms-eval cannot be imported ({error}): pip install 'vidllm[lmms-eval]'"
        ) from error

    class VidLLM(Answers, lmms):
        __doc__ = Answers.__doc__

    VidLLM.__qualname__ = "VidLLM"
    return VidLLM


class NotServed(InputError, NotImplementedError):
    """A kind of request that these models have no answer to."""


@dataclass(frozen=True)
class _Request:
    """A request that was read: `video` is its path or images, `place` names the document."""

    question: str
    video: str | list[Any]
    how: Wanted
    place: str
    cache_key: tuple[Any, Any]

    @property
    def source(self) -> str:
        """Which video it is about."""
        return self.video if isinstance(self.video, str) else self.place


class Answers:
    """A vidllm model as lmms-eval's class `lmms`; every argument goes into ``--model_args``.

    Requests that follow one another about the same video are asked together: it is read and
    encoded once for them. Several processes (``accelerate launch``) share the requests.

    Args:
        pretrained: a shipped model, a folder or a name on the hub; empty for the shipped default.
        recipe: a named system.
        compressor, keep: see `VideoLLM.from_pretrained`; a chain is written "aim+uniform",
            because lmms-eval splits its arguments at commas.
        frames, fps, tokens, dtype, attn, reader, seed: as there.
        image_fps: images a second of tasks that give a video as a list of images. Without it they
            are refused: the model must be told when each was taken.
        broken: "raise" ends the run at a video that cannot be read; "empty" answers "" and says
            so in the log.
        receipts: file to which a line of JSON is added for every answer: what it cost.
        batch_size, max_batch_size: lmms-eval gives them; they are not used.
        device: "cpu", "cuda", "cuda:1", …; None for a GPU where there is one, one a process.

    Raises:
        InputError: an argument that does not exist or is wrong.
    """

    is_simple = True
    # What the base class sets when it is made.
    _rank: int
    _world_size: int
    cache_hook: Any
    task_dict: Any

    def __init__(
        self,
        pretrained: str | None = None,
        recipe: str | None = None,
        compressor: str | None = None,
        keep: float | None = None,
        frames: Any = None,
        fps: float | None = None,
        tokens: int | None = None,
        dtype: str | None = None,
        attn: str | None = None,
        reader: str = "pyav",
        seed: int = 0,
        image_fps: float | None = None,
        broken: str = "raise",
        receipts: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            known = list(inspect.signature(Answers.__init__).parameters)[1:-1]
            hint = " or ".join(closest(name, known))
            raise InputError(f"--model_args has no {name!r} for vidllm: use {hint}")
        if broken not in ("raise", "empty"):
            raise InputError(f"broken must be raise or empty, got {broken!r}")
        if image_fps is not None and not (isinstance(image_fps, int | float) and image_fps > 0):
            raise InputError(f"image_fps must be a number above 0, got {image_fps!r}")
        super().__init__()
        from vidllm import VideoLLM

        self.image_fps, self.broken = image_fps, broken
        self.receipts = None if receipts is None else Path(receipts).expanduser()
        self._clip: tuple[str, VideoClip] | None = None
        self._llm: VideoLLM | None = VideoLLM.from_pretrained(
            pretrained or None,
            recipe=recipe,
            compressor=None if compressor is None else str(compressor).replace("+", ","),
            keep=keep,
            device=_device(device),
            dtype=dtype,
            attn=attn,
            frames=frames,
            fps=fps,
            tokens=tokens,
            reader=reader,
            seed=seed,
        )
        if not pretrained:
            _LOG.warning(
                "the shipped model knows only the made world of the benchmark stage: on real "
                "footage its scores mean nothing; give pretrained=OWNER/NAME"
            )
        for note in self._llm.compressor.notes():
            _LOG.warning(note)
        #: Where lmms-eval puts its own tensors when it gathers from several processes.
        self.device = self.llm.model.device

    @property
    def llm(self) -> VideoLLM:
        """The model. Raises InputError after `clean`."""
        if self._llm is None:
            raise InputError("the model was let go of after its answers: make it anew")
        return self._llm

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to every request, in their order.

        Args:
            requests: with `args` (context, generation_kwargs, doc_to_visual, doc_id, task, split).

        Raises:
            InputError: a request that cannot be served; the line names task and document.
        """
        from rich.console import Console
        from rich.progress import Progress

        answers: list[str] = []
        # Lazily: a document's images are only there while its group is asked.
        read = map(self._read, requests)
        groups = itertools.groupby(read, key=lambda request: (request.source, request.how))
        with Progress(console=Console(stderr=True), disable=self._rank != 0) as bar:
            line = bar.add_task("vidllm", total=len(requests))
            for _, group in groups:
                together = list(group)
                said = self._ask(together)
                answers += said
                for request, text in zip(together, said, strict=True):
                    self.cache_hook.add_partial("generate_until", request.cache_key, text)
                bar.advance(line, len(together))
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not for these models: raises `NotServed`."""
        raise NotServed("vidllm answers one question at a time: no multi-round tasks")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not for these models: raises `NotServed`.

        lmms-eval asks for whole option texts, and its own tasks read the numbers as losses (the
        least wins) where its base class says log-probabilities; the log-probability of a letter,
        which `VideoLLM.ask` gives, is neither.
        """
        raise NotServed(
            "vidllm gives the log-probability of an option's letter, not that of a whole text, "
            "which this task compares: use the task's form that generates (without _mcppl or "
            "_ppl), or `vidllm eval`, which scores letters too"
        )

    def clean(self) -> None:
        """Let go of the model; lmms-eval calls it before it judges the answers."""
        self._llm = self._clip = None
        super().clean()  # type: ignore[misc]

    def _read(self, request: Any) -> _Request:
        context, options, to_visual, doc_id, task, split = request.args
        place = f"{task}, {split} {doc_id}"
        try:
            how = wanted(options)
            video = one_video(to_visual(self.task_dict[task][split][doc_id]))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        return _Request(str(context), video, how, place, (context, options))

    def _ask(self, together: Sequence[_Request]) -> list[str]:
        """Answer requests about one video."""
        first = together[0]
        try:
            clip = self._open(first)
        except InputError as error:
            if self.broken == "raise":
                raise InputError(f"{first.place}: {error}") from None
            _LOG.warning("%s: no answer, %s", first.place, error)
            return [""] * len(together)
        questions = [request.question for request in together]
        said = self.llm.ask(clip, questions, max_new_tokens=first.how.max_new_tokens, anyway=True)
        if self.receipts is not None:
            self._note_costs(self.receipts, together, said)
        return [first.how.cut(answer.text) for answer in said]

    def _open(self, request: _Request) -> VideoClip:
        """The video of a request; the same object as last time is not encoded again."""
        if self._clip is None or self._clip[0] != request.source:
            self._clip = None
            given = request.video
            clip = (
                self.llm.sample(given) if isinstance(given, str) else clip_of(given, self.image_fps)
            )
            self._clip = (request.source, clip)
        return self._clip[1]

    def _note_costs(self, file: Path, together: Sequence[_Request], said: Sequence[Answer]) -> None:
        if self._world_size > 1:
            file = file.with_name(f"{file.stem}-{self._rank}{file.suffix}")
        try:
            with file.open("a", encoding="utf-8") as stream:
                for request, answer in zip(together, said, strict=True):
                    cost = {**answer.receipt.as_dict(), "shared_by": len(said)}
                    stream.write(json.dumps({"request": request.place, **cost}) + "\n")
        except OSError as error:
            raise WorkError(f"receipts={file} cannot be written: {error.strerror}") from error


def _device(name: str | None) -> str | None:
    """A GPU of its own for every process that `accelerate launch` or torchrun started."""
    if name in (None, "cuda") and "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.device_count() > 1:
            return f"cuda:{os.environ['LOCAL_RANK']}"
    return name
