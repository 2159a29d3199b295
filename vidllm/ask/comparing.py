"""The same question with all video tokens and with fewer: what it saves and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vidllm.errors.keywords import known_keywords
from vidllm.models.answer import Answer, Receipt
from vidllm.progress import Listener, Stopwatch
from vidllm.timecode import Span
from vidllm.video import VideoClip

from .options import AskOptions, Method
from .sharing import twin

#: Mean IoU of the spans from which on two answers agree.
AGREE_IOU = 0.5


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question.

    Attributes:
        full: without compression. less: with it.
    """

    full: Answer
    less: Answer

    @property
    def overlap(self) -> float | None:
        """Mean IoU of every span of either answer with the best of the other; None where one of
        them has no span."""
        return overlap(self.full.spans, self.less.spans)

    @property
    def agree(self) -> bool:
        """Whether both say the same: where both name times, their mean IoU is at least 0.5; else
        the words are the same but for blanks and case."""
        shared = self.overlap
        if shared is not None:
            return shared >= AGREE_IOU
        return _plain(self.full.text) == _plain(self.less.text)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shared = self.overlap
        return {
            "full": self.full.as_dict(),
            "less": self.less.as_dict(),
            "agree": self.agree,
            "overlap": None if shared is None else round(shared, 4),
        }


@known_keywords(AskOptions, compressors="compressor")
def compare(
    llm: Any,
    clip: VideoClip,
    question: str,
    *,
    compressor: Method = None,
    keep: float | None = None,
    listeners: tuple[Listener | None, Listener | None] = (None, None),
    **options: Any,
) -> Comparison:
    """Ask without compression and with it, and measure both.

    Args:
        llm: the `VideoLLM`. compressor, keep: None for the model's own.
        listeners: of the full and of the compressed call. options: others of `VideoLLM.ask`.

    Raises:
        InputError, Stopped: as `ask`.
    """
    ways: tuple[dict[str, Any], ...] = (
        {"compressor": "none"},
        {"compressor": compressor, "keep": keep},
    )
    full, less = (
        measured(llm, clip, question, listener=heard, **way, **options)
        for way, heard in zip(ways, listeners, strict=True)
    )
    return Comparison(full, less)


def measured(
    llm: Any,
    clip: VideoClip,
    question: str,
    *,
    max_new_tokens: int | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Answer:
    """As `VideoLLM.ask`, with all stages and the peak memory in the receipt.

    The clip is encoded anew, so that `encode` counts. The peak comes from a pass of its own up to
    the first token, as counting memory on a CPU would lengthen the seconds of the other; it also
    warms the model up. Decoding adds to the peak only what the answer's own tokens take.

    Args:
        llm: the `VideoLLM`.
        listener: hears of the first pass as a stage "memory", and of all that the second one
            does; it may stop both. Others as for `ask`.

    Raises:
        InputError, Stopped: as `ask`.
    """
    own = twin(llm)
    own.measures_memory = True
    with Stopwatch(listener=listener).stage("memory"):
        silent = None if listener is None else _Silent(listener)
        first = own.ask(replace(clip), question, max_new_tokens=1, listener=silent, **options)
    own = twin(llm)
    own.measures_memory = False
    answer = own.ask(
        replace(clip), question, max_new_tokens=max_new_tokens, listener=listener, **options
    )
    return replace(answer, receipt=replace(answer.receipt, peak_mb=first.receipt.peak_mb))


def first_token(receipt: Receipt) -> float:
    """Seconds from the video file to the answer's first token (TTFT): all stages but `generate`."""
    return sum(value for stage, value in receipt.seconds.items() if stage != "generate")


def overlap(one: Sequence[Span], two: Sequence[Span]) -> float | None:
    """Mean IoU of every span of either side with the best of the other; None where one is empty."""
    if not one or not two:
        return None
    best = [max(a.iou(b) for b in two) for a in one]
    best += [max(a.iou(b) for a in one) for b in two]
    return sum(best) / len(best)


class _Silent(Listener):
    """Hears nothing, but may stop the work."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def stopped(self) -> bool:
        return self.listener.stopped()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
