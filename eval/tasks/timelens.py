"""TimeLens-Bench: Charades-STA, ActivityNet-Captions and QVHighlights with cleaned annotations.

Verified: `charades-timelens.json`, `activitynet-timelens.json` and `qvhighlights-timelens.json`
hold {vid: {"duration", "queries": […], "spans": [[s, e], …]}}, one span a query; videos are
`videos/charades/VID.mp4` and so on. kcz358/timelens has the same as records, its splits
charades, activitynet and qvhighlights, fields video_path, query and span.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..scores.common import Interval
from .base import TASKS, Item, Response
from .files import HUB, annotation_files, field, hub_records, objects, read_json, span, together
from .spans_text import script_text, timelens_span
from .timed import SpanTask, query_item


@TASKS.register("timelens")
class TimeLens(SpanTask):
    """The prompt and the official parser are the benchmark's own."""

    summary = "grounding with cleaned annotations, three sources; mIoU, R1@m"
    splits = ("charades", "activitynet", "qvhighlights")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (f"{name}-timelens.json",) for name in splits
    }
    citation = "TimeLens, CVPR 2026, arXiv 2512.14698"
    licence = "academic use only, not in the European Union"
    home = "https://huggingface.co/datasets/TencentARC/TimeLens-Bench"
    hub = "kcz358/timelens"
    max_new_tokens = 50

    def items(self, data: Path, split: str) -> list[Item]:
        """One a query."""
        if data == HUB:
            rows = [_hub_row(row, where) for where, row in hub_records(self, split)]
        else:
            (path,) = annotation_files(self, data, split)
            rows = list(_file_rows(path))
        return [
            query_item(f"{vid}-{k}", vid, query, true, folder=f"{split}/", duration=duration)
            for k, (vid, query, true, duration) in enumerate(rows)
        ]

    def official_span(self, item: Item, response: Response) -> Interval | None:
        """As TimeLens' script."""
        return timelens_span(script_text(response))


Row = tuple[str, str, Interval, float | None]


def _file_rows(path: Path) -> Iterator[Row]:
    table = read_json(path, dict)
    for vid, (where, row) in zip(table, objects(table, path.name), strict=True):
        duration = field(row, "duration", float, where=where)
        for query, true in together(row, "queries", "spans", where=where):
            text = field({"queries": query}, "queries", str, where=where)
            yield vid, text, span(true, "spans", where=where), duration


def _hub_row(row: dict[str, Any], where: str) -> Row:
    """Its span stands in a list, or that list is written as text."""
    value: Any = row.get("span")
    if isinstance(value, str):
        value = re.findall(r"\d+\.?\d*", value)
    elif isinstance(value, list) and len(value) == 1:
        value = value[0]
    video = field(row, "video_path", str, where=where)
    query = field(row, "query", str, where=where)
    return Path(video).stem, query, span(value, "span", where=where), None
