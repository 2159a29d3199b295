"""Write the benchmark to disk: real H.264 files and annotation files, kept for the next time.

Clip i of seed S is `make_scene(split, S * 100_000 + i)`. Training draws from the split "train"
alone, and splits never share a scene, so no seed of another split was ever seen in training. A
benchmark lives in a folder of its own, `<folder>/<split>-<seed>` (from version 2 on with `-v2`
behind), which grows when more clips are asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidllm.errors import InputError, WorkError

from .annotations import (
    questions_file,
    questions_of,
    read_questions,
    video_id,
    write_annotations,
    write_text,
)
from .questions import Question
from .render import VIDEO_SIZE, render_tracks, to_uint8
from .scenes import USUAL, Scene, make_scene
from .tracks import tracks

CLIPS_PER_SEED = 100_000
STAMP = "stage.json"
#: Frames rendered at once: an hour-long clip takes the memory of these.
CHUNK = 64
GOP_SECONDS = 2.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One video of the benchmark and what is asked about it.

    `questions` are as in `vidllm.stage.questions`; question k of a sample has the id `<vid>-<k>`.
    """

    vid: str
    path: Path
    duration: float
    questions: tuple[Question, ...]


def default_folder() -> Path:
    """Where benchmarks are kept: `$XDG_CACHE_HOME/vidllm/stage`, or the same in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vidllm" / "stage"


def clip_scene(split: str, seed: int, index: int, version: int = USUAL) -> Scene:
    """The scene of clip `index` of a benchmark seed.

    Raises:
        InputError: no such split or version, or a seed or index out of range.
    """
    if not 0 <= index < CLIPS_PER_SEED:
        raise InputError(f"a stage seed has {CLIPS_PER_SEED} clips: clip {index} is none of them")
    if seed < 0:
        raise InputError(f"a stage seed must be 0 or more, not {seed}")
    return make_scene(split, seed * CLIPS_PER_SEED + index, version)


def home_of(folder: Path, split: str, seed: int, version: int) -> Path:
    """The folder of one benchmark among all."""
    return folder / (f"{split}-{seed}" if version == 1 else f"{split}-{seed}-v{version}")


def write_stage(
    folder: str | os.PathLike[str],
    split: str,
    seed: int,
    limit: int,
    *,
    version: int = USUAL,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Sample]:
    """Make the first `limit` clips of a benchmark, or take those that are there already.

    Args:
        folder: of all benchmarks; this one goes to `<folder>/<split>-<seed>`.
        split: "train", "val", "test", "test-unseen" or "long".
        seed: which benchmark of the split.
        limit: clips, at least 1.
        version: of the benchmark.
        jobs: processes that write videos.
        progress: called with (videos written, videos to write).

    Returns:
        The clips in order.

    Raises:
        InputError: wrong arguments, or a folder that holds something else or damaged files.
        WorkError: the files cannot be written.
    """
    clip_scene(split, seed, max(limit, 1) - 1, version)
    home = home_of(Path(folder).expanduser(), split, seed, version)
    mine = stamp_of("vidllm-stage", split, seed, version)

    def scenes(count: int) -> list[Scene]:
        return [clip_scene(split, seed, i, version) for i in range(count)]

    def annotate(some: list[Scene]) -> None:
        write_annotations(home, split, some)

    file = questions_file(home, split)
    made = write_clips(home, mine, limit, scenes, annotate, file, jobs=jobs, progress=progress)
    return _samples(home, split, made)


def write_clips(
    home: Path,
    mine: Mapping[str, Any],
    limit: int,
    scenes: Callable[[int], list[Scene]],
    annotate: Callable[[list[Scene]], None],
    annotated: Path,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Scene]:
    """Make the first `limit` clips of a benchmark in its own folder, or take those that are there.

    Args:
        home: the folder. mine: its stamp (`stamp_of`). scenes: the first so many scenes.
        annotate: writes the annotation files of so many scenes, `annotated` among them.
        jobs, progress: see `write_stage`.

    Returns:
        The scenes of the clips, in order.

    Raises:
        InputError: wrong arguments, or a folder that holds something else or damaged files.
        WorkError: the files cannot be written.
    """
    if limit < 1 or jobs < 1:
        raise InputError(f"limit and jobs must be at least 1, not {limit} and {jobs}")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no folder can be made at {home}: {error.strerror}") from error
    try:
        stamp = _opened(home, mine)
        every = scenes(max(limit, stamp["clips"]))
        missing = _missing(home, every[:limit], stamp["bytes"])
        _write_videos(home, missing, jobs, progress)
        if stamp["clips"] < limit or missing or not annotated.is_file():
            annotate(every)
            sizes = {p.stem: p.stat().st_size for p in sorted(home.glob("*.mp4"))}
            stamp = {**stamp, "clips": len(every), "bytes": sizes}
            write_text(home / STAMP, json.dumps(stamp, indent=1) + "\n")
    except OSError as error:
        raise WorkError(f"the benchmark cannot be written to {home}: {error.strerror}") from error
    return every[:limit]


def stamp_of(kind: str, split: str, seed: int, version: int) -> dict[str, Any]:
    """What tells the folder of a benchmark from all others."""
    mark = world_mark(split, seed, version)
    return {"format": kind, "version": version, "split": split, "seed": seed, "mark": mark}


def write_video(path: Path, scene: Scene) -> None:
    """Write one scene as an mp4 file with a key frame every 2 s; raises as `write_pictures`."""
    pictures = ((picture, 1) for frames in scene_frames(scene) for picture in frames)
    write_pictures(path, pictures, scene.fps, max(1, round(GOP_SECONDS * scene.fps)))


def write_pictures(
    path: Path, pictures: Iterable[tuple[np.ndarray, int]], fps: float, gop: int
) -> None:
    """Write an mp4 file (H.264, yuv420p, B-frames, constant frame rate) in one piece.

    The same software writes the same bytes every time.

    Args:
        pictures: (128, 128, 3) uint8, and how many frames show each. gop: frames to a key frame.

    Raises:
        WorkError: PyAV has no H.264 encoder.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as out:
            stream = out.add_stream("libx264", rate=rate)
            stream.width = stream.height = VIDEO_SIZE
            stream.pix_fmt = "yuv420p"
            stream.gop_size = gop
            # One thread: how x264 divides a picture among threads shows in the bytes.
            stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
            number = 0
            for picture, times in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p")
                for _ in range(times):
                    frame.pts, frame.time_base = number, 1 / rate
                    out.mux(stream.encode(frame))
                    number += 1
            out.mux(stream.encode(None))
        part.replace(path)
    except av.codec.codec.UnknownCodecError as error:
        raise WorkError("PyAV has no H.264 encoder (libx264): install av from PyPI") from error
    finally:
        part.unlink(missing_ok=True)


