"""MSR-VTT: text-video retrieval with a dual encoder.

Verified in public readers: `MSRVTT_JSFUSION_test.csv` (the split 1k-A) has the columns key,
vid_key, video_id, sentence; `MSRVTT_data.json` has "videos" (video_id, split, category) and
"sentences" (video_id, caption, sen_id). The split full is the 2,990 test videos with all of their
20 captions. Videos are `video7020.mp4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vidllm.errors import InputError

from .base import TASKS, Item
from .files import HUB, annotation_files, field, hub_records, read_json, read_records
from .retrieval import RetrievalTask


@TASKS.register("msrvtt")
class MSRVTT(RetrievalTask):
    """R@k, MdR and MnR from text to video, and from video to text with "V2T" before the name.

    A caption or video without a vector ranks behind all others. Official: a query counts once at
    every place among equal scores (TempMe, after CLIP4Clip); square matrices (1k-A) alone.
    """

    summary = "which video does a caption belong to, and the reverse; R@k, MdR, MnR"
    splits = ("1k-A", "full")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "1k-A": ("MSRVTT_JSFUSION_test.csv|msrvtt_data/MSRVTT_JSFUSION_test.csv",),
        "full": ("MSRVTT_data.json|msrvtt_data/MSRVTT_data.json",),
    }
    citation = "Xu et al., CVPR 2016; 1k-A: Yu et al., ECCV 2018"
    licence = "research; videos are YouTube's"
    home = "https://github.com/ArrowLuo/CLIP4Clip/releases (msrvtt_data.zip)"
    hub = "friedrichor/MSR-VTT:test_1k"

    def items(self, data: Path, split: str) -> list[Item]:
        """For each video, in the order of the file, its captions and then itself."""
        if data == HUB and split != self.splits[0]:
            raise InputError(f"msrvtt: the hub has {self.splits[0]} alone: give --data a folder")
        if data == HUB:
            rows = [(w, r, "caption") for w, r in hub_records(self, "test")]
        else:
            (path,) = annotation_files(self, data, split)
            if split == "full":
                rows = _full(path)
            else:
                rows = [(w, r, "sentence") for w, r in read_records(path)]
        told = [
            (field(row, "video_id", str, where=where), field(row, name, str, where=where))
            for where, row, name in rows
        ]
        captions: dict[str, list[str]] = {}
        for vid, text in told:
            captions.setdefault(vid, []).append(" ".join(text.split()))
        return [item for vid, texts in captions.items() for item in self.pair(vid, texts)]


def _full(path: Path) -> list[tuple[str, dict[str, str], str]]:
    table = read_json(path, dict)
    test = set()
    for k, video in enumerate(field(table, "videos", list, where=path.name)):
        where = f"{path.name}, video {k}"
        if field(video, "split", str, where=where) == "test":
            test.add(field(video, "video_id", str, where=where))
    found = []
    for k, row in enumerate(field(table, "sentences", list, where=path.name)):
        where = f"{path.name}, sentence {k}"
        if field(row, "video_id", str, where=where) in test:
            found.append((where, row, "caption"))
    return found
