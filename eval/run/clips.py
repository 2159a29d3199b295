"""The clips of a run: items by what they look at, their files, and each process's share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.errors import InputError
from vidllm.errors.plain import plain

from ..tasks.base import Item, Task

if TYPE_CHECKING:
    from vidllm.cli.options import CommonOptions
    from vidllm.video import VideoClip

#: Endings of video files, in the order in which they are tried.
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")
#: What opening a clip weighs when work is shared, in answers.
OPENING = 4


@dataclass(frozen=True)
class Clip:
    """A range of a video and all that is asked about it."""

    video: str
    start: float | None
    end: float | None
    items: tuple[Item, ...]


def items_of(task: Task, data: Path, split: str) -> list[Item]:
    """The items of a task as a row keeps them.

    Raises:
        InputError: annotation files that are wrong, no item at all, or an id that comes twice.
    """
    # Through JSON once, so that a row is scored later exactly as it is scored now.
    items = [
        Item.from_dict(json.loads(json.dumps(plain(item.as_dict()))))
        for item in task.items(data, split)
    ]
    if not items:
        raise InputError(f"{task.name} has nothing to ask in the split {split!r} of {data}")
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{task.name} has the id {twice!r} twice: the annotation file is damaged")
    return items


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """What is asked about the first `limit` videos, in order."""
    if limit is None:
        return list(items)
    first = set(list(dict.fromkeys(item.vid for item in items))[:limit])
    return [item for item in items if item.vid in first]


def clips_of(items: Iterable[Item]) -> list[Clip]:
    """The items by video and range, in order of their first."""
    found: dict[tuple[str, float | None, float | None], list[Item]] = {}
    for item in items:
        found.setdefault((item.video, item.start, item.end), []).append(item)
    return [Clip(*key, tuple(some)) for key, some in found.items()]


def share_of(clips: Sequence[Clip], rank: int, size: int) -> list[Clip]:
    """The clips of one of several processes, in order; every clip is exactly one's.

    The longest go first, each to whoever has least to do: the same split in every process.
    """
    weights = [OPENING + len(clip.items) for clip in clips]
    loads, owners = [0] * size, [0] * len(clips)
    for number in sorted(range(len(clips)), key=lambda k: (-weights[k], k)):
        owner = loads.index(min(loads))
        owners[number], loads[owner] = owner, loads[owner] + weights[number]
    return [clip for clip, owner in zip(clips, owners, strict=True) if owner == rank]


def find_video(video: str, folders: Sequence[Path]) -> Path:
    """The file of a video.

    It is looked for in every folder as it is named, then with other endings.

    Raises:
        InputError: there is none.
    """
    from vidllm.errors.paths import is_address

    name = Path(video)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"the annotation file names the video {video!r}, outside of its folder")
    for folder in folders:
        plainly = folder / name
        if plainly.is_file():
            return plainly
    for folder in folders:
        whole = folder / name
        stems = [whole, whole.with_suffix("")] if name.suffix.lower() in ENDINGS else [whole]
        for stem in stems:
            for ending in ENDINGS:
                file = stem.with_name(stem.name + ending)
                if file.is_file():
                    return file
    if is_address(video):
        raise InputError(f"{video}: URLs are not fetched: download it first")
    raise InputError(f"no video {video!r} in {' or '.join(map(str, folders))}")


def video_folders(data: Path, videos: Path | None) -> list[Path]:
    """Where the videos of a benchmark are looked for."""
    return [videos] if videos is not None else [data / "videos", data]


def open_clip(clip: Clip, folders: Sequence[Path], options: CommonOptions) -> VideoClip:
    """Read what a clip shows.

    Raises:
        InputError: no such file, or one that cannot be read.
    """
    path = find_video(clip.video, folders)
    return replace(options, start=clip.start, end=clip.end).open(str(path))
