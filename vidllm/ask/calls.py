"""A question written down with all that decides its answer: run again, shown as Python, kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError

if TYPE_CHECKING:
    from vidllm.compressors import Compressor
    from vidllm.models.answer import Answer
    from vidllm.progress import Listener
    from vidllm.video import VideoClip

    from .video_llm import VideoLLM

TASKS = ("ask", "ground", "highlights", "caption", "index")


@dataclass(frozen=True)
class Call:
    """All that decides an answer.

    Attributes:
        video: the file. task: "ask", "ground", "highlights", "caption", or "index" (the question
            is asked of an index of the whole video, see `VideoLLM.index`).
        question: what is asked; a query for "ground" and "highlights"; empty for "caption".
        model, compressors, keep, device, dtype, attn, seed, revision, adapter, device_map: as
            `VideoLLM.from_pretrained`.
        frames: how many are sampled. fps: of an index. max_new_tokens: the longest answer.
        anyway: as `VideoLLM.ask`.

    Raises:
        InputError: a task that there is not.
    """

    video: str
    task: str = "ask"
    question: str = ""
    model: str | None = None
    compressors: str | None = None
    keep: float | None = None
    frames: int | None = None
    fps: float | None = None
    max_new_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None
    attn: str | None = None
    seed: int = 0
    anyway: bool = False
    revision: str | None = None
    adapter: str | None = None
    device_map: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task must be one of {', '.join(TASKS)}, not {self.task!r}")

    def method(self) -> Compressor | None:
        """The compressors; None for the model's own.

        Raises:
            InputError: a name or option that is wrong, or one that leaves the share open.
        """
        from vidllm.models.loading import choose_compressor
        from vidllm.models.native.config import NativeConfig

        if self.compressors is None:
            return None
        return choose_compressor(NativeConfig(), self.compressors, self.keep)

    def load(self) -> VideoLLM:
        """The model with its compressors."""
        from .video_llm import VideoLLM

        return VideoLLM.from_pretrained(self.model, **self._loading())

    def run(
        self,
        llm: VideoLLM | None = None,
        clip: VideoClip | None = None,
        listener: Listener | None = None,
    ) -> Answer:
        """The answer.

        Args:
            llm: the model, with whatever compressors; None loads it.
            clip: the sampled video; None reads the file.
            listener: as for `VideoLLM.ask`.

        Raises:
            InputError: what is wrong with the video, the question or the options.
            Stopped: the listener wanted it.
        """
        if self.task == "index":
            plan: dict[str, Any] = {"fps": self.fps or 1.0, **self._anyway()}
            return (llm or self.load()).index(self.video, **plan).ask(self.question)
        llm = self.load() if llm is None else llm
        told: dict[str, Any] = {"compressor": self.method(), "listener": listener, **self._anyway()}
        if self.max_new_tokens is not None:
            told["max_new_tokens"] = self.max_new_tokens
        if clip is None:
            told["frames"] = self.frames
        video = self.video if clip is None else clip
        if self.task == "ask":
            return llm.ask(video, self.question, **told)
        if self.task == "ground":
            return llm.ground_answer(video, self.question, **told)
        if self.task == "caption":
            return llm.caption(video, **told)
        return llm.ask(video, llm.words("highlights", self.question), **llm.timed(told))

    def python(self, *, compared: bool = False) -> str:
        """A program that gives the same answer.

        Args:
            compared: ask without compression too ("ask" only).
        """
        name = [] if self.model is None else [repr(self.model)]
        lines = ["from vidllm import VideoLLM"]
        made = f"vl = VideoLLM.from_pretrained({', '.join([*name, *_arguments(self._loading())])})"
        if self.task == "index":
            lines += ["", made]
            more = "".join(f", {made}" for made in _arguments(self._anyway()))
            lines.append(f"index = vl.index({self.video!r}, fps={self.fps or 1.0:g}{more})")
            lines.append(f"answer = index.ask({self.question!r})")
        else:
            lines[0] += "" if self.frames is None else ", load_video"
            lines += ["from vidllm.ask.comparing import compare"] * compared
            frames = [] if self.frames is None else [f"frames={self.frames}"]
            clip = f"clip = load_video({', '.join([repr(self.video), *frames])})"
            lines += ["", made, clip if frames else f"clip = vl.sample({self.video!r})"]
            lines.append(f"made = {self._compared()}" if compared else f"answer = {self._asking()}")
        if compared:
            lines += ["print(made.full.text)", "print(made.less.text)", "print(made.agree)"]
        else:
            lines += [f"print(answer.{part})" for part in ("text", "spans", "receipt")]
        return "\n".join([*lines, ""])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what stands at its default is left out."""
        plain = {field.name: field.default for field in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != plain[k]}

    @classmethod
    def from_dict(cls, made: Mapping[str, Any]) -> Call:
        """The call of `as_dict`.

        Raises:
            InputError: a field that there is not.
        """
        known = {field.name for field in fields(cls)}
        if "video" not in made or not set(made) <= known:
            raise InputError(f"a call has a video and of {', '.join(sorted(known))} what it needs")
        return cls(**made)

    def _loading(self) -> dict[str, Any]:
        names = ("keep", "revision", "adapter", "device", "device_map", "dtype", "attn", "seed")
        values = {"compressor": self.compressors, **{name: getattr(self, name) for name in names}}
        return {k: v for k, v in values.items() if v is not None and not (k == "seed" and v == 0)}

    def _anyway(self) -> dict[str, Any]:
        return {"anyway": True} if self.anyway else {}

    def _told(self) -> dict[str, Any]:
        told = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        return {**told, **self._anyway()}

    def _asking(self) -> str:
        told = self._told()
        if self.task == "highlights":
            words = f"vl.words('highlights', {self.question!r})"
            return f"vl.ask(clip, {words}, **vl.timed({told!r}))"
        name = {"ask": "ask", "ground": "ground_answer", "caption": "caption"}[self.task]
        asked = [] if self.task == "caption" else [repr(self.question)]
        return f"vl.{name}({', '.join(['clip', *asked, *_arguments(told)])})"

    def _compared(self) -> str:
        told = self._told()
        return f"compare({', '.join(['vl', 'clip', repr(self.question), *_arguments(told)])})"


def _arguments(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in values.items()]
