"""ActivityNet-Captions as grounding: when does a sentence happen in two minutes of activity.

Verified: `val_1.json` and `val_2.json` of captions.zip hold {"v_…": {"duration", "timestamps":
[[s, e], …], "sentences": […]}}, one annotator each. Papers differ in which they use: val_2 alone
(VTimeLLM, most video-LLMs), val_1, or both (as 2D-TAN's test split and its validation split).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..scores.common import Interval
from .base import TASKS, Item, Response
from .files import annotation_files, field, objects, read_json, span, together
from .spans_text import percent_span, script_text, tvg_span
from .timed import SpanTask, query_item, seconds_of

#: Of the annotations by split, for the tasks on them.
FILES: Mapping[str, tuple[str, ...]] = {
    "val_2": ("val_2.json|captions/val_2.json",),
    "val_1": ("val_1.json|captions/val_1.json",),
    "both": ("val_1.json|captions/val_1.json", "val_2.json|captions/val_2.json"),
}
LICENCE = "annotations for research; videos are YouTube's, frames on request from ActivityNet"
HOME = "https://cs.stanford.edu/people/ranjaykrishna/densevid/"


def read_videos(path: Path) -> Iterator[tuple[str, float, list[tuple[Interval, str]]]]:
    """(vid, duration, [(span, sentence), …]) of an annotation file, in its order.

    Raises:
        InputError: not in the official format; names the file, the video and the field.
    """
    table = read_json(path, dict)
    for vid, (where, row) in zip(table, objects(table, path.name), strict=True):
        duration = field(row, "duration", float, where=where)
        yield vid, duration, [_event(pair, where) for pair in _pairs(row, where)]


def _pairs(row: dict[str, Any], where: str) -> list[tuple[Any, ...]]:
    return together(row, "timestamps", "sentences", where=where)


def _event(pair: tuple[Any, ...], where: str) -> tuple[Interval, str]:
    true = span(pair[0], "timestamps", where=where)
    return true, field({"sentences": pair[1]}, "sentences", str, where=where).strip()


@TASKS.register("activitynet")
class ActivityNet(SpanTask):
    """Official: VTimeLLM's script, which rounds IoUs to two decimals before the thresholds.

    It reads "from 12 to 45" as hundredths of the video, as that model answers; answers in seconds
    are read as TimeChat's script does.
    """

    summary = "one span a sentence in 2-minute videos of activities; mIoU, R1@m"
    splits = ("val_2", "val_1", "both")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = FILES
    citation = "Krishna et al., ICCV 2017, arXiv 1705.00754"
    licence = LICENCE
    home = HOME
    rounds = True

    def items(self, data: Path, split: str) -> list[Item]:
        """One a sentence."""
        found = []
        for path in annotation_files(self, data, split):
            for vid, duration, events in read_videos(path):
                found += [
                    query_item(f"{path.stem}-{vid}-{k}", vid, sentence, true, duration=duration)
                    for k, (true, sentence) in enumerate(events)
                ]
        return found

    def official_span(self, item: Item, response: Response) -> Interval | None:
        """Hundredths where the answer is in VTimeLLM's form, else seconds."""
        share = percent_span(response.text, seconds_of(item, response))
        return tvg_span(script_text(response)) if share is None else share