def scene_frames(scene: Scene) -> Iterator[np.ndarray]:
    """All frames of a scene in chunks (F, 128, 128, 3) uint8, always the same."""
    grain = torch.Generator().manual_seed(int(scene.rng(3).integers(2**62)))
    for first in range(0, scene.frame_count, CHUNK):
        count = min(CHUNK, scene.frame_count - first)
        seconds = np.arange(first, first + count) / scene.fps
        moving = tracks(scene, seconds)
        with one_thread():
            painted = render_tracks(moving, generator=grain)
        yield to_uint8(painted).numpy()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, so that the number of cores does not show in the pixels."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def world_mark(split: str, seed: int, version: int = USUAL) -> str:
    """A short hash of the first clip's scene, tracks and questions: tells worlds apart."""
    scene = clip_scene(split, seed, 0, version)
    moving = tracks(scene, np.linspace(0, scene.duration, 16))
    said = [(q.kind, q.text, q.answer, q.options) for q in questions_of(scene)]
    events = [(e.actor, e.action, round(e.start, 5), round(e.end, 5)) for e in scene.events]
    places = np.round(moving.state, 3).tolist()
    text = repr((round(scene.duration, 5), events, said, moving.glyph.tolist(), places))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _opened(home: Path, mine: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp of the folder, a new one if it is empty."""
    file = home / STAMP
    if not file.exists():
        others = [p.name for p in home.iterdir() if not p.name.startswith(".")]
        if others:
            raise InputError(
                f"{home} holds {others[0]!r} but no {STAMP}: it is no stage benchmark; give "
                "another folder with --data"
            )
        fresh: dict[str, Any] = {**mine, "clips": 0, "bytes": {}}
        write_text(file, json.dumps(fresh, indent=1) + "\n")
        return fresh
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["clips"], dict(found["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: delete {home} and run again") from error
    for key, value in mine.items():
        if found.get(key) != value:
            raise InputError(
                f"{home} was made by another version of the benchmark ({key}: {found.get(key)}, "
                f"not {value}): delete it or give another folder with --data"
            )
    return dict(found)


def _missing(home: Path, scenes: list[Scene], sizes: dict[str, int]) -> list[Scene]:
    """Scenes whose video is not there.

    Raises:
        InputError: a video that is not as it was written.
    """
    missing = []
    for scene in scenes:
        path = home / f"{video_id(scene)}.mp4"
        if not path.is_file():
            missing.append(scene)
            continue
        size = path.stat().st_size
        # A file of an interrupted run is whole, but not in the stamp yet.
        if size != sizes.get(video_id(scene), size) or size == 0:
            raise InputError(f"{path} is damaged ({size} bytes): delete it and run again")
    return missing


def _write_videos(home: Path, scenes: list[Scene], jobs: int, progress: Progress | None) -> None:
    report = progress or (lambda done, total: None)
    jobs = min(jobs, len(scenes))
    if jobs <= 1:
        for done, scene in enumerate(scenes, 1):
            write_video(home / f"{video_id(scene)}.mp4", scene)
            report(done, len(scenes))
        return
    # "spawn": a fork of a process in which torch has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = {pool.submit(write_video, home / f"{video_id(s)}.mp4", s) for s in scenes}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                report(len(scenes) - len(waiting), len(scenes))
        except BrokenProcessPool as error:
            raise WorkError("a process that writes videos ended: try --jobs 1") from error
        finally:
            for future in waiting:
                future.cancel()


def _samples(home: Path, split: str, scenes: list[Scene]) -> list[Sample]:
    found = read_questions(home, split)
    samples = []
    for scene in scenes:
        vid = video_id(scene)
        if vid not in found:
            raise WorkError(f"{questions_file(home, split)} lacks {vid}: delete {home}, run again")
        samples.append(Sample(vid, home / f"{vid}.mp4", *found[vid]))
    return samples
