"""Options of a question: how its video is sampled, and how a method meets a number of tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import numpy as np
from torch import Tensor

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.errors.bounds import check
from vidllm.models.answer import Receipt
from vidllm.models.dialogue import History
from vidllm.models.loading import choose_compressor
from vidllm.models.native.config import NativeConfig
from vidllm.progress import Listener
from vidllm.video import Limits, VideoClip

#: A file, a clip that was read before, or frames in memory (see `VideoClip.from_frames`).
Video = str | os.PathLike[str] | VideoClip | np.ndarray | Tensor | Sequence[Any]
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
    seconds: Sequence[float] | np.ndarray | None
    tokens: int | None
    start: float | None
    end: float | None
    max_new_tokens: int | None
    compressor: Method
    keep: float | None
    choices: Choices
    system: str | None
    history: History | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    listener: Listener | None
    anyway: bool
    times: bool


def chosen(
    compressor: Compressor | str, tokens: int | None = None, keep: float | None = None
) -> Compressor:
    """The compressors that a call names.

    Raises:
        InputError: a spec that is wrong, or without a share where no number of tokens is met; a
            share beside an instance.
    """
    if keep is not None:
        return choose_compressor(NativeConfig(), compressor, keep)
    if not isinstance(compressor, str):
        return compressor
    made = build(compressor)
    if tokens is None and made.lacks_share():
        raise InputError(
            f"how much should '{compressor}' keep? Say it with its name, such as aim:keep=0.25, or "
            "give keep"
        )
    return made


def with_share(method: Compressor, keep: float) -> Compressor:
    """A model's own method with another share; `DEFAULT_METHOD` where it has none.

    Raises:
        InputError: a share outside (0, 1], or a method with a count of its own.
    """
    if method.name == "none" or keep == 1:
        return choose_compressor(NativeConfig(), None, keep)
    check("keep", keep)
    return replace(method, keep=float(keep), budget=None)


def within(method: Compressor, tokens: int) -> Compressor:
    """A method with an exact budget.

    Raises:
        InputError: a budget below 1, or one that a method with a count of its own cannot take.
    """
    if method.name == "none":
        return method
    return replace(method, keep=1.0, budget=tokens)


def check_fits(method: Compressor, frames: int, total: int, tokens: int) -> None:
    """See that a method can meet so many tokens.

    Raises:
        InputError: nothing removes tokens, and there are too many.
    """
    if total > tokens and method.name == "none":
        raise InputError(
            f"{frames} frames are {total} video tokens, more than {tokens}, and nothing "
            "removes any: name a compressor, or use fewer frames"
        )


def fit_notes(method: Compressor, receipt: Receipt, tokens: int | None) -> tuple[str, ...]:
    """What was chosen to stay within a number of tokens."""
    if tokens is None:
        return ()
    kept, full = receipt.tokens_kept, receipt.tokens_full
    inside = method.inside_decoder() and kept < full
    late = f"; the decoder's first layers read all {full}" if inside else ""
    share = f"{kept / max(1, full):.3g}"
    frames = "1 frame" if receipt.frames == 1 else f"{receipt.frames} frames"
    return (f"{frames}, keep {share}: {kept} of at most {tokens} video tokens{late}",)


def fitting_frames(
    peek: VideoClip,
    tokens: int,
    limits: Limits,
    method: Compressor,
    count: Callable[[int, int, int], int],
) -> int:
    """How many frames of a video to sample for a number of tokens.

    Args:
        peek: one frame of it. method: that is to meet the number.
        count: tokens without compression of (height, width, frames).

    Raises:
        InputError: as `choose_frames`.
    """
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
    return choose_frames(tokens, share, most, lambda frames: count(height, width, frames))


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
