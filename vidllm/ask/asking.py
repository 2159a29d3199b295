"""What all models have in common that are asked about a video: sampling, tasks, a token budget."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.errors.bounds import check as check_number
from vidllm.models.answer import Answer, Receipt
from vidllm.models.native.prompt import PROMPTS, wrap
from vidllm.progress import Listener
from vidllm.progress.stopwatch import Stopwatch
from vidllm.timecode import Span
from vidllm.video import Limits, VideoClip, load_video

#: A file, or a clip that was read before.
Video = str | os.PathLike[str] | VideoClip
Frames = int | Literal["auto"] | None
#: A method, or its spec with a share of its own: "aim:keep=0.25". None for the model's own.
Method = Compressor | str | None
#: For every question its letters, or None; for a lone question also its letters alone.
Choices = Sequence[str | Sequence[str] | None] | None
#: Share of the tokens that frames="auto" counts on where a method has none of its own.
USUAL_SHARE = 0.25
#: Frames a second beyond which frames="auto" takes no more of a video.
MOST_FPS = 4.0


class AskOptions(TypedDict, total=False):
    """Options of `ask` and of what goes through it."""

    frames: Frames
    fps: float | None
    tokens: int | None
    start: float | None
    end: float | None
    max_new_tokens: int | None
    compressor: Method
    choices: Choices
    listener: Listener | None
    anyway: bool


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a question that say how its video is sampled."""
    names = ("frames", "fps", "tokens", "start", "end", "compressor")
    return {name: options[name] for name in names if name in options}


