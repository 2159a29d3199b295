"""YouCook2 as dense captioning: the steps of a recipe with their times.

Verified in public readers: `youcookii_annotations_trainval.json` holds {"database": {vid:
{"duration", "subset" ("training" or "validation"), "recipe_type", "annotations": [{"segment":
[s, e], "id", "sentence"}, …]}}}. Many videos are gone from YouTube: a run says how many failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vidllm.errors import InputError

from .base import TASKS, Item
from .dense import DenseTask
from .files import annotation_files, field, objects, read_json, span

#: TimeChat's words.
PROMPT = (
    "You are given a cooking video from the YouCook2 dataset. Please watch the video and extract a "
    "maximum of 10 significant cooking steps. For each step, determine the starting and ending "
    "times and provide a concise description. The format should be: 'start time - end time, brief "
    "step description'. For example, ' 90 - 102 seconds, spread margarine on two slices of white "
    "bread'."
)


@TASKS.register("youcook2")
class YouCook2(DenseTask):
    """Official: TimeChat's script."""

    summary = "the steps of cooking videos with times; F1, SODA_c, CIDEr, METEOR"
    splits = ("val",)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "val": (
            "youcookii_annotations_trainval.json|annotations/youcookii_annotations_trainval.json",
        )
    }
    citation = "Zhou et al., AAAI 2018, arXiv 1703.09788"
    licence = "MIT for the annotations; videos are YouTube's"
    home = "http://youcook2.eecs.umich.edu"

    def items(self, data: Path, split: str) -> list[Item]:
        """One a validation video."""
        (path,) = annotation_files(self, data, split)
        table = field(read_json(path, dict), "database", dict, where=path.name)
        found = []
        for vid, (where, row) in zip(table, objects(table, path.name), strict=True):
            if field(row, "subset", str, where=where) != "validation":
                continue
            steps: list[list[float | str]] = []
            for step in field(row, "annotations", list, where=where):
                segment = field(step, "segment", list, where=where)
                sentence = field(step, "sentence", str, where=where).strip()
                steps.append([*span(segment, "segment", where=where), sentence])
            if not steps:
                raise InputError(f"{where}: the field 'annotations' has no step")
            found.append(
                Item(
                    id=vid,
                    vid=vid,
                    video=vid,
                    prompt=PROMPT,
                    truth=[steps],
                    duration=field(row, "duration", float, where=where),
                )
            )
        return found
