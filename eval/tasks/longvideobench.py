"""LongVideoBench: 1337 questions about moments in videos of 8 seconds to an hour.

Verified in the official loader, on the data set's card and in public readers: `lvb_val.json` is a
list of {id, video_id, video_path, question, candidates, correct_choice (from 0), duration,
duration_group, question_category, topic_category, subtitle_path, starting_timestamp_for_subtitles,
…}; `validation-00000-of-00001.parquet` has option0 to option4 instead of the candidates, "N/A"
where there are fewer. Subtitles are `subtitles/VIDEO_en.json`. The answers of the test split are
not public; it is not read.

Subtitles: the official loader puts each one between the frames around its middle. A prompt here is
one text after the video, so every subtitle has its seconds instead, which the model can match with
the times of the frames, and all of them are there, see `subtitles`. Scores with subtitles are not
those of the interleaved format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from . import files
from .base import TASKS, Item
from .choice import MultipleChoice, letter_at, options, question_text, unique
from .subtitles import as_lines, read_json_subtitles
from .videomme import LISTED, NONE

#: Lengths of the videos of each group (paper, section 3).
LENGTHS = {15: "8 to 15 s", 60: "15 to 60 s", 600: "3 to 10 min", 3600: "15 to 60 min"}


@TASKS.register("longvideobench")
class LongVideoBench(MultipleChoice):
    """Official: "A man …" is option A, and where no letter can be read the script guesses at random
    (here from a seed).
    """

    summary = "questions that refer to a moment of a long video, without subtitles"
    splits = ("val",)
    files: ClassVar = {
        "val": (
            "lvb_val.json|validation-00000-of-00001.parquet|data/validation-00000-of-00001.parquet",
        )
    }
    citation = "Wu et al., NeurIPS 2024 Datasets and Benchmarks, arXiv 2407.15754"
    licence = "CC-BY-NC-SA-4.0, non-commercial; videos belong to their owners"
    home = "https://huggingface.co/datasets/longvideobench/LongVideoBench"
    hub = "longvideobench/LongVideoBench"
    max_new_tokens = 32
    script = "longvideobench"

    def items(self, data: Path, split: str) -> list[Item]:
        """In the order of the file."""
        rows = files.records(self, data, split, hub_split="validation")
        return unique([self._item(row, data, where) for where, row in rows], self.name)

    def before_question(self, row: dict[str, Any], data: Path, where: str) -> str:
        """What a variant puts before the question."""
        return ""

    def _item(self, row: dict[str, Any], data: Path, where: str) -> Item:
        choices = _choices(row, where)
        question = files.field(row, "question", str, where=where)
        right = files.field(row, "correct_choice", int, where=where)
        group = files.field(row, "duration_group", int, where=where)
        category = files.field(row, "question_category", str, where=where)
        topic = files.field(row, "topic_category", str, where=where, default="unknown")
        return Item(
            id=files.field(row, "id", str, where=where),
            vid=files.field(row, "video_id", str, where=where),
            video=files.field(row, "video_path", str, where=where),
            prompt=self.before_question(row, data, where) + question_text(question, choices),
            truth=letter_at(right, len(choices), f"{where}: the field 'correct_choice'"),
            kind=category,
            duration=files.field(row, "duration", float, where=where),
            choices=choices,
            groups={
                "duration": LENGTHS.get(group, f"{group} s"),
                "category": category,
                "topic": topic,
            },
        )


@TASKS.register("longvideobench-subtitles")
class LongVideoBenchSubtitles(LongVideoBench):
    """With all subtitles of the video from the folder `subtitles`, before the question, each with
    its seconds: not the official format, in which they stand between the frames.
    """

    summary = "questions that refer to a moment of a long video, with subtitles"

    def before_question(self, row: dict[str, Any], data: Path, where: str) -> str:
        """The subtitles with their times, as lines.

        Raises:
            InputError: a file of subtitles that is missing or wrong.
        """
        if data == files.HUB:
            raise InputError(f"{self.name} needs the folder subtitles: give --data a folder")
        name = files.field(row, "subtitle_path", str, where=where)
        origin = files.field(row, "starting_timestamp_for_subtitles", float, where=where)
        length = files.field(row, "duration", float, where=where)
        path = data / "subtitles" / name
        if not path.is_file():
            raise InputError(
                f"{where}: the field 'subtitle_path' names subtitles/{name}, which is not in "
                f"{data}: untar subtitles.tar of {self.home}"
            )
        return (
            f"{LISTED}\n{as_lines(read_json_subtitles(path, origin, length), times=True) or NONE}\n"
        )


def _choices(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if "candidates" in row:
        return tuple(text.strip() for text in options(row, "candidates", where=where))
    names = [f"option{k}" for k in range(5)]
    texts = [files.field(row, name, str, where=where, default="N/A").strip() for name in names]
    found = tuple(text for text in texts if text != "N/A")
    if len(found) < 2 or texts[: len(found)] != list(found):
        raise InputError(
            f"{where}: the fields 'option0' to 'option4' need two options at their start"
        )
    return found
