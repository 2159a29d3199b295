"""Making an index: read, encode, keep block by block; then cut the windows and write the file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidllm.errors import InputError, WorkError

from .finishing import PRECISIONS, finish
from .marks import model_mark, source_mark
from .parts import Parts, folder_of, pack_thumbs
from .reading import BLOCK, Frames
from .tower import Carried, encode_block
from .windows import clock

if TYPE_CHECKING:
    from vidllm.budget import Limits
    from vidllm.pipeline import VideoLLM

#: Called with (seconds of video done, seconds of video).
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Plan:
    """How a video is indexed.

    Args:
        fps: frames a second. near: see `tower.encode_block`. precision: of stored numbers.
        tokens_per_minute: of frames before compression; fewer frames are taken to stay within.
    """

    fps: float = 1.0
    near: float = 1.0
    precision: str = "float16"
    tokens_per_minute: int | None = None

    def checked(self, cells: int) -> Plan:
        """The plan with the rate that its tokens allow. Raises InputError for what is wrong."""
        if not (np.isfinite(self.fps) and 0 < self.fps <= 60):
            raise InputError(f"fps of an index must be above 0 and at most 60, got {self.fps:g}")
        if not 0 <= self.near < 256:
            raise InputError(f"near must be levels of 255 from 0 on, got {self.near:g}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, not {self.precision!r}")
        most = self.tokens_per_minute
        if most is None:
            return self
        if most < cells:
            raise InputError(f"a frame has {cells} tokens: tokens_per_minute {most} is below that")
        return replace(self, fps=min(self.fps, most / (60 * cells)))


def build(
    llm: VideoLLM,
    video: Path,
    path: Path,
    plan: Plan,
    *,
    reader: str = "pyav",
    limits: Limits | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Index a video into `path`; a run that was ended before goes on where it ended.

    Returns:
        What was done: seconds, real-time factor, frames, frames encoded, seconds by stage.

    Raises:
        InputError: a video, model or option that is wrong.
        WorkError: the disk is full, the video is gone midway, …; what was done is kept.
    """
    check_method(llm)
    model = llm.model
    plan = plan.checked(model.grid_side**2)
    frames = Frames(video, plan.fps, model.vision.image_size, reader=reader, chunk=chunk,
                    limits=limits)  # fmt: skip
    try:
        facts = _facts(llm, video, plan, frames)
        parts = Parts(folder_of(path), {k: facts[k] for k in ("model", "source", "fps", "near",
                                                              "precision", "recipe")})  # fmt: skip
        spent = {"read": 0.0, "encode": 0.0, "windows": 0.0}
        began, first, failure = time.perf_counter(), len(parts), None
        coming, number = frames.blocks(first), first
        while number < len(frames):
            at = time.perf_counter()
            try:
                block = next(coming)
            except WorkError as error:
                failure = error
                break
            spent["read"] += time.perf_counter() - at
            at = time.perf_counter()
            seen = encode_block(model, block.pixels, plan.near)
            spent["encode"] += time.perf_counter() - at
            kept = seen.tokens.to("cpu", PRECISIONS[plan.precision])
            parts.add(
                number,
                {
                    "tokens": kept.contiguous(),
                    "row": seen.row,
                    "seconds": torch.from_numpy(block.seconds.copy()),
                    "lost": torch.tensor(block.lost, dtype=torch.float64),
                    "error": torch.tensor(seen.error),
                    **pack_thumbs(block.thumbs),
                },
            )
            number += 1
            if progress is not None:
                progress(frames.end_of(number - 1), frames.duration)
    finally:
        frames.close()
    until = frames.duration if number == len(frames) else number * BLOCK / plan.fps
    if number == 0:
        raise failure or WorkError(f"{video.name} holds no frame")
    at = time.perf_counter()
    done = finish(llm, parts, path, {**facts, "until": until, "complete": failure is None}, number)
    spent["windows"] = time.perf_counter() - at
    if failure is not None:
        raise WorkError(
            f"{failure} after {clock(until)} of {clock(frames.duration)}: {path} holds what was "
            "read; run it again when the video is back"
        ) from failure
    parts.remove()
    wall = time.perf_counter() - began
    covered = frames.duration - first * BLOCK / plan.fps
    return {
        **done,
        "duration": frames.duration,
        "wall": wall,
        "speed": covered / wall,
        "spent": spent,
        "bytes": path.stat().st_size,
        "notes": list(frames.notes),
    }


def check_method(llm: VideoLLM) -> None:
    """See that a model and its compressors can make an index.

    Raises:
        InputError: with the reason.
    """
    from vidllm.models.native import NativeVideoLLM

    if not isinstance(llm.model, NativeVideoLLM) or llm.config.time_code != "relative":
        raise InputError(
            "an index needs one of vidllm's own models with relative time tokens, such as the "
            "shipped one: leave out --model"
        )
    if llm.config.stamps:
        raise InputError("an index is not made for models that are told times as text")
    method = llm.compressor
    if method.query_aware or method.inside_decoder():
        raise InputError(
            f"{method.name} needs the question or the decoder: index with a compressor of the "
            "stage tokens that reads neither, such as temporal-pool"
        )


def _facts(llm: VideoLLM, video: Path, plan: Plan, frames: Frames) -> dict[str, Any]:
    from vidllm import __version__

    method = llm.compressor
    return {
        "vidllm": __version__,
        "model": model_mark(llm),
        "recipe": f"{method.name}, keep {getattr(method, 'keep', 1.0):g}",
        "source": source_mark(video),
        "fps": plan.fps,
        "near": plan.near,
        "precision": plan.precision,
        "duration": frames.duration,
        "notes": list(frames.notes),
        "grid": [llm.model.grid_side, llm.model.grid_side],
        "carried": Carried.of(llm.model) is not None,
    }
