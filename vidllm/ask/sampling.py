"""The clip that a question looks at: a file's frames, as a call, a model or a budget wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidllm.errors import InputError
from vidllm.progress import Listener
from vidllm.video import Limits, VideoClip, load_video
from vidllm.video.memory_frames import is_frames

from .options import Video, fitting_frames


def clip_of(
    llm: Any,
    video: Video,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    limits: Limits | None,
    listener: Listener | None,
) -> VideoClip:
    """See `VideoLLM.sample`.

    Args:
        llm: the `VideoLLM`. given: frames, fps, seconds, start and end of the call.
        options: its tokens, compressor and keep.
    """
    seconds = given.get("seconds")
    if is_frames(video):
        for name in ("frames", "start", "end"):
            if given[name] is not None:
                raise InputError(f"{name} is of a file: of frames in memory all are looked at")
        return VideoClip.from_frames(video, seconds=seconds, fps=given["fps"])
    if seconds is not None:
        raise InputError("seconds is of frames in memory: a file or a clip has its own")
    if isinstance(video, VideoClip):
        if any(value is not None for value in given.values()):
            raise InputError("frames, fps, start and end belong to load_video when a clip is given")
        return video
    file: Any = video
    frames, fps, tokens = given["frames"], given["fps"], options["tokens"]
    if frames is None and fps is None:
        frames, fps = llm.frames, llm.fps
    if frames is None and fps is None:
        fps = llm.engine.usual_fps
        frames = llm.usual_frames if fps is None else None
    part: dict[str, Any] = {"start": given["start"], "end": given["end"], "reader": llm.reader}
    if isinstance(frames, str):
        if frames != "auto":
            raise InputError(f"frames is a number or 'auto', not {frames!r}")
        tokens = llm.tokens if tokens is None else tokens
        if tokens is None:
            raise InputError("frames='auto' picks frames for a number of tokens: give tokens")
        if fps is not None:
            raise InputError("give only one of frames and fps")
        method = llm.method_of(options["compressor"], tokens, options["keep"])
        peek = load_video(file, frames=1, limits=limits or Limits(), **part)
        frames = fitting_frames(peek, tokens, limits or Limits(), method, llm.count)
    return load_video(file, frames=frames, fps=fps, limits=limits, listener=listener, **part)
