"""What lmms-eval asks of a model: reading its generation options and what it gives to look at."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.errors import InputError

if TYPE_CHECKING:
    from vidllm.video import VideoClip

_LOG = logging.getLogger("vidllm")
#: Tokens of an answer where a task does not say.
MAX_NEW_TOKENS = 128
#: What a task may say of generation without changing a greedy answer.
_NO_MATTER = frozenset({"temperature", "do_sample", "top_p", "top_k", "use_cache"})
_SINGLE = ("num_beams", "repetition_penalty")
_LENGTH = ("max_new_tokens", "max_gen_toks")


@dataclass(frozen=True)
class Wanted:
    """How an answer is to be made: its longest length, and the strings that end it."""

    max_new_tokens: int
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The text up to the first of the strings that end it."""
        ends = [at for stop in self.until if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()


def wanted(options: Mapping[str, Any] | None) -> Wanted:
    """Read a task's `generation_kwargs`.

    Sampling is `do_sample` with a temperature above 0; where only one of the two is given, as
    transformers (temperature 1) and most of lmms-eval's models (`do_sample`) fill in the other.
    Options that are not known are named in the log, once each.

    Raises:
        InputError: sampling, beams or a penalty, where answers are greedy; or wrong values.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    try:
        warm = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0)) > 0
        odd = [name for name in _SINGLE if float(given.get(name, 1)) != 1]
    except (TypeError, ValueError):
        raise InputError(f"generation options must be numbers, got {dict(given)}") from None
    if warm and given.get("do_sample", True):
        raise InputError(
            "vidllm answers greedily, and the task wants sampling: add --gen_kwargs "
            "temperature=0,do_sample=False"
        )
    for name in odd:
        raise InputError(
            f"vidllm answers greedily, and the task wants {name}={given[name]}: add --gen_kwargs "
            f"{name}=1"
        )
    most = next((given[name] for name in _LENGTH if name in given), MAX_NEW_TOKENS)
    if isinstance(most, bool) or not isinstance(most, int | float) or not most == int(most) >= 1:
        raise InputError(f"max_new_tokens must be a whole number of at least 1, got {most!r}")
    until = given.get("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    for name in sorted(given.keys() - _NO_MATTER - {*_SINGLE, *_LENGTH, "until"}):
        _note(name)
    return Wanted(int(most), tuple(stop for stop in stops if stop))


@cache
def _note(name: str) -> None:
    _LOG.warning("the task's generation option %s is not used by vidllm", name)


def one_video(visuals: Any) -> str | list[Any]:
    """The one video among what a task gives to look at: its path, or its images.

    Raises:
        InputError: nothing, several videos, an address, or something else.
    """
    found = [
        v for v in (visuals if isinstance(visuals, list | tuple) else [visuals]) if v is not None
    ]
    if len(found) == 1 and isinstance(found[0], list | tuple):
        found = list(found[0])
    if not found:
        raise InputError("there is no video to look at, and vidllm answers about videos")
    if len(found) == 1 and isinstance(found[0], str | os.PathLike):
        path = os.fspath(found[0])
        if "://" in path:
            raise InputError(f"{path} is no file: download it first")
        return path
    if not all(hasattr(item, "convert") for item in found):
        kinds = sorted({type(item).__name__ for item in found})
        raise InputError(
            f"the task gives {len(found)} inputs ({', '.join(kinds)}), and vidllm looks at one "
            "video, given as a file or as images"
        )
    return found


def clip_of(images: Sequence[Any], fps: float | None) -> VideoClip:
    """The clip of a video that is given as PIL images.

    Args:
        fps: images a second.

    Raises:
        InputError: no fps, or images of different sizes.
    """
    from vidllm.video import VideoClip

    count = len(images)
    if fps is None:
        raise InputError(
            f"the task gives {count} images and no times: say with image_fps in --model_args how "
            "many a second they are"
        )
    pictures = [np.asarray(image.convert("RGB")) for image in images]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) != 1:
        raise InputError(f"the images of a video must have one size, got {sorted(sizes)}")
    return VideoClip(
        frames=np.stack(pictures),
        seconds=np.arange(count) / fps,
        fps=fps,
        duration=count / fps,
        indices=np.arange(count),
        path="images",
        notes=(f"{count} images at {fps:g} a second, as image_fps says",),
    )
