"""The results of the benchmark `stage` in one flat object, and beside its baselines in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vidllm.cli.tables import three_digits

from ..run.answer_costs import mean_costs
from ..run.journal import Key, Row, in_order, item_of, response_of
from ..tasks.stage import Stage

_ROWS = ("mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "qa_accuracy")
_ALONE = ("parse_failures", "why_mIoU", "why_accuracy", "highlights_mIoU", "caption_f1")


def flat(
    results: Mapping[str, Any], rows: Mapping[Key, Row], baselines: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One setting's results, all scores of `metrics.summarise` at the top.

    The setting is the one beside the uncompressed run, or that run where it is alone. Counts
    are means over clips, seconds over answers.

    Args:
        results: the contents of results.json. rows: of the run.
        baselines: what answers score that never look at a video, or None.
    """
    label = list(results["results"])[-1]
    chosen = in_order(rows, [label])
    items, responses = [item_of(row) for row in chosen], [response_of(row) for row in chosen]
    one = results["results"][label]
    named = {name: results[name] for name in ("task", "split", "seed", "model")}
    named |= {"setting": label, "compressor": one["compressor"], "keep": one["keep"]}
    found = {**named, **Stage().detail(items, responses, int(results["seed"])), **_costs(chosen)}
    if baselines is not None:
        found["baselines"] = dict(baselines)
    return found


def show(result: Mapping[str, Any]) -> None:
    """Print a `flat` result on standard output, its baselines beside."""
    baselines: Mapping[str, Mapping[str, Any]] = result.get("baselines", {})
    table = Table(title=f"{result['setting']} · {result['clips']} clips, {result['n']} questions")
    table.add_column("measure", no_wrap=True)
    table.add_column(Path(result["model"]).name, justify="right")
    for name in baselines:
        table.add_column(name.replace("_", "\n"), justify="right", style="dim")
    for row in _ROWS:
        others = [_number(scores.get(row)) for scores in baselines.values()]
        table.add_row(row, _number(result[row]), *others)
        if row == "mIoU" and result["mIoU_ci95"]:
            table.add_row("  95 %", "–".join(map(three_digits, result["mIoU_ci95"])))
    table.add_section()
    for name, scores in result["mIoU_by_length"].items():
        table.add_row(f"mIoU of {name}", _number(scores["mIoU"]))
    for row in _ALONE:
        table.add_row(row, _number(result[row]))
    table.add_section()
    guessed = baselines.get("question_only", {}).get("qa_by_kind", {})
    for kind, value in result["qa_by_kind"].items():
        others = [_number(guessed.get(kind)) if b == "question_only" else "" for b in baselines]
        table.add_row(f"QA: {kind}", _number(value), *others)
    Console().print(table)


def _costs(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over clips of what a call read, and over answers of the seconds."""
    first = {row["vid"]: row.get("cost") or {} for row in reversed(rows)}
    means = mean_costs(first.values())
    counts = {name: means[name] for name in ("frames", "tokens_full", "tokens_kept")}
    whole = {k: int(v) if v is not None and v == int(v) else v for k, v in counts.items()}
    answers = mean_costs(row.get("cost") or {} for row in rows)
    return {**whole, "seconds": answers["seconds"]}


def _number(value: float | None) -> str:
    return "" if value is None else three_digits(value)
