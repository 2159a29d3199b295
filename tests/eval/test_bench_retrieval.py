"""`vidllm bench retrieval`: whose trainings a folder holds, and what TempMe's verdict says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vidllm import InputError
from vidllm.eval.bench.retrieval_arms import bench_retrieval

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
