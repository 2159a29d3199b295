"""`vidllm bench kills` in its smallest form."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from processes import Run

from vidllm.cli.main import main
from vidllm.eval.bench.kills import counts


def test_two_kills_of_a_training_end_in_the_bytes_of_an_undisturbed_one(
    cli: Run, tmp_path: Path
) -> None:
    out, folder = tmp_path / "kills.csv", tmp_path / "work"
    words = ["bench", "kills", "--targets", "train", "--kills", "2", "--seed", "3"]
    done = cli(*words, "--folder", folder, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows = told["rows"]
    hit = [row for row in rows if row["outcome"] in ("killed", "stopped")]
    assert len(hit) == 2 and all(row["signal"] for row in hit)
    assert rows[-1]["outcome"] == "same bytes" and rows[-1]["code"] == 0
    assert told["counts"] == counts(rows)
    assert sum(one["count"] for one in told["counts"]) == len(rows)
    with out.open(newline="", encoding="utf-8") as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == [r["outcome"] for r in rows]
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["train-undisturbed"]


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kills", "--targets", "trian"]) == 2
    assert "no target 'trian': there are eval, index, train" in capsys.readouterr().err
