"""Files that were joined byte by byte from files of different formats, codings and sizes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from videos import numbers_in, write_video

from vidllm.video import load_video

FORMATS = {
    "a.ts": {}, "b.mp4": {}, "c.mpg": {"codec": "mpeg2video"}, "d.mkv": {},
    "e.avi": {"codec": "mpeg4"}, "f.flv": {}, "g.gif": {"codec": "gif", "pixels": "rgb8"},
    "h.wmv": {"codec": "wmv2"}, "i.apng": {"codec": "apng", "pixels": "rgb24"},
    "j.ivf": {"codec": "libvpx"}, "k.nut": {}, "l.mxf": {"codec": "mpeg2video"},
    "m.m2ts": {}, "n.webm": {"codec": "libvpx", "container_options": {"live": "1"}},
}  # fmt: skip
COUNT = 12


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    made = [write_video(folder / name, COUNT, **given) for name, given in FORMATS.items()]
    made.append(folder / "o.ogv")
    ogg = ["ffmpeg", "-v", "error", "-i", made[3], "-c:v", "libtheora", "-q:v", "8", made[-1]]
    subprocess.run(list(map(str, ogg)), check=True)
    return made


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("step", [1, -1, 2, -2, 4])
def test_each_format_may_follow_another(step: int, parts: list[Path], tmp_path: Path) -> None:
    order = [parts[step * n % len(parts)] for n in range(len(parts))]
    clip = load_video(joined(tmp_path / "all", *order), frames=1000)
    assert numbers_in(clip.frames) == list(range(COUNT)) * len(parts)
    assert np.abs(clip.seconds - np.arange(COUNT * len(parts)) / 30).max() < 0.05
    assert len(clip.notes) == 1 and "starts anew" in clip.notes[0]


def test_nothing_is_taken_for_a_join_within_a_file(parts: list[Path]) -> None:
    for part in parts:
        assert load_video(part).notes == ()


def test_what_follows_a_stretch_of_no_format_is_read(parts: list[Path], tmp_path: Path) -> None:
    gap = tmp_path / "gap"
    gap.write_bytes(np.random.default_rng(0).bytes(9_000))
    mpg = next(part for part in parts if part.suffix == ".mpg")
    clip = load_video(joined(tmp_path / "two.mpg", mpg, gap, mpg), frames=100)
    assert numbers_in(clip.frames)[-COUNT:] == list(range(COUNT))


@pytest.mark.parametrize("codec", ["libx265", "mpeg2video"])
def test_a_transport_stream_may_go_on_in_another_coding(codec: str, tmp_path: Path) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    first = write_video(tmp_path / "first.ts", 30)
    other = write_video(tmp_path / "other.ts", 30, codec=codec, options=options)
    clip = load_video(joined(tmp_path / "both.ts", first, other), frames=100)
    assert numbers_in(clip.frames) == [*range(30), *range(30)]
    assert clip.duration == pytest.approx(2.0, abs=1e-3) and len(clip.notes) == 1


@pytest.mark.parametrize("kind", ["ts", "mpg"])
def test_another_size_is_told(kind: str, tmp_path: Path) -> None:
    codec = "mpeg2video" if kind == "mpg" else "libx264"
    first = write_video(tmp_path / f"first.{kind}", 30, codec=codec)
    other = write_video(tmp_path / f"other.{kind}", 30, codec=codec, size=(192, 112))
    clip = load_video(joined(tmp_path / f"both.{kind}", first, other), frames=100)
    assert numbers_in(clip.frames) == [*range(30), *range(30)]
    assert len(clip.notes) == 2 and "different sizes" in clip.notes[1]
