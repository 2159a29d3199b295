"""Long videos: read once, ask many, in constant memory (`VideoLLM.index`, `vidllm index`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.errors.paths import input_file

if TYPE_CHECKING:
    from vidllm.models.engine import Engine
    from vidllm.video import Limits

    from .build import HasEngine, Progress
    from .index import VideoIndex

__all__ = ["index_video"]


def index_video(
    llm: HasEngine | Engine,
    video: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    fps: float = 1.0,
    tokens_per_minute: int | None = None,
    near: float = 1.0,
    tower: str | None = None,
    precision: str = "float16",
    reader: str = "pyav",
    limits: Limits | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    anyway: bool = False,
) -> VideoIndex:
    """Read a video once and keep what is needed to answer questions about it.

    Frames are read at a fixed rate in a background thread, encoded block by block and written to
    the folder `path` + ".part"; memory does not grow with the video. A run that was ended, in
    whatever way, goes on from there. An index that is there already is opened.

    Args:
        llm: one of vidllm's own models, or one of the hub whose vision tower sees frames or pairs
            of frames by themselves; as `VideoLLM` or its engine. video: a file.
        path: of the index; None for the video's name with ".vidx".
        fps: frames a second. tokens_per_minute: video tokens before compression; lowers `fps`.
        near: mean absolute difference of pixels, in levels of 255 at the vision tower's size, up
            to which a frame has the tokens of the last encoded one; 0 for equal pixels only. The
            error that this made on a sample of frames is kept as `facts["near_error"]`.
        tower: a method that merges tokens inside the vision tower, such as "tome:keep=0.5"; the
            tower gets cheaper, the index keeps its size.
        precision: of stored numbers, "float16" or "float32".
        reader, limits: as `load_video`. chunk: frames decoded at once.
        progress: called with (seconds done, seconds of the video).
        force: make the index anew, whatever there is of it.
        anyway: also of footage that the model does not know; every answer then says so.

    Raises:
        UnknownFootage: such footage, and `anyway` is false; nothing is written.
        InputError: a video, model or option that is wrong, or another file at `path`.
        WorkError: the disk is full, the video is gone midway, …; what was done is kept, and where
            that is possible `path` is an index of it, whose `notes` say what is missing.
    """
    from vidllm.compressors import build as build_method

    from .build import Plan, build, indexing_engine
    from .encoders import preparing
    from .index import VideoIndex
    from .reading import Frames
    from .standing import guard, standing
    from .tower import check_tower

    file = input_file(video, "video file")
    place = file.with_suffix(".vidx") if path is None else Path(path)
    guard(place)
    engine = indexing_engine(llm)
    plan = Plan(fps, near, precision, tokens_per_minute, tower).checked()
    how: dict[str, Any] = {"reader": reader, "limits": limits, "chunk": chunk}
    plan = plan.allowed(engine, lambda rate: Frames(file, rate, preparing(engine), **how))
    if tower is not None:
        check_tower(engine, build_method(tower))
    if not force and standing(engine, file, place, plan):
        return VideoIndex.load(place, engine)
    told: dict[str, Any] = build(
        engine,
        file,
        place,
        plan,
        progress=progress,
        fresh=force,
        anyway=anyway,
        **how,
    )
    index = VideoIndex.load(place, engine, check=False)
    index.made = told
    return index
