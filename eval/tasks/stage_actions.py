"""`stage-actions`: which of ten actions a made clip shows, when single pictures do not tell.

Clips come in pairs of the same pictures in another order (`vidllm.stage.order_pairs`): what sees
no time is right in half of the clips at best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .base import TASKS, Item
from .choice import MultipleChoice, question_text
from .made_clips import ClipRequest, MadeClips, made_folder, read_rows, write_clips

FILE, FRAMES, SIZE = "actions.json", 16, 128
QUESTION = "What happens in the video?"
#: Clips between those of one benchmark seed and the next.
_SEED = 10**6


@TASKS.register("stage-actions")
@dataclass(frozen=True)
class StageActions(MadeClips, MultipleChoice):
    """Ten options for every clip, always the same ones in the same order."""

    summary = "made actions that only the order of pictures tells; accuracy"
    splits = ("test", "val")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"test": (), "val": ()}

    def make(self, data: Path | None, clips: ClipRequest) -> Path:
        from vidllm.stage.files import write_pictures
        from vidllm.stage.order_pairs import StagePairs
        from vidllm.stage.render import to_uint8

        first = clips.seed * _SEED
        home = made_folder(data, f"{clips.split}-actions", clips.seed, FRAMES, SIZE)
        pairs = StagePairs(clips.split, FRAMES, SIZE, first=first)
        numbers = {f"action_{first + k:09d}": k for k in range(clips.count)}
        rows = {vid: pairs.labels[pairs.label(k)] for vid, k in numbers.items()}

        def write(vid: str, path: Path) -> None:
            frames, seconds, _ = pairs.clip(numbers[vid])
            fps = float((len(seconds) - 1) / (seconds[-1] - seconds[0]))
            pictures = ((picture, 1) for picture in to_uint8(frames).numpy())
            write_pictures(path, pictures, fps, FRAMES)

        write_clips(home, FILE, rows, write, clips.progress)
        return home

    def items(self, data: Path, split: str) -> list[Item]:
        """One a clip."""
        from vidllm.stage.order_pairs import StagePairs

        labels = StagePairs().labels
        return [
            Item(
                id=vid,
                vid=vid,
                video=f"{vid}.mp4",
                prompt=question_text(QUESTION, labels),
                truth="ABCDEFGHIJ"[labels.index(label)],
                kind=label.split()[0],
                choices=labels,
                groups={"pair": label.split()[0]},
            )
            for vid, label in read_rows(data / FILE).items()
        ]
