"""Video-MME: 2700 questions about 900 videos of 11 seconds to an hour, with or without subtitles.

Verified on the data set's card and in its readers: `videomme/test-00000-of-00001.parquet` of
lmms-lab/Video-MME has video_id, duration ("short", "medium", "long"), domain, sub_category, url,
videoID, question_id, task_type, question, options ("A. …" to "D. …") and answer (a letter); videos
are `VIDEOID.mp4`, `subtitle.zip` holds `subtitle/VIDEOID.srt` for most of them. A JSON or jsonl
copy with the same fields is read as well.

Prompt: the benchmark's words with lmms-eval's last line, the same with and without subtitles (the
benchmark's page ends with "The best answer is:"). Subtitles: all of them, see `subtitles`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from . import files
from .base import TASKS, Item
from .choice import MultipleChoice, bare, letter_named, options, question_text, unique, video_folder
from .subtitles import as_lines, read_srt, within

INTRO = (
    "Select the best answer to the following multiple-choice question based on the {source}. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
LISTED = "This video's subtitles are listed below:"
NONE = "No subtitles available"
_GROUPS = ("duration", "domain", "sub_category", "task_type")


@TASKS.register("videomme")
class VideoMME(MultipleChoice):
    """Official: its script takes the first of the capitals A to D anywhere in an answer, so
    "Because" is B, and leaves answers without one out of the denominator.
    """

    summary = "general questions about short, medium and long videos, without subtitles"
    splits = ("test",)
    files: ClassVar = {
        "test": (
            "videomme/test-00000-of-00001.parquet|test-00000-of-00001.parquet"
            "|videomme.jsonl|videomme.json",
        )
    }
    citation = "Fu et al., CVPR 2025, arXiv 2405.21075"
    licence = "academic research only, no commercial use; videos belong to their owners"
    home = "https://huggingface.co/datasets/lmms-lab/Video-MME"
    hub = "lmms-lab/Video-MME:videomme"
    script = "videomme"

    def items(self, data: Path, split: str) -> list[Item]:
        """In the order of the file: three questions a video."""
        rows = files.records(self, data, split)
        folder = video_folder(data, "", "data", "video")
        found = [self._item(row, folder, where) for where, row in rows]
        return unique(self.complete(found, data), self.name)

    def complete(self, items: list[Item], data: Path) -> list[Item]:
        """What a variant adds to the items."""
        return items

    def _item(self, row: dict[str, Any], folder: str, where: str) -> Item:
        choices = bare(options(row, "options", where=where, count=4))
        answer = files.field(row, "answer", str, where=where)
        vid = files.field(row, "videoID", str, where=where)
        groups = {name: files.field(row, name, str, where=where) for name in _GROUPS}
        asked = question_text(files.field(row, "question", str, where=where), choices)
        return Item(
            id=files.field(row, "question_id", str, where=where),
            vid=vid,
            video=str(Path(folder, vid)),
            prompt=f"{INTRO.format(source='video')}\n{asked}",
            truth=letter_named(answer, len(choices), f"{where}: the field 'answer'"),
            kind=groups["task_type"],
            choices=choices,
            groups=groups,
        )


@TASKS.register("videomme-subtitles")
class VideoMMESubtitles(VideoMME):
    """With the official .srt files from the folder `subtitle` (or `subtitles`): all subtitles of
    the video, not only those at sampled frames as in lmms-eval, so that the text is the same for
    every number of frames. A video without a file has "No subtitles available" in its prompt and
    is in the group subtitles/no.
    """

    summary = "general questions about short, medium and long videos, with subtitles"

    def complete(self, items: list[Item], data: Path) -> list[Item]:
        """Put the subtitles of each video, or of the part that is looked at, before the question.

        Raises:
            InputError: no folder of subtitles, or a file that cannot be read.
        """
        folders = [] if data == files.HUB else [data / "subtitle", data / "subtitles"]
        folder = next((path for path in folders if path.is_dir()), None)
        if folder is None:
            raise InputError(
                f"{self.name} needs the folder subtitle in {data}: unzip subtitle.zip of "
                f"{self.home}"
            )
        return [self._with_subtitles(item, folder / f"{item.vid}.srt") for item in items]

    def _with_subtitles(self, item: Item, path: Path) -> Item:
        cues = within(read_srt(path), item.start, item.end) if path.is_file() else []
        before, after = (INTRO.format(source=s) for s in ("video", "video and the subtitles"))
        prompt = "\n".join((LISTED, as_lines(cues) or NONE, item.prompt.replace(before, after, 1)))
        groups = {**item.groups, "subtitles": "yes" if cues else "no"}
        return replace(item, prompt=prompt, groups=groups)
