"""`Engine`: what `VideoLLM` asks a model for, the same of our own models and of the hub's.

Such are `native.engine.NativeEngine`, `families.engine.HubEngine`, `heads.engine.HeadEngine` and
`serving.vllm_engine.VllmEngine`. A call goes through `at_work`, `encode` and `generate`; `decode`
then says what the tokens of an answer mean.

Methods act through hooks on the layers, and hooks see the passes of every thread. So whoever asks
a model holds its lock until the answer is there (`one_at_a_time`).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.errors.bounds import check as check_number
from vidllm.progress import Listener, Stopwatch, check
from vidllm.timecode import Span, TimeCode
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from .dialogue import ALONE, Dialogue
from .native.footage import KnownFootage
from .parts import ModelParts

_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_MAKING = threading.Lock()
#: Models that are compressed, and the thread that does it.
_COMPRESSED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_PATIENCE = 0.05  # seconds between two looks at a listener that may end the waiting

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock of a model, the same for all who ask it; a thread may take it again and again."""
    with _MAKING:
        return _LOCKS.setdefault(module, threading.RLock())


@contextmanager
def alone(module: nn.Module, listener: Listener | None = None) -> Iterator[None]:
    """Wait until no other thread asks this model, and keep others waiting in this block.

    Raises:
        Stopped: the listener wanted the work to end while it waited.
    """
    lock = lock_of(module)
    while not lock.acquire(timeout=-1 if listener is None else _PATIENCE):
        check(listener)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def compressed_once(module: nn.Module) -> Iterator[None]:
    """A block in which nothing else compresses this model.

    Raises:
        InputError: it is compressed already.
    """
    with alone(module):  # `VideoLLM.ask` of another thread comes to its end
        opener = _COMPRESSED.get(module)
        if opener == threading.get_ident():
            raise InputError("this model is compressed already: put the methods into one chain")
        if opener is not None:
            raise InputError(
                "this model is compressed already, by another thread: use the block of that "
                "thread, or open this one when it is left"
            )
        _COMPRESSED[module] = threading.get_ident()
    try:
        yield
    finally:
        _COMPRESSED.pop(module, None)


