"""An answer as JSON, with the call that gives it again (`vidllm.ask.calls.Call.from_dict`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vidllm import __version__
from vidllm.ask.calls import Call
from vidllm.errors.plain import plain

from .sessions import Session

if TYPE_CHECKING:
    from vidllm.ask.comparing import Comparison
    from vidllm.models.answer import Answer


def as_json(
    call: Call,
    session: Session,
    answer: Answer | None = None,
    comparison: Comparison | None = None,
) -> str:
    """All there is of an answer: the call, the video's frames, the answer, the tokens kept."""
    told: dict[str, Any] = {"vidllm": __version__, "call": call.as_dict()}
    clip = session.clip
    told["video"] = {"name": session.name, "duration": session.duration}
    if clip is not None and call.task != "index":
        told["video"] |= {"fps": clip.fps, "frames": clip.seconds.round(3).tolist()}
    if answer is not None:
        told["answer"] = answer.as_dict()
        if answer.kept is not None:
            told["kept"] = answer.kept.as_dict()
    if comparison is not None:
        told["comparison"] = comparison.as_dict()
    return json.dumps(plain(told), ensure_ascii=False, indent=1)
