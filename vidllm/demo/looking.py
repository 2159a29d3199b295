"""What a method leaves of a visitor's video, without the LLM: the clip is read and encoded once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidllm.errors import InputError

from .host import Host
from .jobs import Job
from .sessions import Session

if TYPE_CHECKING:
    from vidllm.tokens import TokenMap
    from vidllm.video import VideoClip


@dataclass(frozen=True)
class Look:
    """What is seen.

    Attributes:
        clip: the sampled video. kept: what is left of its tokens; None where only the LLM knows.
        note: a line about it. problem: what is wrong with the method, or "".
    """

    clip: VideoClip
    kept: TokenMap | None
    note: str = ""
    problem: str = ""


def look(
    host: Host, session: Session, job: Job, question: str, spec: str, keep: float, frames: int
) -> Look:
    """Look at the clip of a session through a method.

    Raises:
        InputError: a video that cannot be read. Stopped: the job was stopped.
    """
    clip = host.clip(session, frames, job)
    began = time.perf_counter()
    try:
        method = host.method(spec, keep)
        if method.inside_decoder():
            note = f"{spec} chooses while the LLM runs: ask, and what it kept is shown here."
            return Look(clip, None, note)
        if method.query_aware and not question.strip():
            return Look(clip, None, f"{spec} reads the question: write one to see what it keeps.")
        job.stage("encode")
        with host.turn(job):
            kept = session.llm.preview(clip, question, compressor=method)
    except InputError as error:
        return Look(clip, None, "", str(error))
    took = time.perf_counter() - began
    share = 100 * len(kept) / max(1, kept.total)
    asked = f"For “{question.strip()}” " if method.query_aware else ""
    note = (
        f"{asked}{spec} keeps {len(kept):,} of {kept.total:,} tokens ({share:.3g} %), seen in "
        f"{1000 * took:.0f} ms without the LLM."
    )
    return Look(clip, kept, note)
