"""The result of an evaluation as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_ROWS = ("mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "qa_accuracy")
_ALONE = ("parse_failures", "why_mIoU", "why_accuracy", "highlights_mIoU", "caption_f1")


def show(result: dict[str, Any]) -> None:
    """Print the result of `eval.stage.evaluate` on standard output, baselines beside."""
    baselines: dict[str, dict[str, Any]] = result.get("baselines", {})
    table = Table(
        title=f"stage · {result['split']} · seed {result['seed']} · {result['clips']} clips, "
        f"{result['n']} questions",
        caption=_caption(result),
        caption_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    table.add_column(Path(result["model"]).name, justify="right")
    for name in baselines:
        table.add_column(name.replace("_", "\n"), justify="right", style="dim")
    for row in _ROWS:
        others = [_number(scores.get(row)) for scores in baselines.values()]
        table.add_row(row, _number(result[row]), *others)
        if row == "mIoU" and result["mIoU_ci95"]:
            table.add_row("  95 %", "–".join(map(_number, result["mIoU_ci95"])))
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


def _caption(result: dict[str, Any]) -> str:
    share = 100 * result["tokens_kept"] / max(1.0, result["tokens_full"])
    seconds = " · ".join(f"{stage} {value:.3f}" for stage, value in result["seconds"].items())
    return (
        f"{result['compressor']}, keep {result['keep']:g} · {result['frames']:g} frames · tokens "
        f"{result['tokens_full']:g} → {result['tokens_kept']:g} ({share:.3g} %)\n"
        f"seconds a clip: {seconds}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
