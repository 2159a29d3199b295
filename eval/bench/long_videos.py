"""The measurements behind ``vidllm bench long``: speed, memory and answers of indexes.

Every part gives rows (part, case, measure, value); the parts are independent of each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.cli.tables import table
from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import output_folder
from vidllm.longvideo import index_video
from vidllm.stage.annotations import tidy

from .library_search import search_library
from .video_reading import long_file, short_file

if TYPE_CHECKING:
    from rich.table import Table

    from vidllm.stage.files import Sample

COLUMNS = ("part", "case", "measure", "value")
#: Seconds of the files whose indexing takes memory.
MEMORY = (600, 18000)
#: Times as many frames for the same tokens.
TIMES = (1, 4, 10, 20)
_HIT = 0.3  # IoU from which an answer counts as a hit
_TOKENS = 256  # that the LLM sees in the part "frames"

Row = dict[str, Any]
Save = Callable[[Row], None]

_CHILD = """
import json, resource, sys
from vidllm import VideoLLM
from vidllm.longvideo import index_video
index = index_video(VideoLLM.from_pretrained(), sys.argv[1], sys.argv[2])
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_mb": kilobytes / 1e3, "speed": index.made["speed"]}))
"""


def bench_long(
    parts: Sequence[str], folder: Path, save: Save, *, clips: int, seed: int = 1
) -> None:
    """Run parts of the benchmark, in the order given; rows go to `save` as they come.

    Args:
        parts: of `PARTS`. folder: where files are made and kept. clips: of stage.
        seed: of stage.

    Raises:
        InputError: no such part.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"no part {part!r}: choose from {', '.join(PARTS)}")
    output_folder(folder, "--folder").mkdir(parents=True, exist_ok=True)
    for part in parts:
        for case, measure, value in PARTS[part](folder, clips, seed):
            save({"part": part, "case": case, "measure": measure, "value": round(value, 4)})


Found = Iterator[tuple[str, str, float]]


def _speed(folder: Path, clips: int, seed: int) -> Found:
    """An hour of 360p H.264 at 30 frames a second: indexing, size, and a question."""
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.longvideo.index import VideoIndex

    video = long_file(short_file(folder, 60), folder, 60, 3600)
    llm, path = VideoLLM.from_pretrained(), _fresh(folder / "speed.vidx")
    index = index_video(llm, video, path)
    made = index.made or {}
    case = "one hour, 360p H.264, 1 fps"
    yield case, "times real time", made["speed"]
    for stage, seconds in made["spent"].items():
        yield case, f"seconds of {stage}", seconds
    yield case, "MB a minute", made["bytes"] / 1e6 / 60
    began = time.perf_counter()
    index = VideoIndex.load(path, llm)
    yield case, "seconds to open", time.perf_counter() - began
    for number, question in enumerate(("when does the red star spin?", "what happens first?",
                                       "when does the blue note jump?")):  # fmt: skip
        began = time.perf_counter()
        index.ask(question)
        yield case, f"seconds of question {number + 1}", time.perf_counter() - began


