"""Every benchmark from its official files to results, through the runner, with a tiny model."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tiny import FINAL, done, final, made_tasks, make, order, rows_of, tiny_options
from tiny import save_tiny

from vidllm.eval.run.journal import item_of, response_of
from vidllm.eval.run.records import RunFolder
from vidllm.eval.run.results import rescore
from vidllm.eval.tasks import get_task, task_names


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with its tokenizer, for retrieval."""
    import test_tasks_retrieval as tiny

    folder = tmp_path_factory.mktemp("model") / "clip"
    tiny.model("clip").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def small(name: str) -> Any:
    """The task, the one that makes its videos with as few as can be."""
    kind = type(get_task(name))
    options = {"lengths": (1.0,), "depths": (50.0,), "chapters": 1, "asked": 2}
    known = {entry.name for entry in fields(kind)} if is_dataclass(kind) else set()
    return kind(**{key: value for key, value in options.items() if key in known})


@pytest.mark.parametrize("name", task_names())
def test_a_benchmark_runs_from_end_to_end(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    task, data, out = small(name), tmp_path / "data", tmp_path / "out"
    if name in made_tasks():
        make(name, data)
    elif not hasattr(task, "prepare"):
        pytest.fail(f"{name} has no miniature data: write a maker in tests/kit/eval_data.py")
    retrieves = task.family == "retrieval"
    options = tiny_options(request.getfixturevalue("dual" if retrieves else "model"))
    asked = order(
        name, data, out, compressor="tome" if retrieves else "uniform", task=task, limit=2
    )
    finished = done(asked, options)
    results = finished.results
    assert results["finished"] and results["answers"] == results["expected"] > 0
    assert list(results["results"]) == ["none@1", "tome@0.5" if retrieves else "uniform@0.5"]
    assert all((out / file).is_file() for file in FINAL)
    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for label, one in written["results"].items():
        assert one["failed"] == 0, one["failed_videos"]
        assert task.headline in one["scores"], label
        assert one["headline"]["value"] is None or 0 <= one["headline"]["value"] <= 1
        low, value = one["headline"]["low"], one["headline"]["value"]
        assert low is None or low <= value <= one["headline"]["high"]
        assert one["costs"]["tokens_full"] >= one["costs"]["tokens_kept"] > 0
        assert one["sums"]["total_seconds"] > 0
    halves = [written["results"][label]["costs"]["tokens_kept"] for label in written["results"]]
    assert halves[1] < halves[0]
    if written["results"]["none@1"]["headline"]["value"] is not None:
        assert written["headline_of"] is not None, f"{name}: no interval for {task.headline}"
        assert "p" in written["results"][list(written["results"])[1]]["relative"]
    # Rows hold all that it takes to score them again.
    rows = rows_of(out / "answers.jsonl")
    prompts = {item.id: item.prompt for item in task.items(Path(written["data"]), written["split"])}
    for row in rows:
        item, response = item_of(row), response_of(row)
        assert item.prompt == prompts[item.id]
        assert row["value"] == task.value(item, response)
        assert response.error is None
        assert response.letters is None or set(response.letters) == set(item.letters)
    before = final(out)
    for journal in out.glob("rows-*.jsonl"):
        journal.unlink()  # the final files are enough
    again = rescore(RunFolder(out))
    assert final(out) == before
    assert again["results"]["none@1"]["costs"] == written["results"]["none@1"]["costs"]
