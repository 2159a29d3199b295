"""Who is asked: a model with a compressor, behind the one seam that the runner knows.

The runner opens a clip and hands it over with everything that is asked about it; an asker of
another kind (retrieval) plugs in here.
"""

from __future__ import annotations

import gc
import hashlib
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vidllm.cli.options import debugging, say
from vidllm.errors import InputError, VidllmError
from vidllm.models.native.footage import warnings_in
from vidllm.progress import Listener, Stopped

from ..tasks.base import Item, Response, Task
from .answer_costs import CLIP_STAGES, costs_of, split
from .journal import Prediction
from .run_settings import Setting

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.compressors import Compressor
    from vidllm.models.answer import Answer
    from vidllm.video import VideoClip

#: Families whose prompts ask for times: models that are told none otherwise get them in words.
TIMED = ("grounding", "captions", "highlights", "alignment", "made")
#: A reason for a failure is cut to so many signs.
REASON = 300


class Asker(Protocol):
    """What the runner needs of whoever answers."""

    def about(self) -> dict[str, Any]:
        """What the answers depend on, for run.json: model, weights, number type, device, …"""
        ...

    def settings(self) -> Sequence[Setting]:
        """What every item is asked under, the uncompressed run first."""
        ...

    def ask(self, clip: VideoClip, items: Sequence[Item], setting: Setting) -> list[Prediction]:
        """Answers to all items about a clip, in their order.

        The same clip comes again with the next setting, so that what does not depend on the
        setting is done once.

        Raises:
            Stopped: the run shall end.
        """
        ...


