"""From the answers of a finished run to the table of methods: scores, tests and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...run.answer_costs import Cost
from ...run.journal import Key, Row, in_order
from ...run.results import Outcome, common_part, failed_videos, outcome_of
from ...run.run_settings import FULL
from ...scores.statistics import holm
from ...tasks.base import Task
from .candidates import kind_of, method_of
from .measured_scores import Measured, measured, scores_by_purpose
from .method_table import (
    CONTROL,
    FORMAT,
    RANDOM,
    REFERENCES,
    SECONDS,
    UNCOMPRESSED,
    MethodTable,
    columns_of,
)

#: From run.json, as far as it says something.
_FROM_RUN = (
    "task", "family", "split", "seed", "limit", "items", "clips", "options", "kinds", "model",
    "weights", "frames", "fps", "max_new_tokens", "dtype", "device", "device_name", "versions",
    "python", "commit",
)  # fmt: skip


def make_table(
    task: Task,
    results: Mapping[str, Any],
    rows: Mapping[Key, Row],
    met: Mapping[str, Sequence[float]],
) -> MethodTable:
    """The table of a finished run.

    Args:
        results: the contents of results.json. rows: by setting and item, read anew.
        met: see `candidates.met_in_training`.
    """
    refused: dict[str, str] = {}
    for label, reason in results.get("refused", {}).items():
        refused.setdefault(label.rpartition("@")[0], reason)
    outcomes: dict[str, Outcome] = {}
    for one in results["settings"]:
        some = in_order(rows, [one["label"]])
        if one["label"] != FULL and all(row["error"] is not None for row in some):
            refused.setdefault(one["label"], next(iter(failed_videos(some))))
        else:
            outcomes[one["label"]] = outcome_of(task, one["label"], some)
    of, seed = common_part(list(outcomes.values())), int(results["seed"])
    scores = {label: measured(task, outcome, of) for label, outcome in outcomes.items()}
    found = [
        score_row(results["results"][label], outcome, scores[label], scores[FULL], seed, met)
        for label, outcome in outcomes.items()
    ]
    names = list(scores[FULL])
    for name in names:
        _compare(found, {label: some[name] for label, some in scores.items()}, name, seed)
    for row in found:
        del row["label"]
    setting = {"format": FORMAT} | {k: results[k] for k in _FROM_RUN if results.get(k) is not None}
    setting["scores"] = {
        p: [n for n in some if n in names] for p, some in scores_by_purpose(task).items()
    }
    setting |= {"made": hasattr(task, "prepare"), "refused": refused}
    return MethodTable(setting, found)


def score_row(
    one: Mapping[str, Any],
    outcome: Outcome,
    scores: Mapping[str, Measured],
    full: Mapping[str, Measured],
    seed: int,
    met: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """The scores and costs of one setting, by the columns of a table; nothing is compared yet.

    Args:
        one: the setting's entry of results.json. full: the scores that shares are of.
        met: see `candidates.met_in_training`.
    """
    compressor, costs = str(one["compressor"]), one["costs"]
    kind = kind_of(compressor, met)
    if compressor in ("none", RANDOM):
        kind = UNCOMPRESSED if compressor == "none" else CONTROL
    row: dict[str, Any] = {
        "label": outcome.label,
        "compressor": compressor,
        "keep": one["keep"],
        "stage": "" if compressor == "none" else method_of(compressor).stage,
        "kind": kind,
        "met": ", ".join(f"{100 * keep:g} %" for keep in met.get(compressor, ())),
        "tokens_full": costs["tokens_full"],
        "tokens_kept": costs["tokens_kept"],
        "answers": one["answers"],
        "videos": one["videos"],
        "failed": one["failed"],
        "unread": one["parse_failures"],
    }
    for name, score in scores.items():
        low, high = score.interval(seed)
        base = full[name].value
        share = score.value / base if base and score.value is not None else None
        row |= dict.fromkeys(columns_of(name))
        row |= {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_share": share}
    seconds = costs["seconds"]
    row |= {n: sum(seconds.get(s, 0.0) for s in stages) for n, stages in SECONDS.items()}
    row["total_s"] = costs["total_seconds"]
    calls = [row_.get("cost") or {} for row_ in outcome.rows]
    for name in ("vision_s", "select_s", "prefill_s"):
        row[f"call_{name}"] = _whole_call(calls, SECONDS[name])
    row["flops"] = sum(costs["flops"].values()) if costs["flops"] else None
    row["flops_vision"] = None  # of a model whose parts are not counted
    row |= {f"flops_{stage}": value for stage, value in costs["flops"].items()}
    row["kv_mb"] = costs["kv_kept_mb"]
    return row


def _whole_call(costs: Sequence[Cost], stages: Sequence[str]) -> float | None:
    """The mean of what the calls took that answers came from, undivided."""
    known = [sum(c["seconds"].get(s, 0.0) for s in stages) for c in costs if c.get("seconds")]
    return math.fsum(known) / len(known) if known else None


def _compare(
    rows: Sequence[dict[str, Any]], scores: Mapping[str, Measured], name: str, seed: int
) -> None:
    """Add a score's differences from the references, with Holm's p over the methods of a share."""
    for keep in dict.fromkeys(row["keep"] for row in rows if row["kind"] != UNCOMPRESSED):
        there = [row for row in rows if row["keep"] == keep and row["kind"] != UNCOMPRESSED]
        best = _best(there, name)
        for reference in REFERENCES:
            tested = []
            for row in there:
                other = {
                    "full": FULL,
                    "random": next((r["label"] for r in there if r["kind"] == CONTROL), None),
                    "best": best.get(row["kind"]),
                }[reference]
                test = None
                if other is not None and other != row["label"]:
                    test = scores[row["label"]].versus(scores[other], seed)
                place = f"{name}_vs_{reference}"
                told = test or dict.fromkeys(("difference", "low", "high", "p"))
                row |= {place: told["difference"], f"{place}_low": told["low"]}
                row |= {f"{place}_high": told["high"], f"{place}_p": told["p"]}
                tested += [row] if test is not None else []
            for row, p in zip(tested, holm([r[f"{place}_p"] for r in tested]), strict=True):
                row[f"{place}_holm"] = p


def _best(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """The label of the best row of every kind that is ranked."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["kind"] != CONTROL and row[name] is not None:
            best = found.setdefault(row["kind"], row)
            if row[name] > best[name]:
                found[row["kind"]] = row
    return {kind: str(row["label"]) for kind, row in found.items()}
