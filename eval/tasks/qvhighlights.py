"""The annotation file of QVHighlights, for both of its tasks.

Verified in the authors' repository: `highlight_val_release.jsonl` and
`highlight_test_with_gt.jsonl` (the test truth, public since the server closed) have a line a query
with qid, query, duration, vid, relevant_windows, relevant_clip_ids (2-second clips from 0) and
saliency_scores (a row a relevant clip, three raters, 0 to 4). Videos are `{vid}.mp4`, at most
150 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import Task
from .files import annotation_files, field, read_records

CLIP_SECONDS = 2.0
SPLITS = ("val", "test")
FILES: Mapping[str, tuple[str, ...]] = {
    "val": ("highlight_val_release.jsonl|data/highlight_val_release.jsonl",),
    "test": ("highlight_test_with_gt.jsonl|data/highlight_test_with_gt.jsonl",),
}
CITATION = "Lei et al., NeurIPS 2021, arXiv 2107.09609"
LICENCE = "annotations CC BY-NC-SA 4.0; videos are YouTube's"
HOME = "https://github.com/jayleicn/moment_detr"


def queries(task: Task, data: Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) of every query, with qid, vid and query as text and duration as a number.

    Raises:
        InputError: a file that is missing or not in the official format.
    """
    (path,) = annotation_files(task, data, split)
    found = []
    for where, row in read_records(path):
        plain: dict[str, Any] = {
            name: field(row, name, str, where=where) for name in ("qid", "vid", "query")
        }
        plain["duration"] = field(row, "duration", float, where=where)
        found.append((where, {**row, **plain}))
    return found