class ModelAsker:
    """Asks a `VideoLLM`.

    Args:
        llm: loaded with its own compressor. task: whose items come.
        settings: see `Asker.settings`.
        name: of the model, as it was given.
        max_new_tokens: the longest answer; None for the task's.
        stopped: whether the run shall end; asked at every layer and every new token.
        refused: labels of settings that were left out, with the reasons; for run.json.

    Raises:
        InputError: a compressor that this model cannot serve, with the reason.
    """

    def __init__(
        self,
        llm: VideoLLM,
        task: Task,
        settings: Sequence[Setting],
        *,
        name: str,
        max_new_tokens: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self.llm, self.name = llm, name
        self._refused = dict(refused or {})
        self._settings = tuple(settings)
        self.options: dict[str, Any] = llm.timed({}) if task.family in TIMED else {}
        self.max_new_tokens = max_new_tokens or task.max_new_tokens
        self._ear = _Ear(stopped)
        self._clip: Callable[[], object] = lambda: None
        self._encoding: float | None = None
        self._usual = 0
        self._is_warm = False
        self._warned = False
        for setting in settings:
            if setting.method is not None:
                llm.engine.check_serves(setting.method)

    def settings(self) -> Sequence[Setting]:
        """See `Asker`."""
        return self._settings

    def about(self) -> dict[str, Any]:
        """See `Asker`."""
        engine, weight = self.llm.engine, next(self.llm.model.parameters())
        device = engine.device
        return {
            "model": self.name,
            **({"engine": engine.runs_in} if engine.runs_in else {}),
            "weights": engine.weights or weights_mark(self.llm.model),
            "max_new_tokens": self.max_new_tokens,
            "times": bool(self.options.get("times", False)),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": device.type,
            "device_name": device_name(device),
            **({"refused": self._refused} if self._refused else {}),
        }

    def ask(self, clip: VideoClip, items: Sequence[Item], setting: Setting) -> list[Prediction]:
        """See `Asker`; raises what the model raises."""
        import torch

        self._warm_up(clip, items[0], setting)
        torch.manual_seed(self.llm.seed)  # the same whatever was asked before, in any process
        self._ear.asked = 0
        letters = [item.letters or None for item in items]
        answers = self.llm.ask(
            clip,
            [item.prompt for item in items],
            compressor=setting.method,
            max_new_tokens=self.max_new_tokens,
            choices=letters if any(letters) else None,
            listener=self._ear,
            anyway=True,  # a batch goes on; what is said is scored
            **self.options,
        )
        self._warn(clip, answers[0])
        encode = self._remember(clip, setting.method, answers[0])
        costs = costs_of([answer.receipt for answer in answers], encode)
        return [
            Prediction(
                response_to(answer, clip),
                None if answer.kept is None else answer.kept.as_dict(),
                cost,
                len(clip),
            )
            for answer, cost in zip(answers, costs, strict=True)
        ]

    def _warn(self, clip: VideoClip, answer: Answer) -> None:
        """Say it once where a video is not of the world that the model knows."""
        if not self._warned and (told := warnings_in(answer.notes)):
            self._warned = True
            say(f"note: {Path(clip.path).name}: {told[0]}")

    def _warm_up(self, clip: VideoClip, item: Item, setting: Setting) -> None:
        """Ask once for nothing, so that what only the first call pays shows in no seconds."""
        if self._is_warm:
            return
        self._is_warm = True
        with suppress(Exception):  # what is wrong shows again when it counts
            self.llm.ask(
                replace(clip),  # another object: the clip itself is not encoded yet
                item.prompt,
                compressor=setting.method,
                max_new_tokens=2,
                listener=self._ear,
                anyway=True,
                **self.options,
            )

    def _remember(self, clip: VideoClip, method: Compressor | None, answer: Answer) -> float | None:
        """Seconds that encoding took where this call took what an earlier one left; else None."""
        asked = self._ear.asked
        if new := self._clip() is not clip:
            self._clip, self._encoding, self._usual = weakref.ref(clip), None, asked
        if not new and asked <= max(2, self._usual // 2):
            return self._encoding
        if method is None or "vision" not in method.stage:  # that merges in the tower: faster
            self._encoding = answer.receipt.seconds.get("encode")
        return None


def served(llm: VideoLLM, settings: Sequence[Setting]) -> tuple[list[Setting], dict[str, str]]:
    """The settings that a model can serve, and labels of the others with the reasons.

    Raises:
        InputError: it can serve none but the uncompressed run.
    """
    found, refused = [], {}
    for setting in settings:
        try:
            if setting.method is not None:
                llm.engine.check_serves(setting.method)
            found.append(setting)
        except InputError as error:
            refused[setting.label] = str(error)
    if refused and all(setting.is_full for setting in found):
        raise InputError(f"the model can serve none of these: {next(iter(refused.values()))}")
    return found, refused


class _Ear(Listener):
    """Hears whether a clip goes through the vision tower, and passes on that the run shall end.

    `asked` counts how often it was asked while a clip was encoded: at every layer of the tower,
    and once before and behind, which is all for a clip that is remembered.
    """

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped
        self._stage = ""
        self.asked = 0

    def stage(self, name: str) -> None:
        self._stage = name

    def stopped(self) -> bool:
        self.asked += self._stage == "encode"
        return self._stopped()


def response_to(answer: Answer, clip: VideoClip) -> Response:
    """An answer as the tasks read it."""
    letters = answer.letters
    return Response(
        text=answer.text,
        raw=answer.raw,
        spans=tuple((float(s.start), float(s.end)) for s in answer.spans),
        letters=None if letters is None else {k: round(v, 6) for k, v in letters.items()},
        duration=float(clip.duration),
    )


def failed(error: BaseException) -> Prediction:
    """What is recorded where there is no answer."""
    return Prediction(Response(error=reason_of(error)))


def ask_all(
    asker: Asker, clip: VideoClip, items: Sequence[Item], setting: Setting
) -> list[Prediction]:
    """Ask everything at once, or, where that fails, one thing after the other.

    A question that cannot be answered is recorded as failed, with its reason, and takes no other
    one with it.

    Raises:
        Stopped: the run shall end.
    """
    try:
        return asker.ask(clip, items, setting)
    except Stopped:
        raise
    except Exception as error:  # whatever a model trips over is the answer's fate, not the run's
        if debugging():
            say(traceback.format_exc())
        if len(items) == 1:
            return [failed(error)]
    _release()
    alone = [ask_all(asker, clip, [item], setting)[0] for item in items]
    # Each call says what reading and encoding the clip took, which was done once for all.
    costs = split([one.cost for one in alone], CLIP_STAGES)
    return [replace(one, cost=cost) for one, cost in zip(alone, costs, strict=True)]


def reason_of(error: BaseException) -> str:
    """Why there is no answer, in one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, VidllmError):
        kind = type(error).__name__
        text = "out of memory" if isinstance(error, MemoryError) else f"{kind}: {text}"
    return text if len(text) <= REASON else f"{text[: REASON - 1]}…"


def model_name(name: str | None) -> str:
    """The name of the model for tables: as it was given, or that of the shipped default."""
    from vidllm.models.shipped import default_model

    return name or default_model().name


def weights_mark(model: Any) -> str:
    """A short hash that tells two trainings of the same model apart (samples every tensor)."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        digest.update(name.encode())
        flat = value.detach().flatten()
        few = flat[:: max(1, flat.numel() // 16)][:16]
        digest.update(few.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def device_name(device: Any) -> str:
    """What a device is, for people."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    import platform

    return platform.machine() or str(device)


def _release() -> None:
    """Give back what a failed call still holds, for the calls that follow."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
