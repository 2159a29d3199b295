"""``vidllm bench footage``: how often known footage is refused, and unknown footage is not.

Clips of the made world from seeds that the statistics were not made of, encoded, scaled, cut and
framed in many ways; and footage of other kinds, made here (patterns, noise, plain colours, slides,
drawn shapes) or given in a folder with one sub-folder a kind. All are real files, read as `ask`
reads them.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from vidllm.cli.tables import table
from vidllm.errors import InputError, VidllmError
from vidllm.models.native.footage import KnownFootage, clip_pixels
from vidllm.models.native.model import NativeVideoLLM
from vidllm.stage.files import clip_scene, one_thread
from vidllm.stage.render import VIDEO_SIZE, render_tracks, to_uint8
from vidllm.stage.scenes import USUAL
from vidllm.stage.tracks import tracks
from vidllm.stage.training.settings import plan_of
from vidllm.video import load_video

if TYPE_CHECKING:
    from rich.table import Table

    from vidllm.ask.video_llm import VideoLLM
    from vidllm.stage.scenes import Scene

#: Frames of a made clip, and how many a cut one has, in a row at the scene's own rate.
FRAMES, RATE = 12, 10
_READ = 64  # frames of a file, as the shipped model reads them
_SPLITS = ("train", "test", "test-unseen", "long")
_PARTS = 8  # of a given file, beside the whole
_PART_SECONDS = 4.0
_PATTERNS = ("testsrc", "testsrc2", "smptebars", "smptehdbars", "pal75bars", "rgbtestsrc",
             "yuvtestsrc", "mandelbrot", "life=s=320x240", "cellauto", "sierpinski",
             "gradients=s=320x240")  # fmt: skip
_COLOURS = ((0, 0, 0), (255, 255, 255), (128, 128, 128), (60, 70, 50), (20, 30, 90), (200, 30, 30))


@dataclass(frozen=True)
class Treatment:
    """What is done to a clip's frames on their way into a file.

    Attributes:
        size: width and height of the file. bars: rows above and below, columns left and right, in
            pixels of the 128. frames: so many only. rate: of the file, in frames a second.
        row: frames in a row at the scene's rate instead of over all of it.
    """

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "20", "preset": "veryfast"})
    size: tuple[int, int] = (VIDEO_SIZE, VIDEO_SIZE)
    bars: tuple[int, int] = (0, 0)
    frames: int = FRAMES
    rate: int = RATE
    row: bool = False


_HARD = {"crf": "35", "preset": "veryfast"}
_QUANTIZER_8 = {"qmin": "8", "qmax": "8"}  # `qscale` is of FFmpeg's program, not of the encoder
_VP9 = {"crf": "40", "b": "0", "cpu-used": "8", "deadline": "realtime"}
#: What is done to clips of the made world.
TREATMENTS: dict[str, Treatment] = {
    "as it is": Treatment(),
    "in a row": Treatment(row=True),
    "crf 35": Treatment(options=_HARD),
    "mpeg4": Treatment("mpeg4", _QUANTIZER_8),
    "vp9": Treatment("libvpx-vp9", _VP9),
    "64 x 64": Treatment(size=(64, 64)),
    "640 x 640": Treatment(size=(640, 640)),
    "320 x 180": Treatment(size=(320, 180)),
    "90 x 160, crf 35": Treatment(size=(90, 160), options=_HARD),
    "letterbox": Treatment(bars=(28, 0)),
    "pillarbox, mpeg4": Treatment("mpeg4", _QUANTIZER_8, bars=(0, 50)),
    "60 fps": Treatment(rate=60),
    "1 frame": Treatment(frames=1),
    "2 to 8 frames": Treatment(frames=5, row=True),
}


def bench_footage(
    llm: VideoLLM,
    *,
    clips: int = 9,
    seed: int = 9,
    other: Path | None = None,
    jobs: int = 1,
    save: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Score known and unknown footage.

    Args:
        llm: a model that carries statistics. clips: of every split and treatment, and of every
            version of the made world that the model was trained on.
        seed: of the benchmark whose clips are taken. other: a folder with a sub-folder a kind.
        jobs: processes. save: called with the rows so far.

    Returns:
        Rows: footage ("made world" or "other"), version, kind, treatment, clips, how many are
        refused, how many of that are wrong, lowest and highest score, threshold, and which are
        wrong.

    Raises:
        InputError: a model without statistics, or a folder that is none.
    """
    if llm.footage is not None and not isinstance(llm.model, NativeVideoLLM):
        raise InputError("a head knows what the model under it knows: measure that one")
    if llm.footage is None:
        raise InputError("this model carries no statistics of its footage: see docs/footage.md")
    if other is not None and not other.is_dir():
        raise InputError(f"--other {other} is no folder")
    rows: list[dict[str, Any]] = []
    versions = sorted(set(plan_of(llm.model.config.vision).versions))
    plan = [(v, split, name) for v in versions for split in _SPLITS for name in TREATMENTS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        own = deepcopy(llm.model.vision)  # pickled while the model's own is at work
        work = partial(_known_scores, llm.footage, own, seed, clips)
        known = pool.map(work, plan)
        others = _other_scores(llm, other)  # meanwhile
        for (version, split, name), scores in zip(plan, known, strict=True):
            named = {f"{split} {number}": score for number, score in enumerate(scores)}
            rows.append(_row(llm, "made world", str(version), split, name, named))
            save(rows)
    rows += [_row(llm, "other", "", kind, "", scores) for kind, scores in others.items()]
    save(rows)
    return rows


def footage_table(rows: list[dict[str, Any]]) -> Table:
    """The rows for people."""
    names = ("footage", "version", "kind", "treatment", "clips", "refused", "wrong")
    found = [
        [*(row[name] for name in names), f"{row['lowest']:.2f} – {row['highest']:.2f}"]
        for row in rows
    ]
    return table(found, left=(*names, "scores"), title="Footage that is refused")


def _row(
    llm: VideoLLM,
    footage: str,
    version: str,
    kind: str,
    treatment: str,
    scores: dict[str, float],
) -> dict[str, Any]:
    assert llm.footage is not None
    most = llm.footage.card.threshold
    refused = [name for name, score in scores.items() if score > most]
    wrong = refused if footage == "made world" else [n for n in scores if n not in refused]
    return {
        "footage": footage, "version": version, "kind": kind, "treatment": treatment,
        "clips": len(scores), "refused": len(refused), "wrong": len(wrong),
        "lowest": round(min(scores.values()), 2),
        "highest": round(max(scores.values()), 2), "threshold": most,
        "which are wrong": "; ".join(f"{name} ({scores[name]:.2f})" for name in wrong),
    }  # fmt: skip


def _other_scores(llm: VideoLLM, given: Path | None) -> dict[str, dict[str, float]]:
    """Scores of all other footage by kind and name."""
    assert llm.footage is not None
    found: dict[str, dict[str, float]] = defaultdict(dict)
    with one_thread(), tempfile.TemporaryDirectory() as made:
        home = Path(made)
        for kind, file, span in _others(home, given):
            with suppress(VidllmError):  # no video, or a pattern that this FFmpeg lacks
                own = str(len(found[kind])) if file.parent == home else file.stem
                at = "" if span[0] is None else f" from {span[0]:.0f} s"
                found[kind][own + at] = _score(llm.footage, llm.model.vision, file, *span)
    return {kind: scores for kind, scores in found.items() if scores}


def _known_scores(
    footage: KnownFootage, vision: nn.Module, seed: int, clips: int, what: tuple[int, str, str]
) -> list[float]:
    """Scores of so many clips of a version and split, all of one treatment. Runs apart."""
    version, split, name = what
    with one_thread(), tempfile.TemporaryDirectory() as made:
        files = (
            _known(Path(made), split, seed, number, TREATMENTS[name], version)
            for number in range(clips)
        )
        return [_score(footage, vision, file) for file in files]


def _score(
    footage: KnownFootage,
    vision: nn.Module,
    file: Path,
    start: float | None = None,
    end: float | None = None,
) -> float:
    clip = load_video(file, frames=_READ, start=start, end=end)
    return footage.score(vision, clip_pixels(clip, int(cast(Any, vision).image_size)))


def _known(
    home: Path, split: str, seed: int, number: int, how: Treatment, version: int = USUAL
) -> Path:
    scene = clip_scene(split, seed, number, version)
    count = how.frames
    rng = np.random.default_rng([29, seed, number])
    if how.row:
        count = min(count, scene.frame_count)
        count = count if how.frames == FRAMES else int(rng.integers(2, 9))
        seconds = (rng.integers(max(1, scene.frame_count - count)) + np.arange(count)) / scene.fps
    else:
        seconds = (np.arange(count) + 0.5) * scene.duration / count
    frames = _painted(scene, seconds, number)
    up, side = how.bars
    frames = np.pad(frames, ((0, 0), (up, up), (side, side), (0, 0)))
    size = how.size if how.bars == (0, 0) else None
    ending = ".webm" if "vp9" in how.codec else ".mp4"
    return write_frames(home / f"known{ending}", frames, how.codec, how.options, how.rate, size)


def _painted(scene: Scene, seconds: np.ndarray, seed: int) -> np.ndarray:
    """Frames (F, 128, 128, 3) uint8 of a scene at some seconds."""
    grain = torch.Generator().manual_seed(seed)
    return to_uint8(render_tracks(tracks(scene, seconds), generator=grain)).numpy()


def write_frames(
    file: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rate: int = RATE,
    size: tuple[int, int] | None = None,
) -> Path:
    """Encode (F, H, W, 3) uint8 frames, scaled to (width, height) where a size is given."""
    import av

    width, height = size or (frames.shape[2], frames.shape[1])
    with av.open(str(file), "w") as out:
        stream: Any = out.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"threads": "1", **(options or {"crf": "20", "preset": "veryfast"})}
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(width=width, height=height, format="yuv420p")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file


