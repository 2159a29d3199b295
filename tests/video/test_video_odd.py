"""Files that are odd but not damaged: shared times, joined files, odd pixels, wrong counts."""

from __future__ import annotations

import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from videos import is_upright, numbers_in, overwrite, picture, write_video

from vidllm.errors import InputError
from vidllm.longvideo.reading import Frames
from vidllm.video import Limits, load_video

B_FRAMES = {"x264-params": "bframes=3:keyint=30:scenecut=0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd")


def restamp(source: Path, target: Path, change: Callable[[int, int], int]) -> Path:
    """Copy packets with other times: ``change`` gets a packet's number and its time."""
    with av.open(str(source)) as given, av.open(str(target), "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in given.demux(stream) if p.size):
            packet.pts = packet.dts = change(number, packet.pts)
            packet.stream = copy
            out.mux(packet)
    return target


def indexed(path: Path, fps: float = 60.0) -> tuple[list[float], float]:
    """The times that an index would hold, and its length."""
    frames = Frames(path, fps, torch.from_numpy)
    try:
        return [t for block in frames.blocks() for t in block.seconds.tolist()], frames.duration
    finally:
        frames.close()


def test_frames_that_share_a_time_are_all_read(folder: Path) -> None:
    plain = write_video(folder / "plain.webm", 90, codec="libvpx-vp9")
    times = np.round((np.arange(90) - (np.arange(90) % 10 == 9)) * 1000 / 30).astype(int)
    path = restamp(plain, folder / "tenth.webm", lambda n, t: int(times[n]))
    whole = load_video(path, frames=90)
    assert numbers_in(whole.frames) == whole.indices.tolist() == list(range(90))
    assert (np.diff(whole.seconds) >= 0).all() and (np.diff(whole.seconds) == 0).any()
    some = load_video(path, frames=16)
    assert len(some) == 16 and numbers_in(some.frames) == some.indices.tolist()
    twice = load_video(path, times=[float(whole.seconds[9])] * 2)
    assert numbers_in(twice.frames) == [9, 9]  # of equal times the last is on the screen
    assert whole.notes == some.notes == twice.notes == ()
    seconds, _ = indexed(path)
    assert set(seconds) == set(whole.seconds.tolist())


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_rate_beyond_the_file_s_clock(b_frames: int, folder: Path) -> None:
    options = {"x264-params": f"bframes={b_frames}:scenecut=0"}
    path = write_video(folder / f"fast-{b_frames}.mkv", 240, fps=2400, options=options)
    for whole in (load_video(path, frames=240), load_video(path, fps=2400)):
        assert numbers_in(whole.frames) == whole.indices.tolist() == list(range(240))
        assert whole.notes == ()
    some = load_video(path, frames=16)
    assert len(some) == 16 and numbers_in(some.frames) == some.indices.tolist()
    assert some.fps == pytest.approx(2400, rel=0.01)
    for fps, distinct in ((1000, 101), (2000, 101), (500, 51)):  # the file is 0.1004 s long
        clip = load_video(path, fps=fps)
        assert len(clip) == len(set(clip.seconds)) == distinct
        assert numbers_in(clip.frames) == clip.indices.tolist()


def test_a_rate_asks_for_all_of_a_time_only_where_there_are_no_more(folder: Path) -> None:
    """Bursts between pauses: the rate of the whole file is low, that of a burst is not."""
    plain = write_video(folder / "for-bursts.webm", 60, codec="libvpx")
    path = restamp(plain, folder / "bursts.webm", lambda n, t: round(n // 30 * 500 + n % 30 / 2.4))
    whole, some = load_video(path, fps=2400), load_video(path, fps=1000)
    assert numbers_in(whole.frames) == list(range(60))
    assert len(some) == len(set(some.seconds)) == len(set(whole.seconds)) < 30


def test_one_time_for_all_frames(folder: Path) -> None:
    plain = write_video(folder / "some.webm", 30, codec="libvpx-vp9")
    path = restamp(plain, folder / "equal.webm", lambda n, t: 0)
    clip = load_video(path, frames=8)
    assert len(clip) == 8 and numbers_in(clip.frames) == clip.indices.tolist()
    assert any("one time for all frames" in note for note in clip.notes)


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
JOINED = {
    "twice.ts": {"options": B_FRAMES},
    "twice.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "twice.mkv": {"options": B_FRAMES},
    "twice.mp4": {"options": B_FRAMES},
    "fragments.mp4": {"options": B_FRAMES, "container_options": FRAGMENTS},
    "twice.flv": {"options": B_FRAMES},
    "twice.avi": {"codec": "mpeg4"},
    "twice.wmv": {"codec": "wmv2"},
    "twice.nut": {"options": B_FRAMES},
    "twice.ivf": {"codec": "libvpx"},
    "twice.gif": {"codec": "gif", "pixels": "rgb8"},
    "twice.apng": {"codec": "apng", "pixels": "rgb24"},
}


@pytest.mark.parametrize("name", JOINED)
def test_time_goes_on_where_files_were_joined(name: str, folder: Path) -> None:
    path = write_video(folder / name, 90, **JOINED[name])
    path.write_bytes(path.read_bytes() * 2)
    whole = load_video(path, frames=1000)
    assert numbers_in(whole.frames) == [*range(90), *range(90)]
    assert np.abs(whole.seconds - np.arange(180) / 30).max() < 5e-3
    assert whole.duration == pytest.approx(6.0, abs=2e-3)
    assert len(whole.notes) == 1 and "starts anew in the file at second 3.0" in whole.notes[0]
    some = load_video(path, frames=16)
    assert some.indices.tolist() == [5, 16, 28, 39, 50, 61, 73, 84,
                                     95, 106, 118, 129, 140, 151, 163, 174]  # fmt: skip
    assert numbers_in(some.frames) == [i % 90 for i in some.indices]
    if name in ("twice.ts", "fragments.mp4"):
        seconds, length = indexed(path)
        assert len(seconds) == 180 and length == pytest.approx(6.0, abs=2e-3)


def ffmpeg(*arguments: str | Path) -> Path:
    """The last argument, made by ffmpeg from the others."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)
    return Path(arguments[-1])


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_a_joined_recording_may_be_of_another_size_or_coding(folder: Path) -> None:
    first = write_video(folder / "first.mkv", 30, options=B_FRAMES)
    others = (
        write_video(folder / "larger.mkv", 30, size=(192, 112), options={"x264-params": "cabac=0"}),
        write_video(folder / "other.webm", 30, codec="libvpx-vp9"),
    )
    clips = [load_video(joined(folder / "mixed.mkv", first, other), frames=60) for other in others]
    for clip in clips:
        assert numbers_in(clip.frames) == [*range(30), *range(30)]
    assert len(clips[0].notes) == 2 and "different sizes" in clips[0].notes[1]
    assert len(clips[1].notes) == 1


def test_a_joined_recording_that_cannot_be_read_is_told(folder: Path) -> None:
    first = write_video(folder / "whole.flv", 30)
    torn = folder / "torn.flv"
    torn.write_bytes(first.read_bytes()[:60])
    clip = load_video(joined(folder / "half.flv", first, torn), frames=60)
    assert numbers_in(clip.frames) == list(range(30))
    assert any("recording 2 of 2 is left out" in note for note in clip.notes)


@pytest.mark.parametrize("kind", ["ts", "mpg", "mkv"])
def test_time_that_leaps_ahead_at_a_join_goes_on_there(kind: str, folder: Path) -> None:
    codec = {"codec": "mpeg2video"} if kind == "mpg" else {"options": B_FRAMES}
    first = write_video(folder / f"now.{kind}", 60, **codec)
    shift = ("-c", "copy", "-output_ts_offset", "1000")
    later = ffmpeg("-i", first, *shift, folder / f"later.{kind}")
    clip = load_video(joined(folder / f"ahead.{kind}", first, later), frames=200)
    assert numbers_in(clip.frames) == [*range(60), *range(60)]
    assert clip.duration == pytest.approx(4.0, abs=0.1)
    assert len(clip.notes) == 1 and "at second 2.0: taken to go on" in clip.notes[0]


def test_ogg_files_that_were_joined(folder: Path) -> None:
    source = write_video(folder / "for-ogg.mkv", 60)
    path = ffmpeg("-i", source, "-c:v", "libtheora", "-q:v", "8", folder / "one.ogv")
    clip = load_video(joined(folder / "two.ogv", path, path), frames=200)
    assert numbers_in(clip.frames) == [*range(60), *range(60)]
    assert clip.duration == pytest.approx(4.0, abs=0.01) and len(clip.notes) == 1


STANDING = [0, 0.1, 0.2, 1.5, 1.6, 5, 5.1, 18, *(18.1 + i / 10 for i in range(12))]


@pytest.mark.parametrize("name", ["plain.ts", "keys.ts", "sound.ts"])
def test_pictures_that_stand_are_not_lost_ones(name: str, folder: Path) -> None:
    """A transport stream has tables and stuffing between them, and may be looked at for long."""
    options = {"g": "1"} if name == "keys.ts" else {}
    path = write_video(folder / name, times=STANDING, options=options, audio=name == "sound.ts")
    clip = load_video(path, frames=200)
    assert numbers_in(clip.frames) == list(range(len(STANDING))) and clip.notes == ()
    assert np.abs(clip.seconds - STANDING).max() < 1e-3


def test_decord_is_not_believed_where_it_finds_other_frames(folder: Path) -> None:
    whole = write_video(folder / "edited-from.mp4", 60, options=B_FRAMES)
    edited = ffmpeg("-ss", "1.2", "-i", whole, "-c", "copy", folder / "edited.mp4")
    twice = joined(folder / "decord-twice.mkv", *[write_video(folder / "once.mkv", 30)] * 2)
    slow = write_video(folder / "slow.mkv", 20, fps=10)
    two = ffmpeg(
        "-i", slow, "-i", whole, "-map", "0", "-map", "1", "-c", "copy",
        "-disposition:v:0", "0", "-disposition:v:1", "default", folder / "rates.mp4",
    )  # fmt: skip
    assert numbers_in(load_video(edited, frames=60).frames) == list(range(36, 60))
    assert len(load_video(two, frames=100)) == 60
    for path in (edited, twice, two):
        with pytest.raises(InputError, match="use reader 'pyav'"):
            load_video(path, reader="decord")


def test_sound_that_goes_on_is_no_cut(folder: Path) -> None:
    source = write_video(folder / "for-flv.mkv", 60)
    tone = ("-f", "lavfi", "-i", "sine=duration=8")
    path = ffmpeg("-i", source, *tone, "-c:v", "copy", "-c:a", "aac", folder / "sound.flv")
    clip = load_video(path, frames=60)
    assert clip.notes == () and clip.duration == pytest.approx(2.0, abs=0.01)
    cut = folder / "cut.flv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert any("cut off" in note for note in load_video(cut, frames=60).notes)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_an_avi_whose_index_is_broken_lacks_nothing(b_frames: int, folder: Path) -> None:
    options = {"bf": str(b_frames)}
    data = write_video(folder / "indexed.avi", 60, codec="mpeg4", options=options).read_bytes()
    at = data.rindex(b"idx1")
    path = folder / "index-broken.avi"
    entries = len(data) - at - 8
    for broken in (
        data[:at] + b"idxX" + data[at + 4 :],
        data[:at] + b"\xff\0\x91\x12" + data[at + 4 :],
        data[:at],
        data[: at + 8 + entries // 2],
        data[: at + 8] + bytes(entries),
    ):
        path.write_bytes(broken)
        clip = load_video(path, frames=100)
        assert numbers_in(clip.frames) == list(range(60)) and clip.notes == ()
        assert clip.duration == pytest.approx(2.0, abs=1e-3)


def test_animated_webp_is_refused_truly(folder: Path) -> None:
    source = write_video(folder / "for-webp.mkv", 5)
    path = ffmpeg("-i", source, "-c:v", "libwebp_anim", folder / "moving.webp")
    with pytest.raises(InputError, match="no decoder for animated WebP; convert it"):
        load_video(path)


def test_a_display_matrix_of_zeros_turns_nothing(folder: Path) -> None:
    source = write_video(folder / "upright.mp4", 5)
    path = overwrite(source, folder / "zeros.mp4", b"tkhd", 44, bytes(36))
    clip = load_video(path, frames=5)
    assert is_upright(clip.frames[0]) and clip.notes == ()


def test_a_stream_that_comes_late_is_left_out_and_told(folder: Path) -> None:
    """What one flipped bit in a transport stream's table does."""
    silent = write_video(folder / "silent.ts", 90, noise=20)
    loud = write_video(folder / "loud.ts", 90, audio=True)
    joined = folder / "late.ts"
    joined.write_bytes(silent.read_bytes() * 4 + loud.read_bytes() + silent.read_bytes() * 4)
    with av.open(str(joined)) as container:
        assert len(container.streams) == 1  # else the test would not see what it is for
    clip = load_video(joined, frames=64)
    assert len(clip) == 64 and numbers_in(clip.frames) == [i % 90 for i in clip.indices]
    assert any("a stream that its header does not name" in note for note in clip.notes)
    assert clip.duration == pytest.approx(27.0, abs=0.05)


@pytest.mark.parametrize("aspect", [(16, 9), (3, 4), (1, 1)])
def test_pixels_come_out_square(aspect: tuple[int, int], folder: Path) -> None:
    path = folder / f"aspect-{aspect[0]}.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 112, 200, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        frame = av.VideoFrame.from_ndarray(picture(9, 112, 200), format="rgb24")
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    width, height = {16: (199, 200), 3: (112, 267), 1: (112, 200)}[aspect[0]]
    for reader in ("pyav", "decord"):
        clip = load_video(path, reader=reader)
        assert (clip.width, clip.height) == (width, height)
        assert numbers_in(clip.frames) == [9] and is_upright(clip.frames[0])
        assert clip.notes == ()


def test_a_shape_of_pixels_that_cannot_be_is_told(folder: Path) -> None:
    path = folder / "wide.mp4"
    options = ["-f", "lavfi", "-i", "color=size=64x48:rate=5:duration=1", "-c:v", "libx264"]
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *options, "-vf", "setsar=20", str(path)], check=True
    )
    clip = load_video(path)
    assert (clip.width, clip.height) == (64, 48)
    assert any("shown as square" in note for note in clip.notes)


def test_hdr_and_interlaced_are_told(folder: Path) -> None:
    args = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=5"]
    args += ["-t", "1", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    hdr, fields = folder / "hdr.mp4", folder / "fields.mp4"
    subprocess.run([*args, "-x264-params", "transfer=smpte2084", str(hdr)], check=True)
    subprocess.run(
        [*args, "-flags", "+ildct+ilme", "-x264-params", "tff=1", str(fields)], check=True
    )
    assert any("HDR (PQ)" in note for note in load_video(hdr).notes)
    assert any("interlaced" in note for note in load_video(fields).notes)
    assert any("interlaced" in note for note in load_video(fields, reader="decord").notes)


def test_the_best_stream_is_read(folder: Path) -> None:
    path = folder / "two.mov"
    thumb, film = (
        write_video(folder / "t.mkv", 1, codec="mjpeg", pixels="yuvj420p", size=(64, 48)),
        (write_video(folder / "f.mkv", 30)),
    )
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-i", str(thumb), "-i", str(film), "-map", "0", "-map", "1",
         "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default", str(path)],
        check=True,
    )  # fmt: skip
    clip = load_video(path, frames=30)
    assert numbers_in(clip.frames) == list(range(30)) and clip.width == 128
    assert any("2 video streams: number 2 is read" in note for note in clip.notes)


