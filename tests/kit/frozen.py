"""Prompts that must not change unnoticed: tests/prompts/TASK.json holds them.

`VIDLLM_UPDATE_PROMPTS=1 pytest tests/eval/test_tasks_prompts.py` writes the files anew; a change
of a prompt is a change of the benchmark, and belongs into CHANGELOG.md.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from vidllm.eval.tasks import Item

FOLDER = Path(__file__).parents[1] / "prompts"


def check_prompts(task: str, split: str, items: Sequence[Item]) -> None:
    """Compare the prompts of a split with what is frozen; fail with what differs.

    One prompt of every kind of item is kept whole, as a list of its lines.
    """
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.kind or "prompt", item)
    found = {kind: item.prompt.split("\n") for kind, item in first.items()}
    path = FOLDER / f"{task}.json"
    frozen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if os.environ.get("VIDLLM_UPDATE_PROMPTS") == "1":
        frozen[split] = found
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(dict(sorted(frozen.items())), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        return
    if frozen.get(split) == found:
        return
    two = [json.dumps(part, indent=1).splitlines() for part in (frozen.get(split), found)]
    lines = difflib.unified_diff(*two, "frozen", "now", lineterm="")
    pytest.fail(
        f"the prompts of {task} ({split}) have changed; if that is meant, run\n"
        "VIDLLM_UPDATE_PROMPTS=1 pytest tests/eval/test_tasks_prompts.py\n" + "\n".join(lines),
        pytrace=False,
    )
