"""A gallery of clips to be found by captions: scenes of the made world, each with its variants.

Clip files as in `files`, and `retrieval_<split>.csv` in the columns of MSR-VTT's test file (key,
vid_key, video_id, sentence) with two more: the scene that a clip is a variant of, and in what.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .annotations import captions_file, video_id, write_text
from .files import clip_scene, default_folder, home_of, stamp_of, write_clips
from .scenes import USUAL, Scene
from .variants import caption_of, sentences_of, variants_of

_COLUMNS = ("key", "vid_key", "video_id", "sentence", "scene", "differs")


def gallery_scenes(split: str, seed: int, count: int, version: int = USUAL) -> list[Scene]:
    """The first `count` clips: a scene, its variants, the next scene, and so on.

    Raises:
        InputError: no such split or version, or a seed or number out of range.
    """
    found: list[Scene] = []
    index = 0
    while len(found) < count:
        scene = clip_scene(split, seed, index, version)
        found += [scene, *variants_of(scene)]
        index += 1
    return found[:count]


def write_gallery(
    folder: str | os.PathLike[str] | None,
    split: str,
    seed: int,
    limit: int,
    *,
    version: int = USUAL,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make the first `limit` clips of a gallery, or take those that are there already.

    Args:
        folder: of all stage benchmarks, None for the usual one; this one goes to
            `<folder>/retrieval-<split>-<seed>`.
        split, seed, version, jobs, progress: as `files.write_stage`.

    Returns:
        The gallery's own folder.

    Raises:
        InputError: wrong arguments, or a folder that holds something else or damaged files.
        WorkError: the files cannot be written.
    """
    top = default_folder() if folder is None else Path(folder).expanduser()
    clip_scene(split, seed, 0, version)
    usual = home_of(top, split, seed, version)
    home = usual.with_name(f"retrieval-{usual.name}")
    file = captions_file(home, split)
    write_clips(
        home,
        stamp_of("vidllm-stage-retrieval", split, seed, version),
        limit,
        lambda count: gallery_scenes(split, seed, count, version),
        lambda scenes: write_text(file, captions_csv(scenes)),
        file,
        jobs=jobs,
        progress=progress,
    )
    return home


def captions_csv(scenes: list[Scene]) -> str:
    """One row a clip."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, scene in enumerate(scenes):
        base = video_id(replace(scene, variant=""))
        caption = caption_of(sentences_of(scene))
        row = (f"ret{number}", f"stage{number}", video_id(scene), caption, base, scene.variant)
        writer.writerow(row)
    return text.getvalue()
