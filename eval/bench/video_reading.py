"""The measurement behind ``vidllm bench video``: PyAV (ours), decord and OpenCV on files made here.

Two H.264 files of the same kind, a minute and an hour long; the hour is the minute's packets sixty
times over, so that it is made in seconds. Every reader delivers the same uniformly chosen frames
as one RGB array, opening of the file included.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.cli.tables import table
from vidllm.errors import InputError
from vidllm.errors.paths import output_folder
from vidllm.video import load_video

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH, _HEIGHT, _FPS = 640, 360, 30
_HOUR_LIMIT = 3.0  # an hour may cost less than this times a minute
_DECORD_LIMIT = 1.10  # and we may cost at most this times decord


def bench_video(
    folder: str | Path | None = None,
    *,
    seconds_short: int = 60,
    seconds_long: int = 3600,
    frames: int = 32,
    runs: int = 5,
) -> dict[str, Any]:
    """Time reading ``frames`` uniform frames of a short and a long file with every reader.

    Args:
        folder: where the files are made and kept; default a folder for temporary files.
        seconds_short: length of the short file.
        seconds_long: length of the long file, a multiple of ``seconds_short``.
        frames: frames to read.
        runs: timed runs of each reader and file, in turns; the median counts.

    Returns:
        ``rows`` (one a reader and file: reader, file, seconds = median, best, same = frames equal
        to ours), ``hour_over_minute`` (ours), ``over_decord`` (the worse of the two files, None
        without decord), ``holds`` (both targets met; without decord, the first), and the settings.

    Raises:
        InputError: lengths or counts that make no sense.
    """
    if min(seconds_short, seconds_long, frames, runs) < 1 or seconds_long % seconds_short:
        raise InputError("bench: counts start at 1 and the long file is a multiple of the short")
    where = Path(folder) if folder is not None else Path(tempfile.gettempdir()) / "vidllm-bench"
    output_folder(where, "--folder").mkdir(parents=True, exist_ok=True)
    short = short_file(where, seconds_short)
    files = {"short": short, "long": long_file(short, where, seconds_short, seconds_long)}
    readers: dict[str, Callable[[Path, int], np.ndarray]] = {"pyav": _read_ours}
    if importlib.util.find_spec("decord"):
        readers["decord"] = _read_decord
    if importlib.util.find_spec("cv2"):
        readers["opencv"] = _read_opencv
    times: dict[tuple[str, str], list[float]] = {}
    same: dict[tuple[str, str], int] = {}
    for file, path in files.items():  # also warms the file cache and the imports
        wanted = _read_ours(path, frames).astype(np.int16)
        for name, read in readers.items():
            got = read(path, frames)
            same[name, file] = int((np.abs(got - wanted).mean(axis=(1, 2, 3)) < 2).sum())
    for _ in range(runs):  # in turns, so that what else the machine does meets them all
        for name, read in readers.items():
            for file, path in files.items():
                begin = time.perf_counter()
                read(path, frames)
                times.setdefault((name, file), []).append(time.perf_counter() - begin)
    median = {key: statistics.median(measured) for key, measured in times.items()}
    rows = [
        {
            "reader": name,
            "file": file,
            "seconds": round(median[name, file], 4),
            "best": round(min(measured), 4),
            "same": same[name, file],
        }
        for (name, file), measured in times.items()
    ]
    growth = median["pyav", "long"] / median["pyav", "short"]
    against = None
    if "decord" in readers:
        against = max(median["pyav", file] / median["decord", file] for file in files)
    return {
        "frames": frames,
        "seconds_short": seconds_short,
        "seconds_long": seconds_long,
        "size": [_WIDTH, _HEIGHT],
        "fps": _FPS,
        "runs": runs,
        "rows": rows,
        "hour_over_minute": round(growth, 3),
        "over_decord": None if against is None else round(against, 3),
        "holds": growth < _HOUR_LIMIT and (against is None or against <= _DECORD_LIMIT),
    }


def render_table(result: dict[str, Any]) -> Table:
    """The result of ``bench_video`` as a rich table, verdicts in the caption."""
    width, height = result["size"]
    lengths = {"short": result["seconds_short"], "long": result["seconds_long"]}
    found = [
        [
            row["reader"],
            f"{lengths[row['file']]} s",
            *(f"{row[name]:.3f}" for name in ("seconds", "best")),
            f"{row['same']} of {result['frames']}",
        ]
        for row in result["rows"]
    ]
    growth, against = result["hour_over_minute"], result["over_decord"]
    caption = f"long over short: {growth:.2f} (to stay below {_HOUR_LIMIT:g})"
    if against is not None:
        caption += f" · ours over decord, worse file: {against:.2f} (at most {_DECORD_LIMIT:.2f})"
    return table(
        found,
        left=("reader", "file"),
        right=("seconds", "best", "same frames as ours"),
        title=f"{result['frames']} uniform frames, {width}x{height} H.264, {result['fps']} fps,"
        f" median of {result['runs']}",
        caption=caption + (" · holds" if result["holds"] else " · DOES NOT HOLD"),
    )


def _read_ours(path: Path, frames: int) -> np.ndarray:
    return load_video(path, frames=frames).frames


def _read_decord(path: Path, frames: int) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0))
    batch: np.ndarray = reader.get_batch(_centres(len(reader), frames)).asnumpy()
    return batch


def _read_opencv(path: Path, frames: int) -> np.ndarray:
    import cv2

    capture = cv2.VideoCapture(str(path))
    pictures = []
    for index in _centres(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), frames):
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        read, picture = capture.read()
        black = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if read else black)
    capture.release()
    return np.stack(pictures)


def _centres(count: int, frames: int) -> list[int]:
    return [int((i + 0.5) * count / frames) for i in range(frames)]


def short_file(folder: Path, seconds: int) -> Path:
    """A slowly moving textured background, a moving square, and usual x264 settings."""
    import av

    path = folder / f"short-{seconds}s-{_WIDTH}x{_HEIGHT}.mp4"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : _HEIGHT + 64, 0 : _WIDTH + 64]
    ground = 120 + 50 * np.sin(x / 37) + 40 * np.cos(y / 23) + rng.normal(0, 8, x.shape)
    canvas = np.clip(ground, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    half = path.with_name("making-" + path.name)
    with av.open(str(half), "w") as out:
        stream = out.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.options = {"crf": "23"}
        for number in range(seconds * _FPS):
            top, left = int(32 + 31 * np.sin(number / 90)), int(32 + 31 * np.cos(number / 70))
            picture = canvas[top : top + _HEIGHT, left : left + _WIDTH].copy()
            at = 20 + abs((number * 3) % 1100 - 550)
            picture[120:180, at : at + 60] = (230, 40, 40)
            _write_number(picture, number)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return half.replace(path)


def _write_number(picture: np.ndarray, number: int) -> None:
    """The frame's number as twelve black or white cells, so that a wrong frame is seen."""
    for bit in range(12):
        picture[8:32, 8 + bit * 26 : 32 + bit * 26] = 235 if number >> bit & 1 else 20


def long_file(short: Path, folder: Path, seconds: int, total: int) -> Path:
    """The short file's packets again and again, with later times."""
    import av

    path = folder / f"long-{total}s-{_WIDTH}x{_HEIGHT}.mp4"
    if path.exists():
        return path
    half = path.with_name("making-" + path.name)
    with av.open(str(short)) as given, av.open(str(half), "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        base = stream.time_base or Fraction(1, _FPS)
        packets = [
            (bytes(p), p.pts, p.dts, p.duration, p.is_keyframe)
            for p in given.demux(stream)
            if p.pts is not None and p.dts is not None
        ]
        for part in range(total // seconds):
            shift = round(part * seconds / base)
            for data, pts, dts, duration, key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + shift, dts + shift
                packet.duration, packet.time_base = duration or 0, base
                packet.is_keyframe = key
                packet.stream = copy
                out.mux(packet)
    with suppress(FileNotFoundError):
        return half.replace(path)
    return path
