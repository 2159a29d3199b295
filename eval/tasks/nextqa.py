"""NExT-QA, multiple choice: why, how, when and what in videos of daily life, five options.

Verified on the official files: `test.csv` and `val.csv` of doc-doc/NExT-QA have the columns video,
frame_count, width, height, question, answer (the number of the option), qid, type, a0 to a4.
lmms-lab/NExTQA has the test split as a parquet with the same fields. Videos are `VIDEO.mp4`, or in
VidOR's folders as `map_vid_vidorID.json` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from . import files
from .base import TASKS, Item
from .choice import MultipleChoice, letter_at, question_text, unique, video_folder

#: Types by their code, as the official script names them; it counts TP with TN.
TYPES = {
    "CW": ("causal", "why"),
    "CH": ("causal", "how"),
    "TN": ("temporal", "before and after"),
    "TP": ("temporal", "before and after"),
    "TC": ("temporal", "when"),
    "DC": ("descriptive", "count"),
    "DL": ("descriptive", "location"),
    "DO": ("descriptive", "other"),
    "DB": ("descriptive", "binary"),
}


@TASKS.register("nextqa")
class NextQA(MultipleChoice):
    """Official: lmms-eval takes "A man …" for option A and guesses where it reads nothing."""

    summary = "causal, temporal and descriptive questions about daily life, five options"
    splits = ("test", "val")
    files: ClassVar = {
        "test": ("test.csv|nextqa/test.csv|MC/test-00000-of-00001.parquet",),
        "val": ("val.csv|nextqa/val.csv|MC/validation-00000-of-00001.parquet",),
    }
    citation = "Xiao et al., CVPR 2021, arXiv 2105.08276"
    licence = "MIT for the annotations; the videos are VidOR's, from YFCC-100M"
    home = "https://github.com/doc-doc/NExT-QA"
    hub = "lmms-lab/NExTQA:MC"
    script = "nextqa"

    def items(self, data: Path, split: str) -> list[Item]:
        """In the order of the file."""
        rows = files.records(self, data, split)
        folder, places = video_folder(data, "", "NExTVideo"), _places(data)
        return unique([_item(row, where, folder, places) for where, row in rows], self.name)


def _places(data: Path) -> dict[str, Any]:
    """Where VidOR keeps each video; empty where the map is not there."""
    name = "map_vid_vidorID.json"
    path = files.optional_file(data, name, f"nextqa/{name}")
    return {} if path is None else files.read_json(path, dict)


def _item(row: dict[str, Any], where: str, folder: str, places: dict[str, Any]) -> Item:
    vid = files.field(row, "video", str, where=where)
    code = files.field(row, "type", str, where=where)
    if code not in TYPES:
        known = ", ".join(TYPES)
        raise InputError(f"{where}: the field 'type' must be one of {known}, not {code!r}")
    choices = tuple(files.field(row, f"a{k}", str, where=where).strip() for k in range(5))
    right = files.field(row, "answer", int, where=where)
    kind, detail = TYPES[code]
    return Item(
        id=f"{vid}_{files.field(row, 'qid', str, where=where)}",
        vid=vid,
        video=str(Path(folder, places.get(vid, vid))),
        prompt=question_text(files.field(row, "question", str, where=where), choices),
        truth=letter_at(right, len(choices), f"{where}: the field 'answer'"),
        kind=code,
        choices=choices,
        groups={"type": kind, "detail": detail},
    )
