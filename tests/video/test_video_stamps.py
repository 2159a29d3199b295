"""Times that go back, wrap or are wrong once; pauses; edits; headers that promise too much."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import damage_file, is_upright, numbers_in, overwrite, picture, write_video

from vidllm.errors import InputError
from vidllm.video import load_video

B_FRAMES = {"x264-params": "bframes=3:keyint=30:scenecut=0"}
CLOCK = 1 << 33


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stamps")


def with_times(source: Path, target: Path, change: Callable[[int, int], int]) -> Path:
    """A transport stream with other times: ``change`` gets a picture's number and a time."""
    data, number = bytearray(source.read_bytes()), 0
    for at in range(0, len(data), 188):
        begin = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
        if not data[at + 1] & 0x40 or data[begin : begin + 3] != b"\0\0\1":
            continue
        for place in [begin + 9, begin + 14][: {2: 1, 3: 2}.get(data[begin + 7] >> 6, 0)]:
            a, b, c, d, e = data[place : place + 5]
            old = (a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1
            new = change(number, old) % CLOCK
            data[place : place + 5] = (
                a & 0xF1 | new >> 30 << 1, new >> 22 & 255, new >> 14 & 254 | 1, new >> 7 & 255,
                new << 1 & 254 | 1,
            )  # fmt: skip
        number += 1
    target.write_bytes(data)
    return target


@pytest.fixture(scope="module", params=[{"bf": "0"}, B_FRAMES], ids=["plain", "b-frames"])
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    return write_video(folder / "stream.ts", 120, options=request.param)


def whole(path: Path) -> tuple[str, ...]:
    """The notes on a file that must hold 120 frames at 30 frames a second in their order."""
    clip = load_video(path, frames=200)
    assert numbers_in(clip.frames) == list(range(120))
    assert np.abs(clip.seconds - np.arange(120) / 30).max() < 1e-3
    assert clip.duration == pytest.approx(4.0, abs=1e-3)
    return clip.notes


@pytest.mark.parametrize("at", [60, 70])
@pytest.mark.parametrize("back", [0.2, 1.0, 3.0])
def test_a_stream_whose_clock_is_set_back_goes_on(
    back: float, at: int, stream: Path, tmp_path: Path
) -> None:
    ticks = round(back * 90_000)
    path = with_times(stream, tmp_path / "back.ts", lambda n, t: t - ticks if n >= at else t)
    (note,) = whole(path)
    assert "starts anew" in note


@pytest.mark.parametrize("by", [-3.0, 3.0])
def test_one_wrong_time_moves_nothing_else(by: float, stream: Path, tmp_path: Path) -> None:
    ticks = round(by * 90_000)
    path = with_times(stream, tmp_path / "one.ts", lambda n, t: t + ticks if n == 50 else t)
    (note,) = whole(path)
    assert "1 of the frames are out of order" in note


def test_a_clock_that_wraps_around_goes_on(stream: Path, tmp_path: Path) -> None:
    path = with_times(stream, tmp_path / "wrap.ts", lambda n, t: t + CLOCK - 180_000)
    assert whole(path) == ()


@pytest.mark.parametrize("suffix", ["wmv", "nut", "mov", "mkv", "ts"])
def test_long_pauses_are_no_damage(suffix: str, folder: Path) -> None:
    times = [0, 0.1, 0.2, 30, 30.1, 100, 1000, 1000.04, 1000.08, 2000]
    codec = "wmv2" if suffix == "wmv" else "libx264"
    clip = load_video(write_video(folder / f"pauses.{suffix}", times=times, codec=codec))
    assert numbers_in(clip.frames) == list(range(10)) and clip.notes == ()
    assert np.abs(clip.seconds - times).max() < 2e-3


@pytest.mark.parametrize("at", [0.25, 0.5, 0.7])
def test_a_damaged_asf_file_lacks_frames_and_says_so(at: float, folder: Path) -> None:
    source = folder / "whole.wmv"
    if not source.exists():
        write_video(source, 240, codec="wmv2", noise=12)
    path = damage_file(source, folder / "damaged.wmv", at, 1200)
    clip = load_video(path, frames=240)
    assert numbers_in(clip.frames) == np.round(clip.seconds * 30).astype(int).tolist()
    assert len(clip) < 240 and any("could not be read" in note for note in clip.notes)


def test_a_cut_asf_file_says_so(folder: Path) -> None:
    source = write_video(folder / "to-cut.wmv", 90, codec="wmv2", noise=12)
    path = folder / "cut.wmv"
    path.write_bytes(source.read_bytes()[: source.stat().st_size * 3 // 5])
    assert any("cut off" in note for note in load_video(path).notes)


def edited(source: Path, target: Path, *edits: tuple[float, float]) -> Path:
    """An MP4 file with other edits: seconds that each lasts, and from which on (-1: nothing)."""
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") - 4
    entries = [
        (round(lasts * 1000), -1 if begin < 0 else 1024 + round(begin * 15360), 1 << 16)
        for lasts, begin in edits
    ]
    box = struct.pack(">II", 0, len(entries)) + b"".join(struct.pack(">IiI", *e) for e in entries)
    box = struct.pack(">I", len(box) + 8) + b"elst" + box
    grown = len(box) - int.from_bytes(data[at : at + 4], "big")
    data[at : len(box) + at - grown] = box
    for name in (b"edts", b"trak", b"moov"):  # the index stands last: no chunk moves
        place = data.index(name) - 4
        size = int.from_bytes(data[place : place + 4], "big")
        data[place : place + 4] = struct.pack(">I", size + grown)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("edits", "numbers"),
    [
        ([(1.5, -1), (2.0, 0)], range(60)),  # shown late: the first frame is at 0
        ([(1.0, 0.5)], range(15, 45)),
        ([(1.0, 0)], range(30)),
        ([(0.5, 0), (0.5, 1.0)], [*range(15), *range(30, 45)]),
        ([(0.5, 1.0), (0.5, 0)], [*range(30, 45), *range(15)]),
        ([(1.0, 0), (1.0, 0)], [*range(30), *range(30)]),
        ([(200.0, 0)], range(60)),
    ],
)
def test_edits_are_made(edits: list[tuple[float, float]], numbers: list[int], folder: Path) -> None:
    source = folder / "to-edit.mp4"
    if not source.exists():
        write_video(source, 60, options=B_FRAMES)
    clip = load_video(edited(source, folder / "edited.mp4", *edits), frames=200)
    assert numbers_in(clip.frames) == list(numbers) and clip.notes == ()
    assert np.abs(clip.seconds - np.arange(len(clip)) / 30).max() < 1e-3


def test_a_fragment_that_is_told_of_but_not_there_is_missed(folder: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    source = folder / "parts.mp4"
    data = write_video(source, 120, options=B_FRAMES, container_options=options).read_bytes()
    ends = [at - 4 for at in range(len(data)) if data.startswith(b"mdat", at)]
    path = folder / "part.mp4"
    path.write_bytes(data[: ends[2]])
    clip = load_video(path, frames=120)
    assert numbers_in(clip.frames) == list(range(60))
    assert clip.duration == pytest.approx(3.0, abs=1e-3)
    assert any("cut off after 2.0 of 3.0" in note for note in clip.notes)


@pytest.mark.parametrize("seconds", [1e9, 1e300, float("inf"), float("nan"), -5.0])
def test_a_length_that_cannot_be_is_not_believed(seconds: float, folder: Path) -> None:
    source = folder / "short.mkv"
    if not source.exists():
        write_video(source, 10)
    value = struct.pack(">d", seconds * 1000)
    clip = load_video(overwrite(source, folder / "long.mkv", b"\x44\x89\x88", 3, value))
    assert len(clip) == 10 and clip.duration < 1


@pytest.mark.parametrize("codec", ["libvpx", "mjpeg", "ffv1"])
def test_a_size_that_cannot_be_is_not_believed(codec: str, folder: Path) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = write_video(folder / f"{codec}.mkv", 5, codec=codec, pixels=pixels, size=(640, 480))
    size = b"\xb0\x82\x02\x80\xba\x82\x01\xe0"
    path = overwrite(source, folder / "huge.mkv", size, 2, b"\xea\x60\xba\x82\xea\x60")
    if codec == "ffv1":  # its pictures do not tell their size themselves
        with pytest.raises(InputError, match="does not tell its pictures' size"):
            load_video(path)
    else:
        clip = load_video(path)
        assert (clip.width, clip.height) == (640, 480) and len(clip) == 5


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (6, 1), (3, 2), (8, 3)])
def test_pictures_with_exif_data_are_turned(
    orientation: int, turn: int, suffix: str, folder: Path
) -> None:
    exif, path = Image.Exif(), folder / f"still.{suffix}"
    exif[0x112] = orientation
    Image.fromarray(np.rot90(picture(9), turn)).save(path, exif=exif)
    clip = load_video(path)
    assert (clip.width, clip.height) == (128, 96)
    assert numbers_in(clip.frames) == [9] and is_upright(clip.frames[0])


DELAYS = [100, 500, 20, 1000, 300, 2000]


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_delays_of_animated_pictures(suffix: str, folder: Path) -> None:
    first, *others = [Image.fromarray(picture(number)) for number in range(6)]
    path = folder / f"delays.{suffix}"
    first.save(path, save_all=True, append_images=others, duration=DELAYS)
    clip = load_video(path)
    assert numbers_in(clip.frames) == list(range(6)) and clip.notes == ()
    assert clip.seconds.tolist() == pytest.approx([0, 0.1, 0.6, 0.62, 1.62, 1.92])
    assert clip.duration == pytest.approx(3.92)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparency_is_told(codec: str, folder: Path) -> None:
    path = folder / f"{codec}-alpha.webm"
    source = "color=red@0.3:size=64x48:rate=10:duration=1,format=yuva420p"
    made = ["-c:v", codec, "-auto-alt-ref", "0", "-pix_fmt", "yuva420p", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *made], check=True)
    clip = load_video(path)
    red, green, blue = clip.frames[0].reshape(-1, 3).mean(0)
    assert len(clip) == 10 and red > 245 and green < 10 and blue < 10
    assert len(clip.notes) == 1 and "transparency" in clip.notes[0]