Span = tuple[float | None, float | None]


def _others(home: Path, given: Path | None) -> Iterator[tuple[str, Path, Span]]:
    """Kind, file and range of everything that is not of the made world."""
    whole: Span = (None, None)
    file = home / "other.mp4"
    for number in range(8):
        yield "noise", write_frames(file, noise(number)), whole
        yield "slides", write_frames(file, slides(number)), whole
        yield "numbered cells", write_frames(file, cells(number)), whole
    for number, colour in enumerate(_COLOURS):
        yield "plain colour", write_frames(file, plain(colour)), whole
        yield "plain colour with grain", write_frames(file, plain(colour, 9, number)), whole
    for number in range(24):
        yield "drawn shapes", write_frames(file, shapes(number)), whole
    for number in range(12):
        yield "plots", write_frames(file, plots(number)), whole
        yield "slides of symbols", write_frames(file, symbols(number)), whole
    for pattern in _PATTERNS:
        if (frames := _pattern(pattern)) is not None:
            yield "test patterns", write_frames(file, frames), whole
    for folder in sorted(p for p in given.iterdir() if p.is_dir()) if given else ():
        for video in sorted(p for p in folder.iterdir() if p.is_file()):
            yield folder.name, video, whole
            with suppress(VidllmError):
                length = load_video(video, frames=1).duration
                parts = min(_PARTS, int(length // _PART_SECONDS))
                for start in np.linspace(0, length - _PART_SECONDS, parts) if parts > 1 else ():
                    yield folder.name, video, (float(start), float(start) + _PART_SECONDS)


def noise(seed: int) -> np.ndarray:
    """Random pixels, grey or coloured."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, (FRAMES, 128, 160, 1 + 2 * (seed % 2)), dtype=np.uint8)
    return np.broadcast_to(made, (FRAMES, 128, 160, 3))


def plain(colour: tuple[int, int, int], grain: float = 0.0, seed: int = 0) -> np.ndarray:
    """One colour, with grain of so many levels."""
    rng = np.random.default_rng(seed)
    frames = np.broadcast_to(np.asarray(colour, np.float64), (FRAMES, 120, 160, 3))
    return np.clip(frames + rng.normal(0, grain, (FRAMES, 120, 160, 1)), 0, 255).astype(np.uint8)


def cells(seed: int) -> np.ndarray:
    """A board of black and white cells that change."""
    rng = np.random.default_rng(seed)
    board = rng.integers(0, 2, (FRAMES, 3 + seed, 4 + seed, 1)) * 215 + 20
    return np.repeat(np.repeat(np.repeat(board, 24, 1), 24, 2), 3, 3).astype(np.uint8)


def slides(seed: int) -> np.ndarray:
    """Pages of text, light or dark."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    dark = seed % 2 == 1
    ground = tuple(int(v) for v in rng.integers(*((10, 80) if dark else (215, 256)), 3))
    ink = (235, 235, 235) if dark else (20, 20, 20)
    pages = []
    for page in range(4):
        image = Image.new("RGB", (640, 360), ground)
        pen = ImageDraw.Draw(image)
        pen.text((30, 20), f"Chapter {seed}.{page}", font=ImageFont.load_default(36), fill=ink)
        for line in range(6):
            words = " ".join(f"word{n}" for n in rng.integers(0, 99, 7))
            pen.text((40, 90 + 40 * line), f"- {words}", font=ImageFont.load_default(18), fill=ink)
        pages += [np.asarray(image)] * (FRAMES // 4)
    return np.stack(pages)


def plots(seed: int) -> np.ndarray:
    """A curve of coloured lines that grows on light or dark ground, with axes."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng([31, seed])
    dark = seed % 2 == 1
    ground, ink = ((24, 26, 32), (200, 200, 200)) if dark else ((255, 255, 255), (40, 40, 40))
    lines = 90 + rng.normal(0, 8, (3, 12 * FRAMES)).cumsum(1)
    colours = [tuple(int(v) for v in rng.integers(30, 230, 3)) for _ in lines]
    frames, face = [], ImageFont.load_default(10)
    for t in range(FRAMES):
        image = Image.new("RGB", (320, 180), ground)
        pen = ImageDraw.Draw(image)
        pen.line([(30, 10), (30, 160), (310, 160)], fill=ink)
        for tick in range(5):
            pen.text((5, 150 - 35 * tick), str(25 * tick), font=face, fill=ink)
        for line, colour in zip(lines, colours, strict=True):
            seen = line[: 12 * (t + 1)]
            points = [(30 + 280 * i / (12 * FRAMES), float(v)) for i, v in enumerate(seen)]
            pen.line(points, fill=colour, width=2)
        frames.append(np.asarray(image))
    return np.stack(frames)


def symbols(seed: int) -> np.ndarray:
    """Slides of symbols and words of DejaVu Sans on plain ground, light or dark."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng([37, seed])
    low, high = ((10, 80), (170, 256)) if seed % 2 else ((200, 256), (0, 110))
    ground = tuple(int(v) for v in rng.integers(*low, 3))
    face = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    small, large = (ImageFont.truetype(face, size) for size in (18, 72))
    signs = list("☀☃☕☘☢☯☮♠♨♻⚖⚙⚡⚽✂✌✎✓✖❄❤➜★♥♣♦☁☂☎✈✉♫⚓")
    pages = []
    for _ in range(4):
        image = Image.new("RGB", (640, 360), ground)
        pen = ImageDraw.Draw(image)
        for place, sign in enumerate(rng.choice(signs, 3, replace=False)):
            ink = tuple(int(v) for v in rng.integers(*high, 3))
            pen.text((60 + 200 * place, 90), str(sign), font=large, fill=ink)
            pen.text((60 + 200 * place, 220), f"item {place + 1}", font=small, fill=ink)
        pages += [np.asarray(image)] * (FRAMES // 4)
    return np.stack(pages)


def shapes(seed: int) -> np.ndarray:
    """A simple cartoon: shapes of one colour that move over plain ground."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    ground = tuple(int(v) for v in rng.integers(0, 256, 3))
    count = int(rng.integers(2, 7))
    colours, kinds = rng.integers(0, 256, (count, 3)), rng.integers(0, 3, count)
    ranges = ((0.1, 0.6), (0.0, 7.0), (14.0, 44.0))
    speed, phase, half = (rng.uniform(low, high, (count, 2)) for low, high in ranges)
    frames = []
    for t in range(FRAMES):
        image = Image.new("RGB", (320, 240), ground)
        pen = ImageDraw.Draw(image)
        for i in range(count):
            x, y = (160 + 130 * math.sin(t * speed[i, 0] + phase[i, 0]),
                    120 + 90 * math.sin(t * speed[i, 1] + phase[i, 1]))  # fmt: skip
            r, fill = half[i, 0], tuple(map(int, colours[i]))
            if kinds[i] == 0:
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            elif kinds[i] == 1:
                pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
            else:
                pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
        frames.append(np.asarray(image))
    return np.stack(frames)


def _pattern(source: str) -> np.ndarray | None:
    """Frames of one of FFmpeg's sources; None where this build lacks it."""
    import av

    try:
        with av.open(source, format="lavfi") as opened:
            frames = []
            for number, frame in enumerate(opened.decode(video=0)):
                if number % 3 == 0:
                    small = frame.reformat(width=320, height=240, format="rgb24")
                    frames.append(small.to_ndarray())
                if len(frames) == FRAMES:
                    break
    except (av.FFmpegError, ValueError):
        return None
    return np.stack(frames)