def _memory(folder: Path, clips: int, seed: int) -> Found:
    """Peak memory of a process that indexes a short and a very long file."""
    peaks = []
    for seconds in MEMORY:
        video = long_file(short_file(folder, 60), folder, 60, seconds)
        path = _fresh(folder / f"memory-{seconds}.vidx")
        command = [sys.executable, "-c", _CHILD, str(video), str(path)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise WorkError(f"indexing {video.name} failed: {ran.stderr.strip()[-300:]}")
        told = json.loads(ran.stdout.strip().splitlines()[-1])
        peaks.append(told["peak_mb"])
        yield f"{seconds} seconds", "peak MB", told["peak_mb"]
        yield f"{seconds} seconds", "times real time", told["speed"]
    yield f"{MEMORY[1]} over {MEMORY[0]} seconds", "ratio of peaks", peaks[1] / peaks[0]


def _static(folder: Path, clips: int, seed: int) -> Found:
    """The same scenes, busy and with all frozen while nothing happens; with and without reuse."""
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.stage.files import clip_scene, write_stage

    llm = VideoLLM.from_pretrained()
    spent: dict[str, float] = {}
    for name in ("busy", "static"):
        samples = write_stage(folder, "long", seed, clips)
        videos = [sample.path for sample in samples]
        if name == "static":
            videos = [_frozen(folder, clip_scene("long", seed, i)) for i in range(clips)]
        for near in (0.0, 1.0):
            case = f"{name}, near {near:g}"
            seconds, frames, encoded, error = 0.0, 0, 0, 0.0
            values: list[float] = []
            for sample, video in zip(samples, videos, strict=True):
                path = _fresh(folder / f"{name}-{near:g}.vidx")
                index = index_video(llm, video, path, near=near)
                made = index.made or {}
                seconds += made["spent"]["encode"]
                frames, encoded = frames + made["frames"], encoded + made["encoded"]
                error = max(error, made["near_error"])
                values += _grounded(sample, index.ask)
            spent[case] = seconds
            yield case, "seconds of vision", seconds
            yield case, "share of frames encoded", encoded / frames
            yield case, "largest relative error", error
            yield case, "hit rate", float(np.mean([v >= _HIT for v in values]))
            yield case, "mIoU", float(np.mean(values))
    yield (
        "static over busy, near 1",
        "ratio of vision",
        (spent["static, near 1"] / spent["busy, near 1"]),
    )


def _hits(folder: Path, clips: int, seed: int) -> Found:
    """The long split: an index against uniform sampling, by length and by depth."""
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.stage.files import write_stage

    llm = VideoLLM.from_pretrained()
    cells = llm.model.grid_side**2
    rows: list[list[float]] = []
    read: list[float] = []
    right: list[bool] = []
    for sample in write_stage(folder, "long", seed, clips):
        index = index_video(llm, sample.path, _fresh(folder / "hits.vidx"))
        asked = [q for q in sample.questions if q.kind == "ground"]
        plain = llm.sample(sample.path)
        budget = None
        for question in asked:
            answer = index.ask(tidy(question.text))
            read.append(answer.receipt.tokens_kept)
            if budget is None:  # as many tokens as all windows and looks together
                frames = max(llm.usual_frames, round(answer.receipt.tokens_kept / cells / 4) * 4)
                budget = llm.sample(sample.path, frames=min(frames, 2048))
            depth = float(np.mean(question.spans[0])) / sample.duration
            values = [_value(answer, question)]
            values += [_value(llm.ask(c, tidy(question.text)), question) for c in (plain, budget)]
            rows.append([sample.duration, depth, *values])
        for question in sample.questions:
            if not question.spans:
                right.append(index.ask(tidy(question.text)).text == question.answer)
    table = np.asarray(rows)
    for at, case in enumerate(("index", "uniform, 64 frames", "uniform, the index's tokens")):
        earned = table[:, 2 + at]
        yield case, "hit rate", float((earned >= _HIT).mean())
        yield case, "mIoU", float(earned.mean())
        for name, column, edges in (
            ("minutes", table[:, 0] / 60, (5, 15, 30, 60.1)),
            ("depth", table[:, 1], (0, 0.25, 0.5, 0.75, 1.01)),
        ):
            for low, high in pairwise(edges):
                chosen = (column >= low) & (column < high)
                if chosen.any():
                    label = f"hit rate, {name} {low:g} to {round(high, 2):g} (n={chosen.sum()})"
                    yield case, label, float((earned[chosen] >= _HIT).mean())
    yield "index", "questions", float(len(rows))
    yield "index", "tokens read a question", float(np.mean(read))
    if right:
        yield "index", f"QA accuracy (n={len(right)})", float(np.mean(right))


def _frames(folder: Path, clips: int, seed: int) -> Found:
    """Stage's test clips: the same tokens for the LLM from more and more frames."""
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.stage.files import write_stage

    llm = VideoLLM.from_pretrained()
    cells = llm.model.grid_side**2
    base = _TOKENS // cells
    for times in TIMES:
        values, spent, kept = [], 0.0, []
        method = llm.from_pretrained(compressor="none" if times == 1 else "temporal-pool",
                                     keep=None if times == 1 else 1 / times)  # fmt: skip
        for sample in write_stage(folder, "test", seed, clips):
            asked = [q for q in sample.questions if q.kind == "ground"]
            began = time.perf_counter()
            clip = method.sample(sample.path, frames=base * times)
            answers = method.ask(clip, [tidy(q.text) for q in asked])
            spent += time.perf_counter() - began
            values += [_value(a, q) for a, q in zip(answers, asked, strict=True)]
            kept.append(answers[0].receipt.tokens_kept)
        case = f"{times}x: {base * times} frames"
        yield case, "tokens", float(np.mean(kept))
        yield case, "mIoU", float(np.mean(values))
        yield case, "R1@0.5", float(np.mean([v >= 0.5 for v in values]))
        yield case, "seconds a clip", spent / clips


#: What `vidllm bench long --parts` takes.
PARTS: dict[str, Callable[[Path, int, int], Found]] = {
    "speed": _speed,
    "memory": _memory,
    "static": _static,
    "hits": _hits,
    "frames": _frames,
    "library": search_library,
}


def _grounded(sample: Sample, ask: Callable[[str], Any]) -> list[float]:
    asked = [q for q in sample.questions if q.kind == "ground"]
    return [_value(ask(tidy(q.text)), q) for q in asked]


def _value(answer: Any, question: Any) -> float:
    """IoU of the first span of an answer with the truth; 0 without one."""
    from vidllm.longvideo.choosing import tiou

    if not answer.spans or answer.failed:
        return 0.0
    start, end = answer.spans[0][:2]
    return tiou((start, end), question.spans[0])


def _fresh(path: Path) -> Path:
    """A place for an index, with nothing of an earlier run."""
    from vidllm.longvideo.parts import folder_of

    path.unlink(missing_ok=True)
    for file in sorted(folder_of(path).glob("*")):
        file.unlink()
    return path


def _frozen(folder: Path, scene: Any) -> Path:
    """A scene whose picture stands still, without noise, while nothing happens."""
    import av

    from vidllm.stage.render import VIDEO_SIZE, render_tracks, to_uint8
    from vidllm.stage.tracks import tracks

    path = folder / f"frozen-{scene.seed}.mp4"
    if path.exists():
        return path
    times = np.arange(scene.frame_count) / scene.fps
    moves = np.zeros(len(times), dtype=bool)
    for event in scene.events:
        moves |= (times >= event.start - 1) & (times <= event.end + 1)
    shown = times[np.maximum.accumulate(np.where(moves, np.arange(len(times)), 0))]
    half = path.with_name("making-" + path.name)
    with av.open(str(half), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=round(scene.fps))
        stream.width = stream.height = VIDEO_SIZE
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "20", "preset": "veryfast"}
        for at in range(0, len(shown), 64):
            seconds = shown[at : at + 64]
            painted = render_tracks(tracks(scene, seconds), noise=0.0)
            for picture in to_uint8(painted).numpy():
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return half.replace(path)


def long_table(rows: Sequence[Row]) -> Table:
    """The rows as a rich table."""
    *text, value = COLUMNS
    found = [[*(row[name] for name in text), f"{row[value]:g}"] for row in rows]
    return table(found, left=text, right=(value,), title="Long videos")