@pytest.mark.parametrize("kind", ["mp3", "m4a", "flac"])
def test_sound_with_a_cover_is_no_video(kind: str, folder: Path) -> None:
    cover, path = folder / "cover.jpg", folder / f"covered.{kind}"
    Image.fromarray(picture(1)).save(cover)
    inputs = ["-f", "lavfi", "-i", "sine=duration=1", "-i", cover, "-map", "0", "-map", "1"]
    made = ["-c:v", "copy", "-disposition:v", "attached_pic", path]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, inputs + made)], check=True)
    with pytest.raises(InputError, match="no video stream"):
        load_video(path)


@pytest.mark.parametrize(("angle", "turned"), [(1, False), (45, True), (100, True), (300, True)])
def test_odd_angles_are_turned_by_the_nearest_quarter(
    angle: int, turned: bool, folder: Path
) -> None:
    source = folder / "to-turn.mp4"
    if not source.exists():
        write_video(source, 3)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    values = [round(v * 65536) for v in (cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 14)]
    path = overwrite(source, folder / "turned.mp4", b"tkhd", 44, struct.pack(">9i", *values))
    clip = load_video(path)
    plain = load_video(source)
    assert np.array_equal(clip.frames, np.rot90(plain.frames, -round(angle / 90), (1, 2)))
    assert any("nearest quarter" in note for note in clip.notes) == turned


def test_a_still_of_an_unknown_rate_lasts_a_moment(folder: Path) -> None:
    clip = load_video(write_video(folder / "one.wmv", 1, codec="wmv2"))
    assert len(clip) == 1 and clip.duration == pytest.approx(1 / 25)


def test_frames_before_the_first_key_frame_of_a_join_are_told_of(folder: Path) -> None:
    """A program stream that was cut within a group of pictures before it was joined on."""
    source = write_video(folder / "whole.mpg", 60, codec="mpeg2video", gop=30)
    with av.open(str(source)) as given, av.open(str(folder / "late.mpg"), "w") as out:
        copy = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(p for p in given.demux(video=0) if p.size):
            if number >= 20:
                packet.stream = copy
                out.mux(packet)
    path = folder / "joined.mpg"
    path.write_bytes(source.read_bytes() + (folder / "late.mpg").read_bytes())
    clip = load_video(path, frames=200)
    assert numbers_in(clip.frames) == [*range(60), *range(30, 60)]
    assert any("10 frames behind a join have no key frame" in note for note in clip.notes)
    assert clip.duration == pytest.approx(3.0, abs=0.01)
