"""`stage-align`: at which second a narrated clip of the made world shows a sentence.

A narrated clip is several test scenes one after the other; every event is told once. The file that
is written beside the videos, `htm_align.json`, has the format of HTM-Align.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from vidllm.stage.scenes import USUAL, check_version

from .base import TASKS, Item
from .htm_align import HTMAlign
from .made_clips import ClipRequest, MadeClips, made_folder, write_clips
from .options import option, whole_number

FILE = "htm_align.json"
#: Frames a second of the videos.
FPS = 8.0


@TASKS.register("stage-align")
@dataclass(frozen=True)
class StageAlign(MadeClips, HTMAlign):
    """R@1 of one second a sentence; there is no official script.

    Args:
        chapters: scenes of a narrated clip. version: of the made world, see docs/stage.md.

    Raises:
        InputError: no such version.
    """

    chapters: int = option("chapters", 6, whole_number, "Scenes of a narrated clip; 6.")
    version: int = option("version", USUAL, whole_number, f"Version of the made world: {USUAL}.")

    summary = "the second of a made, narrated clip that shows a sentence; R@1"
    splits = ("narrated", "long")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"narrated": (), "long": ()}
    usual_limit: ClassVar[int] = 30

    def __post_init__(self) -> None:
        check_version(self.version)

    def make(self, data: Path | None, clips: ClipRequest) -> Path:
        """See `MadeClips`; of the split "long" a scene alone is a clip."""
        from vidllm.stage.narration import narrated_clip

        long = clips.split == "long"
        chapters = 1 if long else self.chapters
        home = made_folder(data, f"{clips.split}-told", clips.seed, chapters, self.version)
        drawn = partial(
            narrated_clip,
            "long" if long else "test",
            clips.seed,
            chapters=chapters,
            version=self.version,
        )
        narrated = {clip.vid: clip for clip in map(drawn, range(clips.count))}
        rows = {}
        for vid, clip in narrated.items():
            told = clip.narration()
            rows[vid] = [
                [1, round(start, 3), round(end, 3), sentence]
                for sentence, (start, end) in zip(told.sentences, told.windows, strict=True)
            ]

        def write(vid: str, path: Path) -> None:
            from vidllm.stage.files import GOP_SECONDS, scene_frames, write_pictures

            fps = narrated[vid].scenes[0].fps if long else FPS
            scenes = (replace(scene, fps=fps) for scene in narrated[vid].scenes)
            frames = (f for scene in scenes for chunk in scene_frames(scene) for f in chunk)
            pictures = ((picture, 1) for picture in frames)
            write_pictures(path, pictures, fps, max(1, round(GOP_SECONDS * fps)))

        write_clips(home, FILE, rows, write, clips.progress)
        return home

    def items(self, data: Path, split: str) -> list[Item]:
        """One a sentence."""
        return self.sentences(data / FILE)
