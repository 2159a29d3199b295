"""What a run of `vidllm bench retrieval` says of TempMe's claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .claim_rows import COMPARABLE

#: What "half" and "95 % fewer" are in the verdict.
FLOPS, TOKENS = 0.5, 0.05
_KEPT = {True: "kept", False: "not kept", None: "not clear"}


@dataclass(frozen=True)
class Finding:
    """What the trainings of one seed say of the paper's claim.

    Attributes:
        kept: whether retrieval is; None where the interval leaves it open. cheap, few: whether
            FLOPs and tokens are as few as claimed. told: numbers, in a line.
    """

    kept: bool | None
    cheap: bool
    few: bool
    told: str

    @property
    def held(self) -> bool | None:
        """Whether the whole claim did; None where that is not clear."""
        return self.kept if self.cheap and self.few else False


def findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Of every seed that has both arms: all of TempMe, and adapters without merging.

    Retrieval is kept where R@1 is comparable to that without merging by the whole interval of the
    difference, and not kept where it is less by the whole interval.
    """
    found = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        own = {row["arm"]: row for row in rows if row["seed"] == seed}
        if "lora" not in own or "lora both" not in own:
            continue
        plain, whole = own["lora"], own["lora both"]
        sums = [r["R-Sum"] + r["V2T R-Sum"] for r in (plain, whole)]
        least = -(1 - COMPARABLE) * plain["R@1"]
        low, high = whole["to_lora_low"], whole["to_lora_high"]
        kept = True if low >= least else False if high < least else None
        cheap = whole["gflops_share"] <= FLOPS + 0.02
        few = whole["tokens_share"] <= TOKENS + 0.005
        told = (
            f"seed {seed}: R@1 {plain['R@1']:.3f} → {whole['R@1']:.3f}, {whole['to_lora']:+.3f} "
            f"({low:+.3f} to {high:+.3f}; {COMPARABLE:.0%} is {least:+.3f}: {_KEPT[kept]}), R-Sum "
            f"of both ways {sums[0]:.3f} → {sums[1]:.3f}, FLOPs {whole['gflops_share']:.0%} "
            f"({'half' if cheap else 'not half'}), tokens {whole['tokens_share']:.1%} "
            f"({'95 % fewer' if few else 'more than a twentieth'}), {whole['speed_up']:.2f} times "
            "as fast"
        )
        found.append(Finding(kept, cheap, few, told))
    return found


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether the paper's claim held in direction, a line a seed."""
    return "\n".join(one.told for one in findings(rows))
