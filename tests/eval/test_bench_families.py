"""`vidllm bench families`: families at their real sizes, built without numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Run

from vidllm.eval.bench.family_sizes import families_table, published
from vidllm.models.families.served import FAMILIES


def test_a_family_is_built_served_and_counted(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "families.csv"
    words = ["bench", "families", "--families", "qwen2_5_vl,qwen3_5", "--frames", "8"]
    done = cli(*words, "--keeps", "0.25", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["rows"]
    with out.open(newline="", encoding="utf-8") as file:
        assert [row["model_type"] for row in csv.DictReader(file)] == ["qwen2_5_vl", "qwen3_5"]
    for row in told:
        assert row["prompt"] == 100 + 8 * 196 // 4 and not row.get("error")
        # Counted by torch, and as `vidllm cost` says.
        assert row["tflops"] == pytest.approx(row["predicted"], rel=0.01)
        assert 0 < row["share"] < 0.5
    first, hybrid = told
    assert first["parameters_b"] == pytest.approx(8.29, abs=0.01) and first["refused"] == 0
    assert hybrid["refused"] == 2 and "no token can be taken again" in hybrid["reasons"]
    assert families_table(told).row_count == 2


def test_what_cannot_be_is_one_line(cli: Run, refused: Callable[..., str]) -> None:
    assert "no family 'qwen9' is served" in refused(cli("bench", "families", "--families", "qwen9"))
    assert "--keeps" in refused(cli("bench", "families", "--keeps", "2"))


def test_every_family_has_a_config() -> None:
    for kind in FAMILIES:
        source, config = published(kind)
        assert source and config.model_type == kind
