"""`vidllm bench retrieval`: whose trainings a folder holds, and what TempMe's verdict says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vidllm import InputError
from vidllm.errors.writing import csv_text
from vidllm.eval.bench.claims.retrieval_claim import verdict
from vidllm.eval.bench.retrieval_arms import bench_retrieval
from vidllm.eval.bench.systems.claims import FAILED, HELD, UNCLEAR, UNTOLD, Verdict, verdicts

#: Stamps as the course writes them, and the arguments that made them.
START = {"size": "tiny", "start_steps": 2, "steps": 2, "batch": 3, "keep": 1.0, "init": ""}
ARM = {"size": "tiny", "start_steps": 0, "steps": 1, "batch": 3, "keep": 0.1, "init": "start"}
GIVEN: dict[str, Any] = {"size": "tiny", "start_steps": 2, "steps": 1, "batch": 3, "keep": 0.1}


def stamped(folder: Path, told: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({**told, "step": told["steps"]}))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 5}, "steps 1, not 5"),
        ({"batch": 4}, "batch 3, not 4"),
        ({"size": "small"}, "size tiny, not small"),
        ({"start_steps": 7}, "start-steps 2, not 7"),
        ({"keep": 0.2}, r"keep 0\.1, not 0\.2"),
        ({"init": "elsewhere/other"}, "init start, not other"),
    ],
)
def test_a_folder_of_another_budget_is_refused_before_anything_is_trained(
    tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    stamped(tmp_path / "seed-0" / "start", START)
    stamped(tmp_path / "seed-1" / "lora-both", ARM)  # found although seed 0 comes first
    before = sorted(tmp_path.rglob("*"))
    wanted = rf"{tmp_path} holds trainings of another budget \({told}\): give another --folder"
    with pytest.raises(InputError, match=wanted) as caught:
        bench_retrieval(tmp_path, seeds=2, clips=2, workers=0, **{**GIVEN, **given})
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def rows_of(seed: int, low: float, high: float, share: float = 0.5) -> list[dict[str, Any]]:
    """The two arms that the verdict compares; without merging R@1 is 0.4, of which 95 % is 0.38."""
    change = (low + high) / 2
    same = {"V2T R-Sum": 1.5, "tokens_share": 0.05, "speed_up": 1.8}
    plain = {"seed": seed, "arm": "lora", "R@1": 0.4, "R-Sum": 1.6, "gflops_share": 1.0, **same}
    whole = {**plain, "arm": "lora both", "R@1": 0.4 + change, "gflops_share": share}
    return [plain, {**whole, "to_lora": change, "to_lora_low": low, "to_lora_high": high}]


def told_of(folder: Path, rows: list[dict[str, Any]]) -> Verdict:
    (folder / "retrieval.csv").write_text(csv_text(rows), encoding="utf-8")
    (found,) = [one for one in verdicts([], folder) if one.recipe == "tempme"]
    return found


@pytest.mark.parametrize(
    ("low", "high", "wanted", "word"),
    [
        (-0.015, 0.005, HELD, "kept"),
        (0.01, 0.03, HELD, "kept"),
        (-0.05, 0.06, UNCLEAR, "not clear"),  # better by value alone
        (-0.06, -0.03, FAILED, "not kept"),
    ],
)
def test_retrieval_is_kept_where_the_whole_interval_says_so(
    tmp_path: Path, low: float, high: float, wanted: str, word: str
) -> None:
    rows = rows_of(0, low, high)
    found = told_of(tmp_path, rows)
    assert found.verdict == wanted
    assert f"({low:+.3f} to {high:+.3f}; 95% is -0.020: {word})" in found.evidence
    assert verdict(rows) == found.evidence
    assert told_of(tmp_path, rows_of(0, low, high, share=0.7)).verdict == FAILED  # not half


def test_tempmes_claim_holds_where_every_seed_says_so(tmp_path: Path) -> None:
    good, bad = rows_of(0, -0.01, 0.01), rows_of(1, -0.09, -0.05)
    assert told_of(tmp_path, [*good, *rows_of(1, -0.02, 0.03)]).verdict == HELD
    found = told_of(tmp_path, [*good, *bad])
    assert (
        found.verdict == UNCLEAR and "seed 0: " in found.evidence and "; seed 1" in found.evidence
    )
    assert told_of(tmp_path, [*good, *rows_of(1, -0.09, 0.05)]).verdict == UNCLEAR
    assert told_of(tmp_path, good[:1]).verdict == UNTOLD
