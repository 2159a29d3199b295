"""What a model said about a video."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vidllm.cost.receipt import Receipt
from vidllm.timecode import Span
from vidllm.tokens import TokenMap


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Args:
        text: the answer with its times as seconds.
        spans: the times it names, in seconds of the video; the score of each is the mean
            (geometric) probability that the model gave the tokens that spell it.
        receipt: what it cost. Questions asked together share stages; their receipts show the
            seconds of the whole call, and by how many answers each stage is shared.
        raw: the model's own words, time tokens and all.
        failed: a time was asked for and none was found (`spans` then holds what the time code
            does in this case: the whole video, or nothing).
        notes: what the user should know, one line each.
        letters: for every letter of `choices` the natural log-probability that the answer begins
            with it, over all tokens of the model; from the same prefill as the answer. None
            without choices, or where the tokenizer has no single token for a letter.
        kept: what became of every video token on the way to the LLM's last layers.
    """

    text: str
    spans: tuple[Span, ...]
    receipt: Receipt
    raw: str = ""
    failed: bool = False
    notes: tuple[str, ...] = ()
    letters: dict[str, float] | None = None
    kept: TokenMap | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: spans as [start, end], their scores beside; `letters` where there are some.

        Without `kept`, which has an `as_dict` of its own.
        """
        told: dict[str, Any] = {} if self.letters is None else {"letters": self.letters}
        return {
            "text": self.text,
            "spans": [[round(s.start, 3), round(s.end, 3)] for s in self.spans],
            "scores": [round(s.score, 4) for s in self.spans],
            "failed": self.failed,
            "raw": self.raw,
            "receipt": self.receipt.as_dict(),
            "notes": list(self.notes),
            **told,
        }


def shift_seconds(text: str, origin: float) -> str:
    """Move every "12.3 s" of a text by `origin` seconds."""
    if not origin:
        return text
    return re.sub(r"(\d+\.\d) s\b", lambda m: f"{float(m[1]) + origin:.1f} s", text)
