"""Charades-STA: when does a sentence happen in half a minute of indoor life.

Verified in public readers of the file: `charades_sta_test.txt` holds a line a query,
"3MSZA 24.3 30.4##person turn a light on."; videos are `3MSZA.mp4`. lmms-lab/charades_sta has the
same records with the fields video, caption and timestamp. Durations are not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from ..scores.common import Interval
from .base import TASKS, Item, Response
from .files import HUB, annotation_files, field, hub_records, read_lines, span
from .spans_text import script_text, tvg_span
from .timed import SpanTask, query_item

#: lmms-eval's words, which are TimeChat's without the name of the data set; "seonds" is theirs.
PROMPT = (
    "Please find the visual event described by a sentence in the video, determining its starting "
    "and ending times. The format should be: 'The event happens in the start time - end time'. "
    "For example, The event 'person turn a light on' happens in the 24.3 - 30.4 seonds. "
    "Now I will give you the textual sentence: {query}. Please return its start time and end time."
)


@TASKS.register("charades")
class Charades(SpanTask):
    """Official: lmms-eval's parser; its scores need no rounding."""

    summary = "one span a sentence in 30-second indoor videos; mIoU, R1@m"
    splits = ("test",)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "test": ("charades_sta_test.txt|Charades/charades_sta_test.txt",)
    }
    citation = "Gao et al., ICCV 2017, arXiv 1705.02101"
    licence = "Charades: non-commercial research; videos may not be passed on"
    home = "https://github.com/jiyanggao/TALL"
    hub = "lmms-lab/charades_sta"
    max_new_tokens = 50

    def items(self, data: Path, split: str) -> list[Item]:
        """One a line."""
        if data == HUB:
            rows = [_row(row, where) for where, row in hub_records(self, split)]
        else:
            (path,) = annotation_files(self, data, split)
            rows = [_line(line, where) for where, line in read_lines(path)]
        return [
            query_item(f"{vid}-{k}", vid, sentence, true, prompt=PROMPT)
            for k, (vid, true, sentence) in enumerate(rows)
        ]

    def official_span(self, item: Item, response: Response) -> Interval | None:
        """As lmms-eval."""
        return tvg_span(script_text(response), dashes=True)


def _line(line: str, where: str) -> tuple[str, Interval, str]:
    head, mark, sentence = line.partition("##")
    words = head.split()
    if not mark or len(words) != 3:
        raise InputError(f"{where}: expected 'VIDEO START END##sentence', not {line[:40]!r}")
    return words[0], span(words[1:], "START END", where=where), sentence


def _row(row: dict[str, Any], where: str) -> tuple[str, Interval, str]:
    video = field(row, "video", str, where=where)
    true = span(field(row, "timestamp", list, where=where), "timestamp", where=where)
    return video.removesuffix(".mp4"), true, field(row, "caption", str, where=where)
