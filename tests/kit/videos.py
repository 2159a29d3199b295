"""Makers of real video files for tests: every frame carries its own number, readable again.

The number is drawn as 12 black or white cells (4 across, 3 down, lowest bit first), so that it
survives lossy coding, and the picture can be checked for being upright: a red stripe runs along
its top and a blue one along its left edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ROWS, COLUMNS = 3, 4


def picture(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """(H, W, 3) uint8 RGB picture that shows ``number`` (0 to 4095)."""
    frame = np.full((height, width, 3), 127, dtype=np.uint8)
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        top, left = _edge(row, ROWS, height), _edge(column, COLUMNS, width)
        bottom, right = _edge(row + 1, ROWS, height), _edge(column + 1, COLUMNS, width)
        frame[top:bottom, left:right] = 235 if number >> bit & 1 else 20
    frame[:, : width // 8] = (20, 20, 220)
    frame[: height // 8] = (220, 20, 20)
    return frame


def number_in(frame: np.ndarray) -> int:
    """The number drawn in a picture of any size."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        top, left = _edge(row, ROWS, height), _edge(column, COLUMNS, width)
        bottom, right = _edge(row + 1, ROWS, height), _edge(column + 1, COLUMNS, width)
        inset_y, inset_x = (bottom - top) // 4, (right - left) // 4
        cell = frame[top + inset_y : bottom - inset_y, left + inset_x : right - inset_x]
        number |= int(cell.mean() > 127) << bit
    return number


def numbers_in(frames: np.ndarray) -> list[int]:
    """The numbers drawn in (T, H, W, 3) pictures."""
    return [number_in(frame) for frame in frames]


def is_upright(frame: np.ndarray) -> bool:
    """Whether red is on top and blue on the left."""
    height, width = frame.shape[:2]
    top = frame[: height // 12, width // 4 :].mean((0, 1))
    left = frame[height // 4 :, : width // 12].mean((0, 1))
    return bool(top[0] > 150 > top[2] and left[2] > 150 > left[0])


def _edge(part: int, parts: int, length: int) -> int:
    """Cells fill what the two stripes (an eighth each) leave."""
    return length // 8 + part * (length - length // 8) // parts


def write_video(
    path: Path,
    count: int = 90,
    *,
    fps: int = 30,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (128, 96),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 30,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    audio: bool = False,
    first: float = 0.0,
    noise: float = 0.0,
) -> Path:
    """Encode ``count`` numbered frames.

    ``times`` gives each frame's seconds (variable frame rate, in milliseconds); ``first`` shifts
    all of the video against the audio, which starts at 0; ``size`` is (width, height); ``noise``
    makes packets as large as those of filmed pictures.
    """
    with av.open(str(path), "w", container_options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = gop
        stream.options = {"threads": "1", **(options or {})}
        shift = round(first * fps)
        base = Fraction(1, fps)
        if times is not None:
            base, count, shift = Fraction(1, 1000), len(times), round(first * 1000)
            stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        sound = out.add_stream("aac" if path.suffix != ".webm" else "libopus") if audio else None
        if sound is not None:
            length = (times[-1] if times is not None else count / fps) + first
            _write_sound(out, sound, length)
        for number in range(count):
            shown = picture(number, *(size if rotation % 180 == 0 else size[::-1]))
            if noise:
                grain = np.random.default_rng(number).normal(0, noise, shown.shape)
                shown = np.clip(shown + grain, 0, 255).astype(np.uint8)
            coded = np.ascontiguousarray(np.rot90(shown, -(rotation // 90)))
            frame = av.VideoFrame.from_ndarray(coded, format="rgb24")
            frame.pts = shift + (number if times is None else round(times[number] * 1000))
            frame.time_base = base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as out:
        _write_sound(out, out.add_stream("aac"), seconds)
    return path


def _write_sound(out, stream, seconds: float) -> None:  # type: ignore[no-untyped-def]
    rate, step = 48000, 960
    stream.codec_context.sample_rate = rate
    stream.codec_context.layout = "mono"
    for start in range(0, int(seconds * rate), step):
        wave = 0.2 * np.sin(2 * np.pi * 440 / rate * np.arange(start, start + step))
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def remux(
    source: Path,
    target: Path,
    *,
    drop_pts: bool = False,
    shift: float = 0.0,
    skip: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Copy packets without encoding: move them by ``shift`` seconds, leave out the first few."""
    with (
        av.open(str(source)) as given,
        av.open(str(target), "w", container_options=container_options or {}) as out,
    ):
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        move = round(shift / stream.time_base)
        for number, packet in enumerate(given.demux(stream)):
            if packet.dts is None or number < skip:
                continue
            packet.dts += move
            packet.pts = None if drop_pts else packet.pts + move
            packet.stream = copy
            out.mux(packet)
    return target


def cut_file(source: Path, target: Path, share: float = 0.6) -> Path:
    """The first part of a file's bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def damage_file(source: Path, target: Path, at: float = 0.5, size: int = 1500) -> Path:
    """The file with ``size`` bytes in the middle overwritten by noise."""
    data = bytearray(source.read_bytes())
    place = int(len(data) * at)
    data[place : place + size] = np.random.default_rng(0).bytes(size)
    target.write_bytes(bytes(data))
    return target


def overwrite(source: Path, target: Path, marker: bytes, offset: int, value: bytes) -> Path:
    """The file with ``value`` written ``offset`` bytes after the first ``marker``."""
    data = bytearray(source.read_bytes())
    place = data.index(marker) + offset
    data[place : place + len(value)] = value
    target.write_bytes(bytes(data))
    return target


def bad_inputs(folder: Path) -> dict[str, Path]:
    """One of each input that must be refused with one clear line."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "these are notes and not a video\n" * 50
    named_so, notes = folder / "notes.mp4", folder / "notes.txt"
    named_so.write_text(text)
    notes.write_text(text)
    empty, directory = folder / "empty.mp4", folder / "folder.mp4"
    empty.write_bytes(b"")
    directory.mkdir(exist_ok=True)
    playlist = folder / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n")
    whole = write_video(folder / "whole.mp4", 10)
    return {
        "text named mp4": named_so,
        "text": notes,
        "playlist": playlist,
        "audio only": write_sound(folder / "sound.m4a"),
        "empty": empty,
        "missing": folder / "missing.mp4",
        "folder": directory,
        "no header": cut_file(whole, folder / "headless.mp4", 0.5),
    }
