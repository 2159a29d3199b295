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

from .base import TASKS, Item, check_split
from .htm_align import HTMAlign
from .made_clips import MadeClips, Told, made_folder, write_clips
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

    def prepare(
        self,
        data: Path | None,
        split: str,
        *,
        seed: int,
        limit: int | None = None,
        jobs: int = 1,
        progress: Told | None = None,
    ) -> Path:
        """Make the clips that are not there yet; of the split "long" a scene alone is a clip.

        Args:
            data: folder of all made clips; None for `~/.cache/vidllm/stage`.
            seed, limit: which clips and how many. progress: called with (written, to write).

        Raises:
            InputError: wrong arguments. WorkError: files that cannot be written.
        """
        from vidllm.stage.narration import narrated_clip

        check_split(self, split)
        long = split == "long"
        chapters = 1 if long else self.chapters
        home = made_folder(data, f"{split}-told", seed, chapters, self.version)
        count = self.usual_limit if limit is None else limit
        drawn = partial(
            narrated_clip, "long" if long else "test", seed, chapters=chapters, version=self.version
        )
        clips = {clip.vid: clip for clip in map(drawn, range(count))}
        rows = {}
        for vid, clip in clips.items():
            told = clip.narration()
            rows[vid] = [
                [1, round(start, 3), round(end, 3), sentence]
                for sentence, (start, end) in zip(told.sentences, told.windows, strict=True)
            ]

        def write(vid: str, path: Path) -> None:
            from vidllm.stage.files import GOP_SECONDS, scene_frames, write_pictures

            fps = clips[vid].scenes[0].fps if long else FPS
            scenes = (replace(scene, fps=fps) for scene in clips[vid].scenes)
            frames = (f for scene in scenes for chunk in scene_frames(scene) for f in chunk)
            pictures = ((picture, 1) for picture in frames)
            write_pictures(path, pictures, fps, max(1, round(GOP_SECONDS * fps)))

        write_clips(home, FILE, rows, write, progress)
        return home

    def items(self, data: Path, split: str) -> list[Item]:
        """One a sentence."""
        return self.sentences(data / FILE)
