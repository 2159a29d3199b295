"""MVBench: 200 questions of each of twenty tasks about short videos of other data sets.

Verified in the official notebook and in readers of the files: OpenGVLab/MVBench has
`json/action_sequence.json` and so on, lists of {video, question, candidates, answer (its text)}.
The questions of five tasks are about a part of the video, `start` to `end` in seconds. Its `video`
revision, which lmms-eval uses, has these parts as files of their own in other folders: where only
these folders are there, the whole file is looked at. The frames in pictures of Episodic Reasoning
are not read; its parts are there as files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..scores.choices import MVBENCH_TASKS
from . import files
from .base import TASKS, Item
from .choice import (
    MultipleChoice,
    letter_for,
    options,
    question_text,
    unique,
    video_folder,
    with_hub,
)

TAIL = "Only give the best option."
_STAR = ("star/Charades_v1_480", "star/Charades_segment")


@dataclass(frozen=True)
class Source:
    """Where the videos of a task are.

    Args:
        whole: their folder; cut: the folder of the parts, "" for tasks about whole videos.
        also: other names that the folder has.
    """

    whole: str
    cut: str = ""
    also: tuple[str, ...] = ()


SOURCES = {
    "action_sequence": Source(*_STAR),
    "action_prediction": Source(*_STAR),
    "action_antonym": Source("ssv2_video", also=("ssv2_video_mp4",)),
    "fine_grained_action": Source("Moments_in_Time_Raw/videos"),
    "unexpected_action": Source("FunQA_test/test"),
    "object_existence": Source("clevrer/video_validation"),
    "object_interaction": Source(*_STAR),
    "object_shuffle": Source("perception/videos"),
    "moving_direction": Source("clevrer/video_validation"),
    "action_localization": Source("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": Source("scene_qa/video"),
    "action_count": Source("perception/videos"),
    "moving_count": Source("clevrer/video_validation"),
    "moving_attribute": Source("clevrer/video_validation"),
    "state_change": Source("perception/videos"),
    "fine_grained_pose": Source("nturgbd", also=("nturgbd_convert",)),
    "character_order": Source("perception/videos"),
    "egocentric_navigation": Source("vlnqa"),
    "episodic_reasoning": Source("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "counterfactual_inference": Source("clevrer/video_validation"),
}


@TASKS.register("mvbench")
class MVBench(MultipleChoice):
    """`task_mean`: the plain mean of the twenty accuracies.

    Official: lmms-eval leaves empty answers out of the denominator.
    """

    summary = "twenty tasks that need more than one frame; the mean over them"
    headline = "task_mean"
    splits = ("test",)
    files: ClassVar = {"test": tuple(f"json/{name}.json|{name}.json" for name in SOURCES)}
    citation = "Li et al., CVPR 2024, arXiv 2311.17005"
    licence = (
        "MIT for the annotations; each source of videos has its own, NTU RGB+D needs a request"
    )
    home = "https://huggingface.co/datasets/OpenGVLab/MVBench"
    hub = "OpenGVLab/MVBench:action_sequence"
    script = "mvbench"
    mean_over = "task"
    mean_count = MVBENCH_TASKS

    def items(self, data: Path, split: str) -> list[Item]:
        """Task after task, each in the order of its file."""
        if data == files.HUB:
            parts = [with_hub(self, f"OpenGVLab/MVBench:{name}") for name in SOURCES]
            tables = [files.hub_records(part, "train") for part in parts]
        else:
            tables = [files.read_records(p) for p in files.annotation_files(self, data, split)]
        found = []
        for (task, source), rows in zip(SOURCES.items(), tables, strict=True):
            folder = _folder(source, data)
            found += [_item(task, k, folder, *row) for k, row in enumerate(rows)]
        return unique(found, self.name)


def _folder(source: Source, data: Path) -> str:
    """The folder of a task's videos: the first that is there, else the official one."""
    names = [name for name in (source.whole, *source.also, source.cut) if name]
    return video_folder(data, *(f"{top}{name}" for name in names for top in ("", "video/")))


def _item(task: str, number: int, folder: str, where: str, row: dict[str, Any]) -> Item:
    source = SOURCES[task]
    video = files.field(row, "video", str, where=where)
    choices = tuple(text.strip() for text in options(row, "candidates", where=where))
    answer = files.field(row, "answer", str, where=where)
    question = files.field(row, "question", str, where=where)
    start = end = None
    if source.cut and not folder.endswith(source.cut):
        start = files.field(row, "start", float, where=where)
        end = files.field(row, "end", float, where=where)
    return Item(
        id=f"{task}-{number}",
        vid=f"{source.whole}/{Path(video).stem}",
        video=f"{folder}/{video}",
        prompt=question_text(f"Question:{question}\nOption:", choices, TAIL, form="({}) {}"),
        truth=letter_for(answer, choices, f"{where}: the field 'answer'"),
        kind=task,
        start=start,
        end=end,
        choices=choices,
        groups={"task": task},
    )
