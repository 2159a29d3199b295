"""What a model said about a video, and the receipt of what it cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

from vidllm.errors.plain import plain
from vidllm.errors.printable import printable_json
from vidllm.timecode import Span
from vidllm.timecode.clock import by_clock, is_long, names_all, span_text
from vidllm.tokens import TokenMap


@dataclass(frozen=True)
class Receipt:
    """The one-line account of an answer.

    Args:
        frames: frames that the model saw.
        tokens_full: video tokens without compression; tokens_kept: those that the LLM saw.
        kv_full_mb, kv_kept_mb: KV cache of these tokens, in MB (10⁶ bytes).
        seconds: wall seconds by stage. `decode` is reading the video. Questions that are asked
            together share stages; their receipts all show the seconds of the whole call.
        shared_by: for every stage among how many answers its seconds are to be divided; a stage
            that is not named is this answer's alone.
        peak_mb: the most memory that the whole call held above what there was before, in MB;
            None where it was not measured (see `VideoLLM.measures_memory`).
        method: the name of the compressors that ran, "none" for none.
        model: the name of the model; "" where it has none.
        flops: floating point operations by stage ("vision", "temporal", "prefill", "decode"),
            predicted from the shapes of the model and the very tokens that every layer read, as
            if this question were asked alone of a video that was not encoded before; None where
            the shapes are not known.
    """

    frames: int
    tokens_full: int
    tokens_kept: int
    kv_full_mb: float
    kv_kept_mb: float
    seconds: dict[str, float]
    peak_mb: float | None = None
    flops: dict[str, float] | None = None
    shared_by: Mapping[str, int] = field(default_factory=dict, compare=False)
    method: str = "none"
    model: str = ""

    @property
    def total(self) -> float:
        """Seconds of all stages together: how long one waited for this answer."""
        return sum(self.seconds.values())

    @property
    def own_seconds(self) -> dict[str, float]:
        """This answer's share of the seconds, by stage: over the answers of a call they add up
        to what the call took."""
        return {k: v / max(1, self.shared_by.get(k, 1)) for k, v in self.seconds.items()}

    @property
    def together(self) -> int:
        """How many answers share a stage with this one, itself counted."""
        return max(self.shared_by.values(), default=1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; seconds rounded to 0.1 ms."""
        plain = asdict(replace(self, shared_by=dict(self.shared_by)))
        plain["seconds"] = {k: round(v, 4) for k, v in self.seconds.items()}
        plain["own_seconds"] = {k: round(v, 4) for k, v in self.own_seconds.items()}
        plain["kv_full_mb"] = round(self.kv_full_mb, 3)
        plain["kv_kept_mb"] = round(self.kv_kept_mb, 3)
        plain["peak_mb"] = None if self.peak_mb is None else round(self.peak_mb, 3)
        return {**plain, "total_seconds": round(self.total, 4)}

    def __str__(self) -> str:
        share = 100 * self.tokens_kept / max(1, self.tokens_full)
        by = "" if self.method == "none" else f" by {self.method}"
        parts = [
            f"{self.frames} frames",
            f"tokens {self.tokens_full} → {self.tokens_kept} ({share:.3g} %){by}",
            f"KV {self.kv_full_mb:.1f} → {self.kv_kept_mb:.1f} MB",
        ]
        unit = " s"  # said once, on the first stage
        for name, seconds in self.seconds.items():
            parts.append(f"{name} {seconds:.{2 if seconds >= 0.01 else 3}f}{unit}")
            unit = ""
        if self.together > 1:
            shared = [name for name in self.seconds if self.shared_by.get(name, 1) > 1]
            own = sum(self.own_seconds.values())
            parts.append(
                f"{self.together} questions share {', '.join(shared)}: {own:.2g} s are this one's"
            )
        parts += [f"model {self.model}"] if self.model else []
        return " · ".join(parts)

    to_dict = as_dict


@dataclass(frozen=True, repr=False)
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(dict.fromkeys(self.notes)))  # each is said once

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

    to_dict = as_dict

    def to_json(self) -> str:
        """`to_dict` as one JSON object; what is no finite number is null."""
        return printable_json(json.dumps(plain(self.as_dict()), ensure_ascii=False))

    def __str__(self) -> str:
        """The text, and those spans that it does not name; by the clock beyond ten minutes."""
        times = [] if names_all(self.text, self.spans) else self._times()
        return "\n".join([self._text(), *times])

    def __repr__(self) -> str:
        times = f", spans=[{'; '.join(self._times())}]" if self.spans else ""
        failed = ", failed=True" if self.failed else ""
        return f"Answer({self._text()!r}{times}{failed}, receipt='{self.receipt}')"

    def _repr_html_(self) -> str:
        """For notebooks: the text, its spans with their scores, notes and the receipt."""
        rows = "".join(
            f"<li>{escape(told)} <small>({span.score:.2f})</small></li>"
            for told, span in zip(self._times(), self.spans, strict=True)
        )
        notes = "".join(f"<br>note: {escape(note)}" for note in self.notes)
        text = escape(self._text()).replace("\n", "<br>")
        listed = f"<ul>{rows}</ul>" if rows else ""
        return f"<div><p>{text}</p>{listed}<small>{escape(str(self.receipt))}{notes}</small></div>"

    def _text(self) -> str:
        return by_clock(self.text) if is_long(self.spans) else self.text

    def _times(self) -> list[str]:
        long = is_long(self.spans)
        return [span_text(span, long) for span in self.spans]


def shift_seconds(text: str, origin: float) -> str:
    """Move every "12.3 s" of a text by `origin` seconds."""
    if not origin:
        return text
    return re.sub(r"(\d+\.\d) s\b", lambda m: f"{float(m[1]) + origin:.1f} s", text)
