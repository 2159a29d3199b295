"""Benchmarks, one a file; `get_task(name)` gives one, `task_names()` lists them.

Adding one costs a file here, a line in `_FILES`, a row in tests/kit/eval_data.py and a line in
docs/tasks.md.
"""

from __future__ import annotations

from importlib import import_module

from .base import FAMILIES, TASKS, Item, Response, Task, check_split

__all__ = ["FAMILIES", "Item", "Response", "Task", "check_split", "get_task", "task_names"]

#: Modules whose import registers tasks, one a line.
_FILES: tuple[str, ...] = (
    # Spans, captions, highlights, alignment, retrieval.
    "charades",
    "activitynet",
    "activitynet_rtl",
    "nextgqa",
    "timelens",
    "qvhighlights_moments",
    "qvhighlights_highlights",
    "tvsum",
    "activitynet_dense",
    "youcook2",
    "htm_align",
    "msrvtt",
    # Multiple choice.
    "videomme",
    "mlvu",
    "longvideobench",
    "egoschema",
    "mvbench",
    "nextqa",
    "perceptiontest",
    # Made from seeds.
    "stage",
    "stage_align",
    "stage_choice",
    "stage_actions",
    "stage_retrieval",
    "needle",
)


def task_names() -> list[str]:
    """All benchmarks, sorted."""
    _load()
    return TASKS.names()


def get_task(name: str) -> Task:
    """The benchmark called `name`. Raises InputError with close matches."""
    _load()
    return TASKS.find(name)()


def _load() -> None:
    for file in _FILES:
        import_module(f".{file}", __package__)
