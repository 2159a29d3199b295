"""What the benchmarks of the made world share: how their clips are made, and where they stand.

A folder of clips that are not those of `stage` is named after what they depend on, so that clips of
another world are never taken for these. It grows: more clips are added to those that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError, WorkError

from .base import Task, check_split

#: Called with (videos written, videos to write).
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class ClipRequest:
    """Which clips there shall be: how many, from a seed, written by so many processes."""

    split: str
    seed: int
    count: int
    jobs: int
    progress: Told | None


class MadeClips(Task):
    """A task that makes its own clips."""

    home: ClassVar[str] = ""
    citation: ClassVar[str] = "vidllm, docs/stage.md"
    licence: ClassVar[str] = "made from seeds: no rights of others"
    #: Clips if nobody says how many.
    usual_limit: ClassVar[int] = 100

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
        """Make the clips that are not there yet, and say in which folder they and their files are.

        Args:
            data: folder of all made clips; None for `~/.cache/vidllm/stage`.
            split, seed: which clips. limit: how many. jobs: processes that write videos.
            progress: called with (videos written, videos to write).

        Raises:
            InputError: wrong arguments, or a folder that holds something else.
            WorkError: files that cannot be written.
        """
        count = self.usual_limit if limit is None else limit
        return self.make(data, ClipRequest(check_split(self, split), seed, count, jobs, progress))

    @abstractmethod
    def make(self, data: Path | None, clips: ClipRequest) -> Path:
        """As `prepare`."""


def stage_clips(data: Path | None, clips: ClipRequest, version: int) -> Path:
    """The folder of the clips of `stage` with all their files, made where they are not there."""
    from vidllm.stage.files import default_folder, write_stage

    folder = default_folder() if data is None else data.expanduser()
    samples = write_stage(
        folder, clips.split, clips.seed, clips.count,
        version=version, jobs=clips.jobs, progress=clips.progress,
    )  # fmt: skip
    return samples[0].path.parent


def made_folder(data: Path | None, name: str, seed: int, *known: Any) -> Path:
    """A folder of clips, made where it is not there.

    Args:
        data: folder of all made clips; None for `~/.cache/vidllm/stage`.
        name: of the clips. known: what else they depend on.

    Raises:
        InputError: a seed below 0, or a folder that cannot be made.
    """
    from vidllm.stage.files import default_folder, world_mark

    if seed < 0:
        raise InputError(f"--seed must be 0 or more, not {seed}")
    mark = hashlib.sha256(json.dumps([world_mark("test", 0), *known]).encode()).hexdigest()[:8]
    folder = default_folder() if data is None else data.expanduser()
    home = folder / f"{name}-{seed}-{mark}"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no folder can be made at {home}: {error.strerror}") from error
    return home


def write_clips(
    home: Path,
    file: str,
    rows: Mapping[str, Any],
    write: Callable[[str, Path], None],
    progress: Told | None = None,
) -> None:
    """Write the videos that are not there, and a JSON file with a row each.

    Args:
        file: of the rows; rows of clips that were made before stay in it.
        rows: by name of the video. write: one of them, in one piece.

    Raises:
        WorkError: they cannot be written.
    """
    missing = [vid for vid in rows if not (home / f"{vid}.mp4").is_file()]
    try:
        for done, vid in enumerate(missing, 1):
            write(vid, home / f"{vid}.mp4")
            if progress is not None:
                progress(done, len(missing))
        path = home / file
        known = read_rows(path) if path.is_file() else {}
        whole = {**known, **rows}
        if whole != known:
            part = path.with_name(f".{file}.{os.getpid()}.part")
            part.write_text(json.dumps(whole) + "\n", encoding="utf-8")
            part.replace(path)
    except OSError as error:
        raise WorkError(f"the clips cannot be written to {home}: {error.strerror}") from error


def read_rows(path: Path) -> dict[str, Any]:
    """The rows of a file that `write_clips` wrote.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run without --data, or where it was made") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: delete its folder and run again") from error
