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

Which benchmarks can be run, which files each one needs, where these come from, and which licence
they have. Read the entry of a benchmark before `vidllm eval TASK` ([eval.md](eval.md) says how a
run works). The tables are made by `python -m vidllm.eval.tasks.page`.

`vidllm eval TASK --data DIR` reads the official files from the folder DIR, under the names that
the entry gives; of names joined by "or" one is enough. The videos are in `DIR/videos`, named as in
the annotations. For `charades` a folder with one video and one line is enough to try it:

```
DIR/charades_sta_test.txt      AAAAA 15.8 22.5##a person opens a door.
DIR/videos/AAAAA.mp4
```

`--data hub` takes the records from the data set of the Hugging Face hub named under "Hub". The
videos are then still looked for in a folder (`--videos`).

The *headline* is the score that gets an interval and a paired test. An answer without a time, or
a question without its video, counts as wrong and stays in the denominator. `--official` scores as
the benchmark's own script does; the entry says what that changes. What goes wrong in evaluations
of this kind: [footguns.md](footguns.md).
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
