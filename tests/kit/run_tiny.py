"""Runs of the evaluation harness that cost little: tiny models, tiny videos, few tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval_data import made_tasks, make
from videos import write_video

from vidllm.cli.options import CommonOptions
from vidllm.eval.run.evaluate import Finished, evaluate
from vidllm.eval.run.run_config import Order
from vidllm.eval.run.run_settings import wanted
from vidllm.eval.tasks import get_task

FINAL = ("answers.jsonl", "costs.jsonl", "results.json", "results.csv")


def write_charades(folder: Path, videos: int = 3) -> Path:
    """Charades-STA with two queries a video."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(videos):
        name, frames = f"V{k:04d}", 12 + 4 * (k % 3)
        write_video(folder / "videos" / f"{name}.mp4", frames, fps=4, size=(64, 48))
        lines += [f"{name} 0.5 2.0##person opens a door.", f"{name} 1.0 {frames / 4}##a dog runs."]
    (folder / "charades_sta_test.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_options(model: Path, **more: Any) -> CommonOptions:
    """Four frames on the CPU, and nothing on standard error but errors."""
    return CommonOptions(**{"model": str(model), "frames": 4, "device": "cpu", "json": True} | more)


def order(
    name: str,
    data: Path,
    out: Path | None,
    compressor: str | None = "uniform",
    keep: str | None = "0.5",
    **more: Any,
) -> Order:
    """What `vidllm eval NAME --data DATA --out OUT …` asks for, with answers of three tokens."""
    full = more.pop("full", True)
    task = more.pop("task", None) or get_task(name)
    asked = {"data": data, "out": out, "max_new_tokens": 3, **more}
    return Order(task=task, wanted=wanted(compressor, keep, full=full), **asked)


def done(asked: Order, options: CommonOptions) -> Finished:
    """The finished run."""
    found = evaluate(asked, options)
    assert found is not None
    return found


def final(folder: Path) -> dict[str, bytes]:
    """The files of a finished run that are the same for the same run, as bytes."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for one in results["results"].values():  # what was measured
        one["costs"] = one["sums"] = None
    return {
        "answers": (folder / "answers.jsonl").read_bytes(),
        "results": json.dumps(results, sort_keys=True).encode(),
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


__all__ = [
    "FINAL", "done", "final", "made_tasks", "make", "order", "rows_of", "tiny_options",
    "write_charades",
]  # fmt: skip
