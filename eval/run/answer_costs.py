"""What answers cost: one record an answer, means and sums of many.

Questions about a clip that are asked together share stages: their records keep the `seconds` of
the whole call, and in `spent` what of it falls to each. Means and sums are of `spent`, so that the
seconds of all answers under a setting add up to what they took.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vidllm.models.answer import Receipt

#: What a mean is taken of, as it stands in a receipt.
COUNTS: tuple[str, ...] = ("frames", "tokens_full", "tokens_kept", "kv_full_mb", "kv_kept_mb")
#: Stages that a clip goes through once, whoever asks about it.
CLIP_STAGES: tuple[str, ...] = ("decode", "encode")
Cost = Mapping[str, Any]


def costs_of(receipts: Sequence[Receipt], encode: float | None = None) -> list[dict[str, Any]]:
    """The records of answers to questions that were asked in one call.

    Args:
        receipts: of the answers.
        encode: seconds that encoding the clip took in an earlier call, where this one took what
            was remembered; None where it encoded the clip itself.

    Returns:
        One each: counts, memory, FLOPs, `seconds` of the call by stage, `shared_by`, `own`: the
        stages whose seconds are this answer's alone (those of a method that reads the
        question), and `spent`: this answer's share of all stages.
    """
    found = []
    for receipt in receipts:
        told = receipt.as_dict()
        seconds = {stage: float(value) for stage, value in told["seconds"].items()}
        own = [stage for stage in receipt.seconds if not _is_shared(stage, receipt, receipts)]
        if encode is not None:
            seconds["encode"] = round(encode, 4)
        record = {name: told[name] for name in COUNTS}
        record |= {"flops": told.get("flops"), "peak_mb": told.get("peak_mb")}
        record |= {"seconds": seconds, "shared_by": len(receipts)}
        record |= {"own": own} if own else {}
        exact = dict(receipt.seconds) if encode is None else {**receipt.seconds, "encode": encode}
        spent = {s: v if s in own else v / len(receipts) for s, v in exact.items()}
        found.append({**record, "spent": {s: round(v, 6) for s, v in spent.items()}})
    return found


def split(costs: Sequence[Cost], stages: Sequence[str]) -> list[dict[str, Any]]:
    """The records of answers that were asked one by one, with what was done once shared out.

    Args:
        costs: empty for failures. stages: that all the records name and only one went through.
    """
    count = sum(bool(cost) for cost in costs)
    found = []
    for cost in costs:
        spent = {s: v / count if s in stages else v for s, v in seconds_spent(cost).items()}
        found.append({**cost, "spent": spent} if cost else {})
    return found


def _is_shared(stage: str, receipt: Receipt, receipts: Sequence[Receipt]) -> bool:
    """Whether a stage was measured once for all of a call: as the receipt says, or where it says
    nothing, because all have the same seconds to the last bit."""
    if receipt.shared_by:
        return receipt.shared_by.get(stage, 1) == len(receipts)
    return all(r.seconds.get(stage) == receipt.seconds[stage] for r in receipts)


def seconds_spent(cost: Cost) -> dict[str, float]:
    """The part of a call's seconds that falls to one answer, by stage.

    Records of older runs have no `spent`; it follows from what they have.
    """
    if "spent" in cost:
        return {stage: float(value) for stage, value in cost["spent"].items()}
    shared, own = max(1, int(cost.get("shared_by") or 1)), cost.get("own", ())
    return {s: v if s in own else v / shared for s, v in cost.get("seconds", {}).items()}


def mean_costs(costs: Iterable[Cost]) -> dict[str, Any]:
    """Means over answers; what was not measured is None.

    `seconds` are each answer's share: times the answers they are what the setting took.
    """
    known = [cost for cost in costs if cost]
    means: dict[str, Any] = {name: _mean([cost.get(name) for cost in known]) for name in COUNTS}
    means["peak_mb"] = _mean([cost.get("peak_mb") for cost in known])
    means["flops"] = _by_name([cost.get("flops") or {} for cost in known])
    means["seconds"] = _by_name([seconds_spent(cost) for cost in known])
    means["total_seconds"] = _rounded(sum(means["seconds"].values())) if known else None
    return means


def sum_costs(costs: Iterable[Cost]) -> dict[str, Any]:
    """Sums over answers: seconds as they were spent, FLOPs as if every answer was made alone.

    `peak_mb` is the largest.
    """
    known = [cost for cost in costs if cost]
    sums: dict[str, Any] = {"answers": len(known)}
    for name in ("tokens_full", "tokens_kept", "kv_full_mb", "kv_kept_mb"):
        sums[name] = _rounded(sum(float(cost.get(name) or 0) for cost in known))
    peaks = [float(cost["peak_mb"]) for cost in known if cost.get("peak_mb") is not None]
    sums["peak_mb"] = max(peaks) if peaks else None
    sums["flops"] = _by_name([cost.get("flops") or {} for cost in known], total=True)
    sums["seconds"] = _by_name([seconds_spent(cost) for cost in known], total=True)
    sums["total_seconds"] = _rounded(sum(sums["seconds"].values()))
    return sums


def _by_name(rows: Sequence[Mapping[str, float]], total: bool = False) -> dict[str, float]:
    """Means or sums of entries, in order of their first; one that a row lacks counts 0."""
    names = dict.fromkeys(name for row in rows for name in row)
    sums = {name: float(sum(row.get(name, 0.0) for row in rows)) for name in names}
    return {name: _rounded(v if total else v / len(rows)) for name, v in sums.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return _rounded(float(np.mean(known))) if known else None


def _rounded(value: float) -> float:
    """Six significant digits: measurements are no better."""
    return float(f"{value:.6g}")
