"""From a clip and a question to the prompt of a hub model.

A prompt is rendered by the checkpoint's chat template where it has one, else by the family's
documented one (`Script.template`). The mark of the video in it is then replaced by what the
family's processor writes there (see `scripts`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError, WorkError

from .family import Adapter, grids_of
from .scripts import TIMES, Placed, Script

_QUESTION = "{question}"


def marks_of(script: Script, config: Any, tokenizer: Any) -> dict[str, str]:
    """The texts of a family's own tokens in a checkpoint.

    Raises:
        InputError: a tokenizer that lacks the token of the config's video id.
    """
    found = {}
    for name, (source, text) in script.marks.items():
        if not source.endswith("_id"):
            found[name] = str(getattr(tokenizer, source, None) or text)
            continue
        token = tokenizer.convert_ids_to_tokens(int(getattr(config, source)))
        if token is None:
            raise InputError(
                f"the tokenizer has no token {getattr(config, source)}, the config's {source}: "
                "get the tokenizer's files of this very model"
            )
        found[name] = str(token)
    return found


def place(
    adapter: Adapter,
    marks: Mapping[str, str],
    pixels: Mapping[str, Tensor],
    seconds: Sequence[float],
    duration: float,
) -> Placed:
    """A clip's places in the prompt, from the pixels that were made of it."""
    config, grid = adapter.config, pixels.get("video_grid_thw")
    side = int(getattr(adapter, "cells", 0) or -(-int(getattr(adapter, "side", 0)) // 2))
    shape = (len(seconds), side, side)
    if grid is not None:
        sides: Any = getattr(config.vision_config, "spatial_merge_size", None)
        merges = pixels.get("video_merge_sizes")
        shape = grids_of(grid, int(sides) if merges is None else merges.tolist())[0]
    counts = [shape[1] * shape[2]] * shape[0]
    mask = pixels.get("video_compression_mask")
    if mask is not None:
        counts = [int(part.sum()) for part in mask.view(shape[0], -1)]
    return Placed([float(s) for s in seconds], duration, shape, counts, marks)


def chat(script: Script, tokenizer: Any, template: str | None, marks: Mapping[str, str]) -> str:
    """The chat around one question, with the mark of the video and "{question}" in it.

    Args:
        template: the checkpoint's own, or None.

    Raises:
        WorkError: a template that has no place for a video.
    """
    inside = script.content.format(**marks, question=_QUESTION)
    if template is None or script.fixed:
        return script.template.replace("{content}", inside)
    parts: Any = [{"type": "video"}, {"type": "text", "text": _QUESTION}]
    for content in (parts, inside):  # templates of text models take the content as a text
        turn = [{"role": "user", "content": content}]
        try:
            text = str(
                tokenizer.apply_chat_template(
                    turn, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception:  # jinja's errors, or whatever the template raises itself
            continue
        if text.count(marks["video"]) == 1 and text.count(_QUESTION) == 1:
            return text
    raise WorkError("the model's chat template has no place for a video and a question")


def write(script: Script, frame: str, clip: Placed, question: str, *, times: bool = False) -> str:
    """The whole prompt, every video token written out.

    Args:
        frame: what `chat` gave. times: put the seconds of the frames before the question, in words.
    """
    mark = script.mark.format(**clip.marks)
    mark = mark if mark in frame else clip.marks["video"]
    if times:
        told = ",".join(f"{time:.2f}s" for time in clip.seconds)
        count = len(clip.seconds)
        question = TIMES.format(duration=clip.duration, count=count, times=told) + question
    before, after = frame.split(mark)
    return before + script.expand(clip) + after.replace(_QUESTION, question)


def shorten(text: str, pad: str) -> str:
    """The prompt for people: runs of video tokens as "<video 196>"."""
    one = re.escape(pad)
    return re.sub(f"(?:{one})+", lambda run: f"<video {len(run[0]) // len(pad)}>", text)


def pace(seconds: Sequence[float], slots: int, length: float) -> float:
    """Seconds from one slot of frames to the next, in the mean.

    Args:
        seconds: (T,) of the frames. slots: of the grid. length: of the range, for a lone frame.
    """
    each = -(-len(seconds) // slots)
    if len(seconds) < 2:
        return max(length, 1e-3)
    return max(each * (seconds[-1] - seconds[0]) / (len(seconds) - 1), 1e-3)


def beside(adapter: Adapter, clip: Placed, ids: Tensor, length: float) -> dict[str, Any]:
    """What a family's processor gives beside a prompt (1, L) and pixels: kinds of tokens, pace.

    Args:
        length: of the range that was looked at, in seconds.
    """
    made: dict[str, Any] = {}
    kind = str(adapter.config.model_type)
    if kind in ("qwen2_5_vl", "qwen3_vl"):
        config = adapter.config
        made["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (
            ids == config.video_token_id
        ).int()
    if kind == "qwen2_5_vl":
        made["second_per_grid_ts"] = torch.tensor([pace(clip.seconds, clip.grid[0], length)])
    return made
