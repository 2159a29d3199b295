"""docs/tasks.md from the registry: `python -m vidllm.eval.tasks.page > docs/tasks.md`."""

from __future__ import annotations

import sys
from typing import Any

from vidllm.cli.tables import markdown_table

from . import get_task, task_names
from .base import FAMILIES, Task

_ABOUT = {
    "grounding": "When does it happen",
    "captions": "What happens, and when",
    "highlights": "What matters most",
    "alignment": "Which second shows a sentence",
    "retrieval": "Which video fits a sentence",
    "choice": "Multiple choice",
    "made": "Made from seeds, nothing to download",
}
_HEAD = """\
# Benchmarks

Made by `python -m vidllm.eval.tasks.page` from the registry. `vidllm eval TASK --data DIR` reads
the official files from `DIR`, under the names below (one of several where "or" stands), and the
videos from `DIR/videos`. `--data hub` takes the records from the data set named under "hub"; the
videos are still looked for in a folder.

The *headline* is the score that comes with an interval and a paired test. Every answer without a
time, or without a video, is in the denominator; `--official` scores as the benchmark's own script
does, and what that changes is said with each task. What goes wrong in such evaluations:
[footguns.md](footguns.md).
"""


def entries() -> list[dict[str, Any]]:
    """Every benchmark for `vidllm list tasks`: name, kind, summary and what else there is."""
    found = []
    for name in task_names():
        task = get_task(name)
        found.append(
            {
                "name": name,
                "kind": task.family,
                "summary": task.summary,
                "headline": task.headline,
                "splits": list(task.splits),
                "files": {split: list(names) for split, names in task.files.items()},
                "citation": task.citation,
                "licence": task.licence,
                "home": task.home,
                "hub": task.hub,
            }
        )
    return found


def tasks_page() -> str:
    """The page docs/tasks.md."""
    tasks = [get_task(name) for name in task_names()]
    lines = _HEAD.splitlines()
    for family in FAMILIES:
        some = [task for task in tasks if task.family == family]
        if not some:
            continue
        lines += ["", f"## {_ABOUT[family]}", ""]
        rows = [
            (f"`{t.name}`", t.summary, t.headline, ", ".join(t.splits), t.citation) for t in some
        ]
        heads = ("task", "what it asks, what it scores", "headline", "splits", "paper")
        lines += [*markdown_table(heads, rows), ""]
        lines += [line for task in some for line in _notes(task)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _notes(task: Task) -> list[str]:
    """One paragraph of a list: files, licence, where from, and the class's own words."""
    groups: dict[str, list[str]] = {}
    for split, names in task.files.items():
        said = ", ".join(" or ".join(f"`{part}`" for part in name.split("|")) for name in names)
        groups.setdefault(said, []).append(split)
    parts = [f"{said} ({', '.join(splits)})" for said, splits in groups.items() if said]
    lines = [f"- **{task.name}**. Files: {'; '.join(parts) if parts else 'none'}."]
    lines.append(f"  Licence: {task.licence}.")
    if task.home:
        lines.append(f"  From: {task.home}.")
    if task.hub:
        lines.append(f"  Hub: `{task.hub}`.")
    said = (type(task).__doc__ or "").partition("\n    Args:")[0]
    told = " ".join(said.split())
    if told:
        lines.append(f"  {told}")
    return lines


if __name__ == "__main__":
    sys.stdout.write(tasks_page())