def one_at_a_time(method: F) -> F:
    """A method during which no other thread works on the same model: the others wait.

    Its object tells the module whose lock is held as `worked_on`.
    """

    @wraps(method)
    def waits(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        with alone(self.worked_on, kwargs.get("listener")):
            return method(self, *args, **kwargs)

    return cast(F, waits)


class Shared(Generic[T]):
    """A value that the thread which made this sets for all threads, and others for themselves.

    Args:
        value: at first.
    """

    def __init__(self, value: T) -> None:
        self._value, self._maker = value, threading.get_ident()
        self._own = threading.local()

    def get(self) -> T:
        """The thread's own value where it has set one, or else the one for all."""
        own: T = getattr(self._own, "value", self._value)
        return own

    def set(self, value: T, *, told: bool = False) -> None:
        """Set the value; `told` lets the maker see what other threads set last."""
        maker = threading.get_ident() == self._maker
        if maker or told:
            self._value = value
        if not maker:
            self._own.value = value


#: Tokens of an answer at most, if nobody says.
USUAL_ANSWER = 128


class TowerFlops(Protocol):
    """FLOPs of a vision tower so far; None where nothing counts them."""

    @property
    def flops(self) -> float | None: ...


#: Counts what vision towers do inside its block (see `cost.spending.weighed`).
TowerCounter = Callable[..., AbstractContextManager[TowerFlops]]


@dataclass(frozen=True)
class _Uncounted:
    flops: float | None = None


def uncounted(*_: nn.Module) -> AbstractContextManager[TowerFlops]:
    """A `TowerCounter` that counts nothing."""
    return nullcontext(_Uncounted())


@dataclass(frozen=True)
class Counts:
    """Video tokens of one prompt.

    Attributes:
        total: without compression. entering: those that the first decoder layer was given.
        layers: those that every layer read in the prefill. read: those that every layer reads at
            a decode step, in the mean.
    """

    total: int
    entering: int
    layers: Sequence[float]
    read: Sequence[float]


class EncodedClip(Protocol):
    """A clip behind the vision tower."""

    @property
    def total(self) -> int:
        """Video tokens before compression."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Slots, rows and columns of these."""

    @property
    def slots(self) -> Sequence[float] | np.ndarray:
        """(T,) seconds of the video at which the slots are."""

    @property
    def tower_flops(self) -> float | None:
        """FLOPs of the tower where tokens merged in it; None for the usual ones."""

    @property
    def element_size(self) -> int:
        """Bytes of a number in the KV cache."""


@dataclass(frozen=True)
class Generation:
    """The tokens of one answer, and what making them took.

    Attributes:
        ids: of the answer. scores: their natural log-probabilities, none where nobody looked.
        first: (V,) log-probabilities of the first token.
        tokens: what the LLM's last layers had of the video; None where that is not known.
        kept: how many these are. cached: how many the KV cache held, in the mean over layers.
        counts: where in the decoder how many video tokens were.
        text: other tokens of the prompt. apart: how many of them, at its end, were read in a pass
            of their own. made: tokens that were generated, with the one that ended the answer.
        seconds: wall seconds by stage. shared_by: among how many answers each is to be divided.
    """

    ids: list[int]
    scores: Sequence[float]
    first: Tensor
    tokens: VideoTokens | None
    kept: int
    cached: float
    counts: Counts
    text: int
    apart: int
    made: int
    seconds: dict[str, float]
    shared_by: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """What a model said.

    Attributes:
        text: with its times as seconds. spans: the times that it names, in the video's seconds.
        raw: its own words, time tokens and all. notes: on the answer, one line each.
    """

    text: str
    spans: tuple[Span, ...]
    raw: str
    notes: tuple[str, ...] = ()


class Engine(ABC):
    """A model with its tokenizer and compressors, from a clip to the tokens of an answer.

    Attributes:
        family: its name for people. name: what it was loaded by.
        by_recipe: the recipe that was named and whose own weights these are; "" for none.
        config: of the model. decoder_config: of its LLM.
        code: how it tells time. compressor: what it is asked with, unless a call says otherwise.
        footage: what it knows; None for a model that makes no claim.
        writes_times: it can be told the seconds of all frames in words before the question.
        runs_in: the program that runs the model, "" for this process's own torch. weights: a
            hash of the weights, where `model` has none.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    family: str
    name: str = ""
    by_recipe: str = ""
    config: Any
    code: TimeCode
    compressor: Compressor
    writes_times: bool
    footage: KnownFootage | None = None
    runs_in: str = ""
    weights: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    def save(self, folder: Path) -> None:
        """Write the model with all that it takes to ask it into a folder.

        Raises:
            InputError: a system without an LLM, whose training has written its folder.
        """
        raise InputError("a system without an LLM is saved by its training: copy its folder")

    def with_trained(self, method: Compressor) -> Compressor:
        """A method with the weights that the model has for it, if it is a learned one."""
        return method

    @property
    def pixel_settings(self) -> Mapping[str, Any]:
        """What says how pictures become pixels beside the model's own config."""
        return {}

    @property
    @abstractmethod
    def worked_on(self) -> nn.Module:
        """The module whose layers are worked on, by one thread at a time."""

    @property
    @abstractmethod
    def parts(self) -> ModelParts:
        """What the model is made of, as far as recipes ask."""

    @property
    @abstractmethod
    def usual_frames(self) -> int:
        """Frames of a clip if nobody says how many."""

    @property
    def usual_fps(self) -> float | None:
        """Frames a second if nobody says anything; None where `usual_frames` counts."""
        return None

    @property
    @abstractmethod
    def decoder_config(self) -> Any:
        """The config of the LLM, whose KV cache is accounted for."""

    @abstractmethod
    def twin(self) -> Engine:
        """The same model with a memory of clips of its own."""

    @abstractmethod
    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens without compression of so many frames of so many pixels, at most."""

    @abstractmethod
    def words(self, task: str, query: str = "") -> str:
        """What the model is asked for a task: "ground", "highlights" or "caption"."""

    def timed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a question for a time, from those of a call."""
        return options

    def knows(self, clip: VideoClip) -> bool:
        """Whether a clip is of the world that the model knows, as far as it can tell."""
        return True

    @abstractmethod
    def check_serves(self, method: Compressor) -> None:
        """Refuse a method that needs what this model cannot give, with an `InputError`."""

    @abstractmethod
    def check_questions(self, questions: Sequence[str], answer: int | None) -> None:
        """Refuse questions before a video costs anything.

        Args:
            answer: tokens of the longest answer; None if nobody says.

        Raises:
            InputError: one that is empty, holds control tokens, or has no room.
        """

    @abstractmethod
    def check_dialogue(self, dialogue: Dialogue) -> None:
        """Refuse a system prompt, turns or draws that this model does not know.

        Raises:
            InputError: it does not, or they hold control tokens.
        """

    def sharing_notes(self, clip: VideoClip, method: Compressor, questions: int) -> tuple[str, ...]:
        """What there is to know of how questions about a clip share work."""
        return ()

    @abstractmethod
    def at_work(
        self, method: Compressor, listener: Listener | None = None
    ) -> AbstractContextManager[Any]:
        """A block in which `method` is at work; it yields what the calls below take as `work`.

        Raises:
            InputError: a method that cannot be served, or a model that is compressed already.
        """

    @abstractmethod
    def check_room(
        self,
        clip: VideoClip,
        questions: Sequence[str],
        answer: int | None,
        times: bool,
        dialogue: Dialogue = ALONE,
    ) -> int:
        """See that prompts about this clip have room.

        Returns:
            The clip's video tokens as far as they are known before it is encoded, else 0.

        Raises:
            InputError: one has not; the line counts.
        """

    @abstractmethod
    def encode(
        self, clip: VideoClip, work: Any, count_tower: TowerCounter = uncounted
    ) -> EncodedClip:
        """A clip through the vision tower; what it became is remembered while it lives.

        Args:
            count_tower: counts the tower's FLOPs where tokens merge in it.
        """

    @abstractmethod
    def generate(
        self,
        clip: VideoClip,
        video: Any,
        questions: Sequence[str],
        work: Any,
        watch: Stopwatch,
        answer: int,
        times: bool = False,
        dialogue: Dialogue = ALONE,
    ) -> list[Generation]:
        """The answers to questions about an encoded clip, as tokens.

        Args:
            watch: with the seconds of the stages so far. answer: tokens of the longest.
            times: write the seconds of all frames before the question.
            dialogue: what the question stands in, and how tokens are drawn.

        Raises:
            Stopped: the watch's listener wanted the work to end.
        """

    @abstractmethod
    def decode(
        self, said: Generation, question: str, clip: VideoClip, times: bool = False
    ) -> Decoded:
        """What the tokens of an answer say, with its times in the video's seconds."""

    @abstractmethod
    def preview(
        self, clip: VideoClip, video: Any, question: str, work: Any, times: bool = False
    ) -> VideoTokens:
        """What the method at work leaves of an encoded clip before the LLM would begin."""

    @abstractmethod
    def prompt_text(
        self, clip: VideoClip, question: str, times: bool = False, dialogue: Dialogue = ALONE
    ) -> str:
        """The prompt for people; video tokens as "<video 196>"."""


def longest_answer(max_new_tokens: int | None) -> int:
    """Tokens of an answer at most. Raises InputError for a number that cannot be."""
    if max_new_tokens is None:
        return USUAL_ANSWER
    check_number("max_new_tokens", max_new_tokens)
    return int(max_new_tokens)


def check_needs(method: Compressor, provides: Sequence[str], who: str) -> None:
    """Refuse a method that needs what a model does not give.

    Args:
        provides: signals that there are. who: does not give others.

    Raises:
        InputError: with the needs that are missing, or the method that must stand before it.
    """
    missing = [need for need in method.needs if need not in provides]
    if missing:
        raise InputError(
            f"{method.name} needs {' and '.join(missing)}, which {who} does not give: choose a "
            "method without that need (vidllm list compressors)"
        )
    if method.late and method.late[0].follows:
        raise InputError(
            f"{method.name} keeps what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{method.late[0].name}"
        )


def check_early(method: Compressor) -> None:
    """Refuse a method whose choice is not known before the LLM runs.

    Raises:
        InputError: a method of the stages "prefill" or "cache".
    """
    if method.inside_decoder():
        raise InputError(
            f"{method.name} chooses while the LLM runs, so there is no preview: ask, and see "
            "answer.kept"
        )


def by_question(method: Compressor) -> bool:
    """Whether what is left of the video depends on the question that comes after it."""
    shared = all(getattr(m, "shares_prefix", False) for m in method.late)
    return method.query_aware or (method.inside_decoder() and not (method.late and shared))


def weights_state(*modules: nn.Module) -> int:
    """A number that changes when weights do: other tensors, or others written into them."""
    weights = [tensor for m in modules for tensor in (*m.parameters(), *m.buffers())]
    return hash(tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights))
