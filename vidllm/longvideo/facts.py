"""What the header of an index says and what its tensors hold, validated where an index is opened.

Right checksums say that a file is as it was written, not that what was written can be: types and
ranges are those of a schema, and how facts and tensors belong together is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.errors.bounds import SPEC_SIGNS
from vidllm.errors.schema import (
    Anything,
    Array,
    Boolean,
    Integer,
    Nullable,
    Number,
    Object,
    String,
    damage,
    validate,
)

from .windows import LEVELS, Level

_COUNT, _SECONDS, _TEXT = Integer(0, 2**31 - 1), Number(0, 1e9), String(longest=4096)
#: How a model of the hub sees the video, see `families.frame_features.FrameGroups`.
CLIP_FACTS = Object(
    {
        "height": Integer(1, 10**6),
        "width": Integer(1, 10**6),
        "frames": Integer(1, 10**6),
        "step": Integer(1, 64),
        "rows": Integer(1, 4096),
        "columns": Integer(1, 4096),
        "tokens": Integer(1, 4096**2),
        "extra": Integer(0, 4096),
    }
)
FACTS = Object(
    {
        "model": String(longest=64),
        "recipe": _TEXT,
        "compressor": Object(
            {
                "spec": Nullable(String(longest=SPEC_SIGNS)),
                "keep": Number(1e-12, 1),
                "budget": Nullable(Integer(1, 2**31 - 1)),
                "repr": String(longest=1 << 16),
            }
        ),
        "source": Object(
            {
                "name": _TEXT,
                "path": String(longest=1 << 13),
                "bytes": Integer(0),
                "sha256": String(longest=64),
            }
        ),
        "fps": Number(1e-9, 60),
        "near": Number(0, 256),
        "precision": String(enum=("float16", "float32")),
        "duration": _SECONDS,
        "until": _SECONDS,
        "complete": Boolean(),
        "notes": Array(_TEXT, longest=1000),
        "grid": Array(Integer(1, 4096), 2, 2),
        "carried": Boolean(),
        "lost": Array(Array(_SECONDS, 2, 2)),
        "near_error": Number(0),
        "levels": Array(
            Object(
                {
                    "seconds": Number(1e-3, 1e6),
                    "length": Number(1e-6, 1e6),
                    "frames": Integer(1, 10**6),
                    "windows": Integer(1, 2**31 - 1),
                    "tokens": Integer(1, 2**31 - 1),
                }
            ),
            0,
            len(LEVELS),
        ),
    },
    {
        "clip": CLIP_FACTS,
        "family": _TEXT,
        "tower": Nullable(_TEXT),
        "reader": _TEXT,
        "dtype": _TEXT,
        "vidllm": _TEXT,
    },
    other=Anything(),
)
_ADVICE = "index the video again"
_PICTURES = 2**32 // 3  # pixels of a clip's pictures at most, as in `video.Limits`
_SLACK = 1e-3  # seconds that float32 loses


class Tensors(Protocol):
    """Tensors of a file by name."""

    def names(self) -> list[str]:
        """Their names."""

    def __getitem__(self, name: str) -> Tensor:
        """One of them, mapped."""


def check_facts(facts: Any, path: Path) -> None:
    """See that the facts of an index are what they should be, each and beside each other.

    Raises:
        InputError: the line names file and field.
    """
    validate(facts, FACTS, path, _ADVICE)
    wrong = _refusal(path)
    if facts["until"] > facts["duration"] + _SLACK:
        wrong("field until lies behind duration")
    if facts["complete"] and abs(facts["until"] - facts["duration"]) > _SLACK:
        wrong("field until is not duration, though field complete is true")
    clip = facts.get("clip")
    if (clip is None) is not bool(facts["levels"]):
        wrong("fields levels and clip are those of two kinds of models")
    if clip is not None:
        if clip["frames"] * clip["height"] * clip["width"] > _PICTURES:
            wrong("field clip.frames are more than memory is meant to hold")
        if clip["tokens"] != facts["grid"][0] * facts["grid"][1] or facts["carried"]:
            wrong("fields grid and carried are not those that field clip says")
    last = 0.0
    for number, (start, end) in enumerate(facts["lost"]):
        if not last <= start <= end <= facts["duration"] + 1:
            wrong(f"field lost[{number}] is no stretch behind the one before")
        last = end
    for number, level in enumerate(facts["levels"]):
        if level["seconds"] != LEVELS[number]:
            wrong(f"field levels[{number}].seconds is not {LEVELS[number]:g}")
        if abs(level["length"] - min(level["seconds"], facts["until"])) > _SLACK:
            wrong(f"field levels[{number}].length is not that of its windows")


def check_tensors(facts: Mapping[str, Any], tensors: Tensors, path: Path) -> None:
    """See that the tensors of an index are those that its facts tell of.

    Raises:
        InputError: the line names file and tensor.
    """
    wrong = _refusal(path)
    wanted = {"seconds", "row", "tokens", "thumbs", "thumb_ends", "thumb_seconds"}
    for number in range(len(facts["levels"])):
        wanted |= {f"{name}.{number}" for name in ("start", "features", "position", "span")}
    if wanted != set(tensors.names()):
        wrong(f"tensors {', '.join(sorted(wanted ^ set(tensors.names())))} are too many or missing")
    kind = torch.float16 if facts["precision"] == "float16" else torch.float32

    def taken(name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        tensor = tensors[name]
        right = len(shape) == tensor.dim() and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not right:
            wrong(f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, which does not fit")
        return tensor

    cells = facts["grid"][0] * facts["grid"][1]
    seconds = taken("seconds", torch.float64, (None,)).numpy()
    row = taken("row", torch.int32, (len(seconds),))
    tokens = taken("tokens", kind, (None, cells, None))
    width, end = int(tokens.shape[2]), facts["until"] + _SLACK
    if not len(seconds) or not _rises(seconds, 0.0, end):
        wrong("tensor seconds does not rise within the seconds that are indexed")
    step = facts["clip"]["step"] if "clip" in facts else 1
    if len(seconds) > np.ceil(facts["duration"] * facts["fps"]) + step:
        wrong("tensor seconds has more frames than field fps allows")
    if int(row.min()) < 0 or int(row.max()) >= len(tokens):
        wrong("tensor row names rows that tensor tokens has not")
    if len(row) % step or not torch.equal(row, row[::step].repeat_interleave(step)):
        wrong("tensor row is not that of whole groups of frames")
    if facts["carried"] and not torch.equal(row, torch.arange(len(row), dtype=row.dtype)):
        wrong("tensor row is not that of frames whose state is carried, as field carried says")
    _check_thumbs(taken, wrong, end)
    for number, level in enumerate(facts["levels"]):
        windows, size = level["windows"], level["tokens"]
        starts = taken(f"start.{number}", torch.float64, (windows,)).numpy()
        taken(f"features.{number}", kind, (windows, size, width))
        position = taken(f"position.{number}", torch.int32, (windows, size))
        span = taken(f"span.{number}", torch.float32, (windows, size, 2))
        right = Level(level["seconds"], level["frames"]).starts(facts["until"])
        if len(right) != windows or not np.allclose(starts, right, rtol=0, atol=_SLACK):
            wrong(f"tensor start.{number} is not where windows begin")
        if int(position.min()) < 0 or int(position.max()) >= level["frames"] * cells:
            wrong(f"tensor position.{number} lies outside of its windows")
        low, high = span[..., 0], span[..., 1]
        if not bool(((low >= 0) & (low <= high) & (high <= level["length"] + _SLACK)).all()):
            wrong(f"tensor span.{number} lies outside of its windows")


def check_numbers(tensors: Tensors, path: Path) -> None:
    """See that all features are numbers. Reads them all.

    Raises:
        InputError: one is infinite or none; the line names file and tensor.
    """
    for name in tensors.names():
        tensor = tensors[name]
        if tensor.is_floating_point() and tensor.numel():
            for part in tensor.reshape(-1).split(1 << 24):
                if not bool(torch.isfinite(part).all()):
                    _refusal(path)(f"tensor {name} holds what is no number")


def _check_thumbs(
    taken: Callable[..., Tensor], wrong: Callable[[str], NoReturn], end: float
) -> None:
    times = taken("thumb_seconds", torch.float64, (None,)).numpy()
    ends = taken("thumb_ends", torch.int64, (len(times),)).numpy()
    size = len(taken("thumbs", torch.uint8, (None,)))
    if not _rises(times, 0.0, end):
        wrong("tensor thumb_seconds does not rise within the seconds that are indexed")
    if not _rises(ends, 0, size) or (ends[-1] if len(ends) else 0) != size:
        wrong("tensor thumb_ends does not end the pictures of tensor thumbs")


def _rises(values: np.ndarray, low: float, high: float) -> bool:
    """Whether numbers do not fall and lie in [low, high]; none that is NaN does."""
    if not len(values):
        return True
    return bool((np.diff(values) >= 0).all() and values[0] >= low and values[-1] <= high)


def _refusal(path: Path) -> Callable[[str], NoReturn]:
    def wrong(reason: str) -> NoReturn:
        raise InputError(damage(path, reason, _ADVICE))

    return wrong
