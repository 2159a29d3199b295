"""MLVU dev: 2174 questions of seven tasks about videos of 3 minutes to 2 hours.

Verified in public readers of the files: `MLVU/json/1_plotQA.json` to `7_topic_reasoning.json` of
MLVU/MVLU hold lists of {video, duration, question, candidates, answer (its text), question_type},
and the videos of each are in `MLVU/video/1_plotQA` and so on. sy1998/MLVU_dev has them as one
parquet with video_name, task_type, the options inside `question` ("(A) …" a line) and a letter for
the answer; both give the same items. The tasks 8 and 9 are no multiple choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from ..scores.choices import MLVU_TASKS
from . import files
from .base import TASKS, Item
from .choice import (
    MultipleChoice,
    letter_for,
    letter_named,
    options,
    question_text,
    unique,
    video_folder,
)

#: Folders of the tasks by their names; the number is the official file's.
FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
TAIL = "Only give the best option.\nBest option: ("
_PARQUET = "mlvu/test-00000-of-00001.parquet"


@TASKS.register("mlvu")
class MLVU(MultipleChoice):
    """M-Avg is `task_mean`: the plain mean of seven accuracies, though the tasks differ in size."""

    summary = "seven tasks about long videos; M-Avg"
    headline = "task_mean"
    splits = ("dev",)
    files: ClassVar = {
        "dev": tuple(
            f"json/{f}.json|MLVU/json/{f}.json|{f}.json|{_PARQUET}" for f in FOLDERS.values()
        )
    }
    citation = "Zhou et al., CVPR 2025, arXiv 2406.04264"
    licence = "CC-BY-NC-SA-4.0, research only; videos belong to their owners"
    home = "https://huggingface.co/datasets/MLVU/MVLU"
    hub = "sy1998/MLVU_dev"
    script = "mlvu"
    mean_over = "task"
    mean_count = MLVU_TASKS

    def items(self, data: Path, split: str) -> list[Item]:
        """Task after task, each in the order of its file."""
        if data == files.HUB:
            rows = files.hub_records(self, "test")
        else:
            paths = dict.fromkeys(files.annotation_files(self, data, split))
            rows = [row for path in paths for row in files.read_records(path)]
        folders = {
            task: video_folder(data, name, f"video/{name}", f"MLVU/video/{name}")
            for task, name in FOLDERS.items()
        }
        count = dict.fromkeys(FOLDERS, 0)
        found = []
        for where, row in rows:
            task = _task(row, where)
            found.append(_item(row, task, count[task], folders[task], where))
            count[task] += 1
        return unique(found, self.name)


def _item(row: dict[str, Any], task: str, number: int, folder: str, where: str) -> Item:
    name = "video_name" if "video_name" in row else "video"
    video = files.field(row, name, str, where=where)
    choices = tuple(text.strip() for text in options(row, "candidates", where=where))
    question = files.field(row, "question", str, where=where).split("\n(A)")[0]
    answer = files.field(row, "answer", str, where=where)
    place = f"{where}: the field 'answer'"
    if "task_type" in row:
        truth = letter_named(answer, len(choices), place)
    else:
        truth = letter_for(answer, choices, place)
    return Item(
        id=f"{task}-{number}",
        vid=Path(video).stem,
        video=f"{folder}/{video}",
        prompt=question_text(question, choices, TAIL, form="({}) {}"),
        truth=truth,
        kind=task,
        duration=files.field(row, "duration", float, where=where),
        choices=choices,
        groups={"task": task},
    )


def _task(row: dict[str, Any], where: str) -> str:
    name = "task_type" if "task_type" in row else "question_type"
    task = files.field(row, name, str, where=where)
    task = "needle" if task == "findNeedle" else task
    if task not in FOLDERS:
        known = ", ".join(FOLDERS)
        raise InputError(f"{where}: the field '{name}' must be one of {known}, not {task!r}")
    return task