@pytest.mark.parametrize("given", ["https://example.com/x.mp4", "rtsp://camera/1"])
def test_addresses_are_not_fetched(given: str) -> None:
    from vidllm.cli.main import main

    with pytest.raises(InputError, match="not fetched") as caught:
        load_video(given)
    assert str(caught.value).startswith(f"{given}: ")
    assert main(["index", given]) == main(["ask", given, "What?"]) == 2


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("box", [b"stts", b"ctts"])
@pytest.mark.parametrize("count", [2**27, 2**31 - 1, 2**32 - 1])
def test_counts_of_samples_are_not_believed(box: bytes, count: int, at: int, folder: Path) -> None:
    source = folder / "counted.mp4"
    if not source.exists():
        write_video(source, 60, size=(64, 48), options=B_FRAMES)
    path = overwrite(source, folder / "huge.mp4", box, 8 + at, struct.pack(">I", count))
    tracemalloc.start()
    try:
        clip = load_video(path, frames=4)
        assert len(clip) >= 1
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_hours_that_do_not_exist_cost_nothing(folder: Path) -> None:
    plain = write_video(folder / "dense.mkv", 40, size=(64, 48), options={"bf": "0"})
    data = bytearray(plain.read_bytes())
    scale = data.index(b"\x2a\xd7\xb1")  # TimestampScale: 1 ms becomes 1 µs
    size = data[scale + 3] & 0x7F
    data[scale + 4 : scale + 4 + size] = (1000).to_bytes(size, "big")
    length = data.index(b"\x44\x89\x88")  # Duration, in units of the scale
    data[length + 3 : length + 11] = struct.pack(">d", 20_000e6)
    path = folder / "hours.mkv"
    path.write_bytes(data)
    tracemalloc.start()
    clip = load_video(path, frames=4096)
    seconds, long = indexed(path, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert len(clip) == 40 and clip.duration < 1 and long < 1 and len(seconds) == 1
    assert any("promises 20000" in note for note in clip.notes)


def test_a_clip_takes_its_limit_once(folder: Path) -> None:
    path = write_video(folder / "large.mp4", 24, size=(640, 480), options={"preset": "ultrafast"})
    needed = 24 * 640 * 480 * 3
    load_video(path, frames=1)
    tracemalloc.start()
    clip = load_video(path, frames=24, limits=Limits(max_bytes=needed))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.frames.nbytes == needed
    assert peak < 1.3 * needed
