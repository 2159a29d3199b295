"""`stage-choice`: questions about made clips, with options that are true elsewhere in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vidllm.errors import InputError
from vidllm.stage.annotations import questions_file, read_questions, tidy
from vidllm.stage.scenes import SPLITS, USUAL, check_version, make_scene

from .base import TASKS, Item
from .choice import MultipleChoice, question_text
from .made_clips import ClipRequest, MadeClips, stage_clips
from .options import option, whole_number


@TASKS.register("stage-choice")
@dataclass(frozen=True)
class StageChoice(MadeClips, MultipleChoice):
    """Up to so many questions a clip, kinds evenly; yes or no has two options, all others four.

    Args:
        asked: questions about a clip. version: of the made world, see docs/stage.md.

    Raises:
        InputError: no such version, or no questions.
    """

    asked: int = option("asked", 6, whole_number, "Questions about a clip; 6.")
    version: int = option("version", USUAL, whole_number, f"Version of the made world: {USUAL}.")

    summary = "short questions about made clips with hard options; accuracy"
    splits = ("test", *(split for split in SPLITS if split not in ("test", "long")))
    files: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(splits, ())

    def __post_init__(self) -> None:
        check_version(self.version)
        if self.asked < 1:
            raise InputError(f"--asked must be at least 1, not {self.asked}")

    def make(self, data: Path | None, clips: ClipRequest) -> Path:
        """See `MadeClips`: those of `stage`."""
        return stage_clips(data, clips, self.version)

    def items(self, data: Path, split: str) -> list[Item]:
        """The same questions every time, in the order of the clips."""
        from vidllm.stage.choices import choice_questions, evenly

        if not questions_file(data, split).is_file():
            raise InputError(
                f"{data} holds no clips of {split}: `vidllm eval {self.name}` makes them"
            )
        found = []
        for vid, (duration, _) in read_questions(data, split).items():
            scene = make_scene(split, int(vid.rpartition("_")[2]), self.version)
            rng = scene.rng(11)
            for k, question in enumerate(evenly(choice_questions(scene, rng), self.asked, rng)):
                place = question.options.index(question.answer)
                found.append(
                    Item(
                        id=f"{vid}-{k}",
                        vid=vid,
                        video=f"{vid}.mp4",
                        prompt=question_text(tidy(question.text), question.options),
                        truth="ABCDEFGH"[place],
                        kind=question.kind,
                        duration=duration,
                        choices=question.options,
                        groups={"kind": question.kind},
                    )
                )
        return found
