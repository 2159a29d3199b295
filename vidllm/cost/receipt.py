"""What a run costs: the receipt that every answer carries."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vidllm.progress import Listener, check

if TYPE_CHECKING:
    import torch


@dataclass
class Stopwatch:
    """Wall seconds by stage, in the order in which the stages first ran, told to a listener."""

    seconds: dict[str, float] = field(default_factory=dict)
    listener: Listener | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside towards `name`. Raises `Stopped` where the listener says so."""
        self.begin(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def begin(self, name: str) -> None:
        """Tell the listener of a stage, unless it wants the work to end."""
        check(self.listener)
        if self.listener is not None:
            self.listener.stage(name)
            check(self.listener)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self.listener is not None:
            self.listener.seconds(name, self.seconds[name])

    def copy(self) -> Stopwatch:
        """Another one that goes on from here, for the same listener."""
        return Stopwatch(dict(self.seconds), self.listener)


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
        parts = [
            f"{self.frames} frames",
            f"tokens {self.tokens_full} → {self.tokens_kept} ({share:.3g} %)",
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
        return " · ".join(parts)


def pooled(receipts: Sequence[Receipt], stages: Sequence[str]) -> list[Receipt]:
    """The receipts of one call with some stages summed up and shared by all.

    For what is done once, with the first question, and serves those that follow.
    """
    sums = {s: sum(r.seconds.get(s, 0.0) for r in receipts) for s in stages}
    return [
        replace(
            r,
            seconds={s: sums.get(s, v) for s, v in r.seconds.items()},
            shared_by={**r.shared_by, **dict.fromkeys(sums, len(receipts))},
        )
        for r in receipts
    ]


@dataclass
class Peak:
    """The most memory that a call held, in MB; None where nothing measures it."""

    megabytes: float | None = None


@contextmanager
def peak_memory(device: torch.device, tensors: bool = False) -> Iterator[Peak]:
    """Measure a call: CUDA's allocator says it for nothing; on a CPU tensors must be counted.

    Args:
        device: of the model. tensors: count them on a CPU, which takes time at every operation.
    """
    peak = Peak()
    if device.type != "cuda" and not tensors:
        yield peak
        return
    from .memory import tensor_peak

    with tensor_peak(device) as seen:
        yield peak
    peak.megabytes = seen.megabytes


def kv_bytes_per_token(config: Any, element_size: int) -> int:
    """Bytes that one token takes in the KV cache of a decoder with this transformers config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * element_size)
