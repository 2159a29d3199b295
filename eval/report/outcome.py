"""What one setting of one run came to: its scores and what they cost, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

#: The setting that all others are measured against.
FULL = "none@1"
#: Stages of an answer in the order in which they run.
STAGES: tuple[str, ...] = ("decode", "encode", "compress", "prefill", "generate")


@dataclass(frozen=True)
class Category:
    """The headline over one category of questions, with its interval and how many there are."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


@dataclass(frozen=True)
class Outcome:
    """One setting of one run. Costs are means an answer; what was not measured is None.

    Args:
        label: of the setting, e.g. "aim+uniform@0.25". method, keep: its two halves.
        score: the headline. low, high: its 95 % interval.
        relative: headline / headline of the uncompressed run.
        difference: headline − that of the uncompressed run, paired; change_low, change_high its
            interval, p of no difference.
        scores, official: all scores by name, ours and the benchmark's own script's where it
            differs; unofficial: why there is none.
        groups: the headline by group and by category in it.
        frames, tokens_full, tokens_kept: counts. flops: predicted, by stage.
        seconds: spent an answer, by stage; questions that are asked together share them.
        kv_full_mb, kv_kept_mb, peak_mb: 10⁶ bytes.
        answers: how many there are. parse_failures: how many of them could not be read.
        failed: reason → videos for which there was no answer.
    """

    label: str
    method: str
    keep: float
    score: float | None = None
    low: float | None = None
    high: float | None = None
    relative: float | None = None
    difference: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    p: float | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    official: Mapping[str, float | None] = field(default_factory=dict)
    unofficial: str = ""
    groups: Mapping[str, Mapping[str, Category]] = field(default_factory=dict)
    frames: float | None = None
    tokens_full: float | None = None
    tokens_kept: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    kv_full_mb: float | None = None
    kv_kept_mb: float | None = None
    peak_mb: float | None = None
    answers: int = 0
    parse_failures: int = 0
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether nothing was compressed."""
        return self.label == FULL

    @property
    def share(self) -> float:
        """Share of the tokens kept: as asked for, or as measured where a number was asked for."""
        if self.keep < 1 or self.is_full or not self.tokens_full or self.tokens_kept is None:
            return self.keep
        return round(self.tokens_kept / self.tokens_full, 3)

    @property
    def total_seconds(self) -> float | None:
        """Seconds of all stages together."""
        return sum(self.seconds.values()) if self.seconds else None

    @property
    def prefill_flops(self) -> float | None:
        """Predicted FLOPs of the prefill."""
        return self.flops.get("prefill")

    @property
    def failed_videos(self) -> int:
        """Videos without any answer."""
        return len({video for videos in self.failed.values() for video in videos})


def split_label(label: str) -> tuple[str, float]:
    """The method and the share of "method@share".

    Raises:
        ValueError: another form.
    """
    method, at, share = label.rpartition("@")
    if not at or not method:
        raise ValueError(f"{label!r} is not method@share")
    return method, float(share)


def name_of(outcome: Outcome) -> str:
    """The label for people: "uncompressed", "aim 25 %", or "aim:budget=64"."""
    if outcome.is_full:
        return "uncompressed"
    asked = f" {100 * outcome.keep:g} %" if outcome.keep < 1 else ""
    return outcome.method + asked


def reference(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The uncompressed run among the outcomes."""
    return next((outcome for outcome in outcomes if outcome.is_full), None)


def methods(outcomes: Sequence[Outcome]) -> list[str]:
    """Methods in order of first appearance, without "none"."""
    return [m for m in dict.fromkeys(o.method for o in outcomes) if m != "none"]


def representatives(outcomes: Sequence[Outcome], most: int = 4) -> list[Outcome]:
    """Few outcomes that stand for all: the uncompressed run and the best of each share.

    Args:
        most: how many at most; of more shares the largest and the smallest stay.
    """
    full = reference(outcomes)
    rest = [o for o in outcomes if not o.is_full and o.score is not None]
    keeps = sorted({o.share for o in rest}, reverse=True)
    room = most - (full is not None)
    if len(keeps) > room > 0:
        step = (len(keeps) - 1) / max(1, room - 1)
        keeps = [keeps[round(k * step)] for k in range(room)]
    best = [max((o for o in rest if o.share == keep), key=_score) for keep in keeps]
    return [*([full] if full is not None else []), *best][:most]


def _score(outcome: Outcome) -> float:
    return -1.0 if outcome.score is None else outcome.score


def flop_unit(values: Sequence[float]) -> tuple[float, str]:
    """A unit that suits the largest of the values: divisor and name."""
    top = max(values, default=0.0)
    for size, name in ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs")):
        if top >= 0.1 * size:
            return size, name
    return 1.0, "FLOPs"


def best_of(
    outcomes: Sequence[Outcome],
    value: Callable[[Outcome], float | None],
    *,
    least: bool = False,
) -> set[str]:
    """Labels whose value is the best among compressed outcomes of the same share.

    Shares at which all values are equal, or only one setting was run, have no best.

    Args:
        value: of an outcome, None where it has none. least: the smallest is best.
    """
    found: set[str] = set()
    for share in {o.share for o in outcomes if not o.is_full}:
        here = [(o, value(o)) for o in outcomes if o.share == share and not o.is_full]
        known = [v for _, v in here if v is not None]
        if len(known) < 2 or min(known) == max(known):
            continue
        best = min(known) if least else max(known)
        found |= {o.label for o, v in here if v == best}
    return found
