"""Perception Test, multiple-choice video QA on its validation videos: three options.

Verified in the official description and in public readers: `mc_question_valid.json` (and
`all_valid.json`) is {video_id: {metadata: {video_id, frame_rate, num_frames, …}, mc_question: [{id,
question, options, answer_id, area, reasoning, tag}]}}; videos are `VIDEO_ID.mp4`.
lmms-lab/PerceptionTest_Val has a parquet with video_name, question, question_id, options,
answer_id (the number as text), area, reasoning and tag.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from . import files
from .base import TASKS, Item
from .choice import MultipleChoice, letter_at, options, question_text, unique


@TASKS.register("perceptiontest")
class PerceptionTest(MultipleChoice):
    """Official: lmms-eval takes the first lone capital, so "A man …" is option A."""

    summary = "perception and reasoning in short acted videos, three options"
    splits = ("valid",)
    files: ClassVar = {
        "valid": (
            "mc_question_valid.json|all_valid.json"
            "|mc_question_val/validation-00000-of-00001.parquet",
        )
    }
    citation = "Patraucean et al., NeurIPS 2023 Datasets and Benchmarks, arXiv 2305.13786"
    licence = "CC-BY-4.0"
    home = "https://github.com/google-deepmind/perception_test"
    hub = "lmms-lab/PerceptionTest_Val:mc_question_val"
    script = "perceptiontest"

    def items(self, data: Path, split: str) -> list[Item]:
        """Video after video, in the order of the file."""
        if data == files.HUB:
            rows = files.hub_records(self, "validation")
        else:
            (path,) = files.annotation_files(self, data, split)
            rows = files.read_records(path) if path.suffix == ".parquet" else _official(path)
        return unique([_item(row, where) for where, row in rows], self.name)


def _official(path: Path) -> list[files.Record]:
    """Records in the hub's form, with the length of the video."""
    rows = []
    for where, video in files.objects(files.read_json(path, dict), path.name):
        about = files.field(video, "metadata", dict, where=where)
        rate = files.field(about, "frame_rate", float, where=where, default=0.0)
        frames = files.field(about, "num_frames", int, where=where, default=0)
        for number, question in enumerate(files.field(video, "mc_question", list, where=where)):
            place = f"{where}, question {number}"
            more = {
                "video_name": files.field(about, "video_id", str, where=where),
                "question_id": files.field(question, "id", str, where=place),
                "seconds": frames / rate if rate > 0 and frames > 0 else None,
            }
            rows.append((place, {**question, **more}))
    return rows


def _item(row: dict[str, Any], where: str) -> Item:
    vid = files.field(row, "video_name", str, where=where)
    choices = tuple(text.strip() for text in options(row, "options", where=where))
    right = files.field(row, "answer_id", int, where=where)
    groups = {name: files.field(row, name, str, where=where) for name in ("area", "reasoning")}
    return Item(
        id=f"{vid}_{files.field(row, 'question_id', str, where=where)}",
        vid=vid,
        video=vid,
        prompt=question_text(files.field(row, "question", str, where=where), choices),
        truth=letter_at(right, len(choices), f"{where}: the field 'answer_id'"),
        kind=groups["area"],
        duration=row.get("seconds"),
        choices=choices,
        groups=groups,
    )
