"""ActivityNet-Captions as dense captioning: all events of a video with their times.

Files as in `activitynet`. The challenge scores against both annotators; videos that only one of
them described have one reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ..scores.captions import Event
from .activitynet import FILES, HOME, LICENCE, read_videos
from .base import TASKS, Item, Response
from .captions_text import timechat_events, vtimellm_events
from .dense import DenseTask, Told
from .files import annotation_files
from .spans_text import script_text
from .timed import seconds_of

PROMPT = (
    "Watch the video and find its events. For each one give the start and end time and describe "
    "it in one sentence. The format should be: 'start time - end time, description', one event a "
    "line. For example, '10.0 - 25.5 seconds, a man in a white shirt waxes his car'."
)


@TASKS.register("activitynet-dense")
class ActivityNetDense(DenseTask):
    """Official: VTimeLLM's JSON in hundredths where the answer is one, else TimeChat's lines."""

    summary = "all events of 2-minute videos with times; F1, SODA_c, CIDEr, METEOR"
    splits = ("both", "val_1", "val_2")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = FILES
    citation = "Krishna et al., ICCV 2017, arXiv 1705.00754; SODA: ECCV 2020"
    licence = LICENCE
    home = HOME

    def items(self, data: Path, split: str) -> list[Item]:
        """One a video, in the order of the first file, then what only the second has."""
        told: dict[str, tuple[float, Told]] = {}
        for path in annotation_files(self, data, split):
            for vid, duration, events in read_videos(path):
                written: list[list[float | str]] = [[*true, text] for true, text in events]
                if written:
                    told.setdefault(vid, (duration, []))[1].append(written)
        return [
            Item(id=vid, vid=vid, video=vid, prompt=PROMPT, truth=references, duration=duration)
            for vid, (duration, references) in told.items()
        ]

    def official_events(self, item: Item, response: Response) -> list[Event]:
        """See the class."""
        found = vtimellm_events(response.text, seconds_of(item, response) or 0.0)
        return timechat_events(script_text(response)) if found is None else found