class Asked:
    """Base of the models: everything that goes through their `ask`."""

    compressor: Compressor
    frames: Frames
    fps: float | None
    tokens: int | None
    reader: str
    #: Also measure memory on a CPU, where every tensor is counted as it is made (slower by a
    #: tenth and more); on a GPU it is always measured.
    measures_memory: bool = False

    def ask(self, video: Video, question: str, **options: Any) -> Answer:
        """One answer (see `VideoLLM.ask`)."""
        raise InputError(f"{type(self).__name__} cannot be asked")

    def ground(self, video: Video, query: str, **options: Any) -> list[Span]:
        """When what `query` describes happens: spans in seconds, none if the model cannot say.

        Options as for `ask`.
        """
        answer = self.ground_answer(video, query, **options)
        return [] if answer.failed else list(answer.spans)

    def ground_answer(self, video: Video, query: str, **options: Any) -> Answer:
        """As `ground`, with text and receipt."""
        return self._timed(self.ask(video, self.words("ground", query), **self.timed(options)))

    def highlights(self, video: Video, query: str, **options: Any) -> list[Span]:
        """Every moment that fits `query`, as `ground`."""
        answer = self._timed(
            self.ask(video, self.words("highlights", query), **self.timed(options))
        )
        return [] if answer.failed else list(answer.spans)

    def caption(self, video: Video, **options: Any) -> Answer:
        """What happens in the video and when."""
        return self._timed(self.ask(video, self.words("caption"), **self.timed(options)))

    def words(self, task: str, query: str = "") -> str:
        """What the model is asked for a task: "ground", "highlights" or "caption"."""
        return PROMPTS["caption"] if task == "caption" else wrap(task, query)

    def timed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a question for a time, from those of a call."""
        return options

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
        listener: Listener | None = None,
    ) -> VideoClip:
        """The clip that `ask` would look at; options as there.

        Raises:
            InputError: a video or option that is wrong.
        """
        if isinstance(video, VideoClip):
            if any(v is not None for v in (frames, fps, start, end)):
                raise InputError(
                    "frames, fps, start and end belong to load_video when a clip is given"
                )
            return video
        if frames is None and fps is None:
            frames, fps = self.frames, self.fps
        if frames is None and fps is None:
            frames = self.usual_frames
        if isinstance(frames, str):
            if frames != "auto":
                raise InputError(f"frames is a number or 'auto', not {frames!r}")
            tokens = self.tokens if tokens is None else tokens
            if tokens is None:
                raise InputError("frames='auto' picks frames for a number of tokens: give tokens")
            if fps is not None:
                raise InputError("give only one of frames and fps")
            method = self.chosen(compressor, tokens)
            frames = self._fitting(video, tokens, start, end, limits, method)
        return load_video(
            video,
            frames=frames,
            fps=fps,
            start=start,
            end=end,
            reader=self.reader,
            limits=limits,
            listener=listener,
        )

    def read(self, watch: Stopwatch, video: Video, **options: Any) -> VideoClip:
        """As `sample`, with the seconds that reading took or had taken."""
        if not isinstance(video, VideoClip):
            watch.begin("decode")
        clip = self.sample(video, **options, listener=watch.listener)
        watch.add("decode", clip.read_seconds)
        return clip

    @property
    def usual_frames(self) -> int:
        """Frames of a clip if nobody says how many."""
        return 32

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens without compression of so many frames of so many pixels, at most."""
        raise InputError(f"{type(self).__name__} does not count tokens")

    def chosen(self, compressor: Method, tokens: int | None = None) -> Compressor:
        """The compressors of a call: None for the model's own.

        Raises:
            InputError: a spec that is wrong, or without a share where no number of tokens is met.
        """
        if compressor is None:
            return self.compressor
        if not isinstance(compressor, str):
            return compressor
        made = build(compressor)
        if tokens is None and made.lacks_share():
            raise InputError(
                f"how much should '{compressor}' keep? Say it with its name, such as aim:keep=0.25"
            )
        return made

    def within(self, method: Compressor, tokens: int | None) -> Compressor:
        """A method with an exact budget where one is given.

        Raises:
            InputError: a budget below 1, or one that a method with a count of its own cannot take.
        """
        if tokens is None or method.name == "none":
            return method
        return replace(method, keep=1.0, budget=tokens)

    def budget(self, tokens: int | None) -> int | None:
        """The tokens of a call, or else those of the model; checked."""
        tokens = self.tokens if tokens is None else tokens
        if tokens is not None:
            check_number("tokens", tokens)
        return tokens

    def check_fits(self, method: Compressor, frames: int, total: int, tokens: int | None) -> None:
        """See that a method can meet so many tokens.

        Raises:
            InputError: nothing removes tokens, and there are too many.
        """
        if tokens is not None and total > tokens and method.name == "none":
            raise InputError(
                f"{frames} frames are {total} video tokens, more than {tokens}, and nothing "
                "removes any: name a compressor, or use fewer frames"
            )

    def method_notes(
        self, method: Compressor, receipt: Receipt, tokens: int | None
    ) -> tuple[str, ...]:
        """What there is to know of a method: random weights, what was chosen to fit."""
        return (*method.notes(), *self.fit_notes(method, receipt, tokens))

    def fit_notes(
        self, method: Compressor, receipt: Receipt, tokens: int | None
    ) -> tuple[str, ...]:
        """What was chosen to stay within a number of tokens."""
        if tokens is None:
            return ()
        kept, full = receipt.tokens_kept, receipt.tokens_full
        inside = method.inside_decoder() and kept < full
        late = f"; the decoder's first layers read all {full}" if inside else ""
        share = f"{kept / max(1, full):.3g}"
        frames = "1 frame" if receipt.frames == 1 else f"{receipt.frames} frames"
        return (f"{frames}, keep {share}: {kept} of at most {tokens} video tokens{late}",)

    def _fitting(
        self,
        video: str | os.PathLike[str],
        tokens: int,
        start: float | None,
        end: float | None,
        limits: Limits | None,
        method: Compressor,
    ) -> int:
        limits = limits or Limits()
        peek = load_video(video, frames=1, start=start, end=end, reader=self.reader, limits=limits)
        height, width = peek.height, peek.width
        length = (peek.duration if peek.end is None else peek.end) - peek.start
        most = min(
            max(1, math.ceil(MOST_FPS * length)),
            limits.max_frames,
            max(1, limits.max_bytes // (3 * height * width)),
        )
        share = 1.0 if method.name == "none" else method.keep
        if share == 1.0 and method.name != "none":
            share = USUAL_SHARE
        return choose_frames(tokens, share, most, lambda t: self.count(height, width, t))

    def _timed(self, answer: Answer) -> Answer:
        """The answer to a question for a time: without one it failed."""
        if answer.spans:
            return answer
        note = "the answer names no time"
        return replace(answer, failed=True, notes=(*answer.notes, note))


def choose_frames(tokens: int, share: float, most: int, count: Callable[[int], int]) -> int:
    """How many frames to sample so that a share of their tokens is a given number.

    The most frames whose share does not exceed it; one step more where tokens are removed, so
    that the number is met exactly; no more than `most`.

    Args:
        tokens: that the LLM shall see. share: of all tokens that stays, in (0, 1].
        count: tokens of so many frames, not falling.

    Raises:
        InputError: one frame has too many tokens and nothing removes any.
    """
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if count(middle) * share <= tokens:
            low = middle
        else:
            high = middle - 1
    whole = count(low)
    if share == 1.0 and whole > tokens:
        raise InputError(
            f"{low} frame is {whole} video tokens, more than {tokens}: give more tokens or a "
            "compressor"
        )
    if share < 1.0 and whole * share < tokens and low < most:
        low += 1
        while low < most and count(low + 1) == count(low):  # frames that share their tokens
            low += 1
    return low
