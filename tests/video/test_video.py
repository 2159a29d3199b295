"""Reading video: the right frames with the right seconds, from every kind of file."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
import videos
from videos import damage_file, is_upright, numbers_in, overwrite, remux, write_video

from vidllm.errors import InputError
from vidllm.tokens import budget_of, split_budget
from vidllm.video import Limits, VideoClip, load_video

HEVC = {"x265-params": "log-level=none:keyint=12:open-gop=1:bframes=4:scenecut=0"}
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
B_FRAMES = {"x264-params": "bframes=5:b-pyramid=normal:keyint=30:scenecut=0"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
ALTREF = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "b": "300k"}

KINDS = {
    "b-frames.mp4": {"options": B_FRAMES},
    "open-gop.mp4": {"options": OPEN_GOP},
    "open-gop.mkv": {"options": OPEN_GOP},
    "hevc.mp4": {"codec": "libx265", "options": HEVC},
    "hevc.mkv": {"codec": "libx265", "options": HEVC},
    "odd-444.mp4": {"size": (127, 95), "pixels": "yuv444p"},
    "odd-vp9.webm": {"size": (127, 95), "codec": "libvpx-vp9"},
    "ten-bit.mp4": {"pixels": "yuv420p10le"},
    "ten-bit-hevc.mkv": {"pixels": "yuv420p10le", "codec": "libx265", "options": HEVC},
    "vp8-hidden.webm": {"codec": "libvpx", "options": ALTREF},
    "vp9-sound.webm": {"codec": "libvpx-vp9", "audio": True},
    "live.webm": {"codec": "libvpx-vp9", "container_options": {"live": "1"}},  # no counts
    "live.mkv": {"container_options": {"live": "1"}},
    "h264-b.avi": {},  # AVI has no presentation times
    "h264.avi": {"options": {"bf": "0"}},
    "mpeg4-b.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "lossless.mkv": {"codec": "ffv1", "size": (127, 95)},
    "moving.gif": {"codec": "gif", "pixels": "rgb8", "fps": 10},
    "quicktime.mov": {},
    "fragments.mp4": {"container_options": FRAGMENTS},
    "broadcast.ts": {"audio": True},
    "program.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "flash.flv": {},
    "sound-first.mp4": {"audio": True, "first": 0.7},
    "sound-first.mkv": {"audio": True, "first": 0.7},
    "quarter-turn.mp4": {"rotation": 90},
    "half-turn.mp4": {"rotation": 180},
    "three-quarters.mp4": {"rotation": 270},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """Ten seconds, B-frames, a key frame a second, the index in front."""
    return write_video(
        folder / "plain.mp4",
        300,
        options={"x264-params": "bframes=3:keyint=30:scenecut=0"},
        container_options={"movflags": "faststart"},
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_its_own_frames_upright(name: str, folder: Path) -> None:
    options = dict(KINDS[name])
    count, fps = 90, options.get("fps", 30)
    path = write_video(folder / name, count, **options)
    whole = load_video(path, frames=count)
    assert numbers_in(whole.frames) == list(range(count))
    assert whole.indices.tolist() == list(range(count))
    assert np.abs(whole.seconds - np.arange(count) / fps).max() < 1e-3
    assert whole.duration == pytest.approx(count / fps, abs=2e-3)
    assert whole.fps == pytest.approx(fps, rel=1e-3)
    assert (whole.width, whole.height) == options.get("size", (128, 96)) or options.get("rotation")
    assert is_upright(whole.frames[0])
    assert whole.notes == ()
    some = load_video(path, frames=7)
    assert numbers_in(some.frames) == [6, 19, 32, 45, 57, 70, 83]
    for row, index in enumerate(some.indices):
        assert np.array_equal(some.frames[row], whole.frames[index])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_seconds_are_exact(suffix: str, folder: Path) -> None:
    steps = np.random.default_rng(1).choice([17, 33, 40, 120, 700], 120)
    times = (np.cumsum(steps) - steps[0]) / 1000
    path = write_video(folder / f"variable.{suffix}", times=times.tolist(), first=0.25)
    whole = load_video(path, frames=len(times))
    assert numbers_in(whole.frames) == list(range(len(times)))
    assert np.abs(whole.seconds - times).max() < 1e-6
    asked = np.linspace(0, times[-1], 57)
    shown = np.searchsorted(times, asked + 1e-6, side="right") - 1
    clip = load_video(path, times=asked)
    assert numbers_in(clip.frames) == shown.tolist() == clip.indices.tolist()
    assert np.abs(clip.seconds - times[shown]).max() < 1e-6
    assert whole.notes == ()  # frames that stand long are no damage


def test_skipping_and_seeking_give_the_pictures_of_plain_decoding(plain: Path) -> None:
    with av.open(str(plain)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for count in (3, 17, 64, 300):
        clip = load_video(plain, frames=count)
        for row, index in enumerate(clip.indices):
            assert np.array_equal(clip.frames[row], pictures[index])


def test_uniform_frames_are_the_centres_of_equal_parts(plain: Path) -> None:
    clip = load_video(plain, frames=8)
    centres = (np.arange(8) + 0.5) * 10 / 8
    assert clip.indices.tolist() == np.floor(centres * 30 + 1e-6).astype(int).tolist()
    clip = load_video(plain, frames=4, start=2, end=4)
    assert clip.indices.tolist() == [67, 82, 97, 112]
    assert (clip.start, clip.end) == (2.0, 4.0)
    assert len(load_video(plain)) == 64


def test_fewer_frames_than_asked_come_once_each(plain: Path, folder: Path) -> None:
    clip = load_video(plain, frames=50, start=1.01, end=1.5)
    assert clip.indices.tolist() == list(range(30, 45))  # 30 is shown when the range begins
    short = load_video(write_video(folder / "short.mp4", 5))
    assert short.indices.tolist() == [0, 1, 2, 3, 4]


def test_fps_and_times(plain: Path) -> None:
    assert load_video(plain, fps=2).indices.tolist() == list(range(0, 300, 15))
    assert load_video(plain, fps=1, start=0.5, end=3).indices.tolist() == [15, 45, 75]
    assert load_video(plain, fps=1000, start=1, end=2).indices.tolist() == list(range(30, 60))
    clip = load_video(plain, times=[5.0, 0.0, 5.0, 10.0, 0.1 + 0.2])
    assert clip.indices.tolist() == [150, 0, 150, 299, 9]  # as given; the last stays to the end
    assert load_video(plain, frames=1, start=9.9, end=10.5).end == 10.0  # people round up


@pytest.mark.parametrize("name", ["one.mp4", "one.gif", "one.webm", "one.avi"])
def test_one_frame_files(name: str, folder: Path) -> None:
    codec = {"gif": "gif", "webm": "libvpx-vp9"}.get(name[4:], "libx264")
    path = write_video(
        folder / name, 1, codec=codec, pixels="rgb8" if codec == "gif" else "yuv420p"
    )
    clip = load_video(path, frames=8)
    assert clip.indices.tolist() == [0]
    assert clip.seconds.tolist() == [0.0]
    assert clip.duration > 0
    assert numbers_in(clip.frames) == [0]


def test_negative_times_and_edit_lists(folder: Path) -> None:
    source = write_video(folder / "whole.mp4", 90, options=B_FRAMES)
    keep = {"avoid_negative_ts": "disabled"}
    for name in ("edited.mp4", "early.mkv"):
        path = remux(source, folder / name, shift=-0.5, container_options=keep)
        clip = load_video(path, frames=90)
        assert numbers_in(clip.frames) == list(range(15, 90))  # half a second is edited out
        assert clip.seconds[0] == 0.0
        assert clip.duration == pytest.approx(2.5, abs=2e-3)
    late = load_video(remux(source, folder / "late.mkv", shift=5.0), frames=90)
    assert numbers_in(late.frames) == list(range(90))
    assert late.seconds[0] == 0.0


def test_a_file_that_begins_with_leading_frames_begins_at_its_key_frame(folder: Path) -> None:
    source = write_video(folder / "open.mkv", 90, options=OPEN_GOP)
    with av.open(str(source)) as container:
        keys = [n for n, p in enumerate(container.demux(video=0)) if p.size and p.is_keyframe]
    clip = load_video(remux(source, folder / "begins-open.mkv", skip=keys[2]), frames=90)
    numbers = numbers_in(clip.frames)
    assert numbers == list(range(numbers[0], 90))
    assert clip.seconds[0] == 0.0
    assert clip.notes == ()


def test_wrong_and_missing_frame_counts_do_not_matter(folder: Path) -> None:
    source = write_video(folder / "counted.avi", 90, codec="mpeg4")
    for count in (10, 4000):
        wrong = folder / f"count-{count}.avi"
        overwrite(source, wrong, b"avih", 24, count.to_bytes(4, "little"))
        overwrite(wrong, wrong, b"strh", 40, count.to_bytes(4, "little"))
        clip = load_video(wrong, frames=90)
        assert numbers_in(clip.frames) == list(range(90))
        assert clip.duration == pytest.approx(3.0, abs=2e-3)
    raw = load_video(write_video(folder / "raw.h264", 40), frames=90)
    assert numbers_in(raw.frames) == list(range(40))
    assert any("no timestamps" in note for note in raw.notes)


DAMAGEABLE = {
    "whole.mp4": {"options": {"x264-params": "bframes=3:keyint=30:scenecut=0"},
                  "container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"container_options": FRAGMENTS},
    "video.mkv": {},
    "sound.mkv": {"audio": True},
    "video.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.avi": {},
    "broadcast.ts": {},
    "moving.gif": {"codec": "gif", "pixels": "rgb8", "fps": 10},
}  # fmt: skip
PROMISES_NO_LENGTH = {"fragments.mp4", "broadcast.ts", "moving.gif"}


@pytest.fixture(scope="module")
def damageable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("damageable")
    return {
        name: write_video(folder / name, 240 if "gif" not in name else 60, noise=12, **options)
        for name, options in DAMAGEABLE.items()
    }


@pytest.mark.parametrize("name", DAMAGEABLE)
def test_files_cut_off_at_60_percent(
    name: str, damageable: dict[str, Path], tmp_path: Path
) -> None:
    count = 240 if "gif" not in name else 60
    path = videos.cut_file(damageable[name], tmp_path / name)
    fps = DAMAGEABLE[name].get("fps", 30)
    for frames in (32, count):
        clip = load_video(path, frames=frames)
        assert numbers_in(clip.frames) == np.round(clip.seconds * fps).astype(int).tolist()
        assert len(clip) >= 0.35 * frames
        if name == "broadcast.ts" and not path.stat().st_size % 188:
            continue  # nothing in such a file says that there should be more
        assert any("cut off" in note for note in clip.notes)
        if name not in PROMISES_NO_LENGTH:
            assert clip.duration == pytest.approx(8.0, abs=0.03)
            assert sum(_lost(note) for note in clip.notes) == pytest.approx(
                frames - len(clip), abs=1
            )


@pytest.mark.parametrize("share", np.linspace(0.5, 0.7, 24).tolist())
def test_a_transport_stream_cut_within_a_picture_does_not_guess_it(
    share: float, damageable: dict[str, Path], tmp_path: Path
) -> None:
    path = videos.cut_file(damageable["broadcast.ts"], tmp_path / "cut.ts", share)
    clip = load_video(path, frames=240)
    assert numbers_in(clip.frames) == np.round(clip.seconds * 30).astype(int).tolist()


@pytest.mark.parametrize("at", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("name", DAMAGEABLE)
def test_files_damaged_in_the_middle(
    name: str, at: float, damageable: dict[str, Path], tmp_path: Path
) -> None:
    count = 240 if "gif" not in name else 60
    path = damage_file(damageable[name], tmp_path / name, at, 1200)
    fps = DAMAGEABLE[name].get("fps", 30)
    clip = load_video(path, frames=count)
    right = np.equal(numbers_in(clip.frames), np.round(clip.seconds * fps))
    if name == "video.webm" and at < 0.6:
        # VP9 decodes noise within a packet to some picture: wrong up to the next key frame.
        assert 0.85 * count < right.sum() < count
        return
    assert right.all()
    assert len(clip) < count
    assert any("damaged" in note or "missing" in note or "cut off" in note for note in clip.notes)
    if name not in PROMISES_NO_LENGTH:
        assert len(clip) >= 0.6 * count
        assert clip.seconds[-1] > 7.9


def _lost(note: str) -> int:
    return int(note.split()[0]) if "could not be read" in note else 0


def test_an_mp4_without_its_index_is_refused(plain: Path, tmp_path: Path) -> None:
    late = write_video(tmp_path / "late-index.mp4", 60)
    with pytest.raises(InputError, match="damaged beyond reading"):
        load_video(videos.cut_file(late, tmp_path / "cut.mp4"))


def test_clip_is_immutable_and_says_what_it_is_in_one_line(plain: Path) -> None:
    clip = load_video(plain, frames=4)
    assert len(clip) == 4
    assert (clip.height, clip.width) == (96, 128)
    assert clip.frames.dtype == np.uint8
    assert clip.seconds.dtype == np.float64
    assert clip.indices.dtype == np.int64
    assert clip.path == str(plain)
    assert clip.read_seconds > 0
    for array in (clip.frames, clip.seconds, clip.indices):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.fps = 1.0  # type: ignore[misc]
    assert "\n" not in repr(clip)
    assert "plain.mp4" in repr(clip)
    mine = np.zeros((2, 4, 4, 3), np.uint8)
    VideoClip(mine, np.arange(2.0), 1.0, 2.0, np.arange(2), "memory")
    mine[0] = 1  # the caller's array stays the caller's


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frames": 0}, "at least 1"),
        ({"frames": -3}, "at least 1"),
        ({"frames": 2.5}, "whole number"),
        ({"fps": 0}, "above 0"),
        ({"fps": float("nan")}, "above 0"),
        ({"frames": 4, "fps": 1}, "only one"),
        ({"frames": 4, "times": [1]}, "only one"),
        ({"times": [1], "start": 0}, "without start and end"),
        ({"times": []}, "at least one"),
        ({"times": ["soon"]}, "list of seconds"),
        ({"times": [1, 10.2]}, "10.2 s is outside"),
        ({"times": [-0.1]}, "outside"),
        ({"times": [float("nan")]}, "outside"),
        ({"start": 3, "end": 3}, "must come before"),
        ({"start": 5, "end": 2}, "must come before"),
        ({"start": -1}, "from 0 on"),
        ({"end": float("inf")}, "from 0 on"),
        ({"start": 10.5}, "after plain.mp4 ends"),
        ({"end": 12}, "after plain.mp4 ends"),
        ({"reader": "magic"}, "unknown reader"),
        ({"limits": Limits(max_pixels=1000)}, "max_pixels"),
        ({"limits": Limits(max_seconds=5)}, "max_seconds"),
        ({"limits": Limits(max_frames=8), "frames": 9}, "max_frames"),
        ({"limits": Limits(max_frames=8), "fps": 10**9}, "max_frames"),
        ({"limits": Limits(max_frames=2), "times": [1, 2, 3]}, "max_frames"),
        ({"limits": Limits(max_bytes=100_000)}, "max_bytes"),
    ],
)
def test_wrong_options_say_so_in_one_line(plain: Path, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_video(plain, **options)
    assert "\n" not in str(caught.value)


BAD = ("text named mp4", "text", "playlist", "audio only", "empty", "missing", "folder",
       "no header")  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_inputs_say_so_in_one_line(kind: str, tmp_path: Path) -> None:
    path = videos.bad_inputs(tmp_path)[kind]
    with pytest.raises(InputError) as caught:
        load_video(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_never_taken_for_addresses(plain: Path, tmp_path: Path) -> None:
    odd = tmp_path / "http:a b%03d#?.mp4"
    odd.write_bytes(plain.read_bytes())
    assert len(load_video(odd, frames=3)) == 3


def test_limits_must_be_numbers_above_0() -> None:
    for wrong in ({"max_frames": 0}, {"max_pixels": -1}, {"max_seconds": "1"}):
        with pytest.raises(InputError, match="limit max_"):
            Limits(**wrong)


def test_budget_of_rounds_half_up_on_the_decimal_digits() -> None:
    assert budget_of(0.25, 1024) == 256
    assert budget_of(0.29, 50) == 15  # 14.5; in floats 14.499999999999998
    assert budget_of(0.125, 4) == 1
    assert budget_of(0.001, 10) == 1
    assert budget_of(1, 7) == 7
    assert budget_of(0.5, 0) == 0
    for keep in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match="keep"):
            budget_of(keep, 10)


def test_split_budget_is_exact() -> None:
    assert split_budget(10, 3) == [4, 3, 3]
    assert split_budget(7, [1, 2, 0, 0.5]) == [2, 4, 0, 1]
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.random(rng.integers(1, 20)).tolist()
        total = int(rng.integers(0, 1000))
        parts = split_budget(total, weights)
        assert sum(parts) == total
        exact = np.asarray(weights) / sum(weights) * total
        assert (np.abs(np.asarray(parts) - exact) < 1 + 1e-9).all()
    for wrong in (0, [], [0.0], [-1.0, 2.0], [float("inf")]):
        with pytest.raises(InputError):
            split_budget(5, wrong)


def test_decord_gives_the_same_clip_or_says_how_to_get_it(plain: Path, folder: Path) -> None:
    if importlib.util.find_spec("decord") is None:
        with pytest.raises(InputError, match=r"pip install vidllm\[decord\]"):
            load_video(plain, reader="decord")
        return
    for path in (plain, write_video(folder / "turned.mp4", 60, rotation=90)):
        ours, theirs = (load_video(path, frames=9, reader=name) for name in ("pyav", "decord"))
        assert ours.indices.tolist() == theirs.indices.tolist()
        assert np.abs(ours.seconds - theirs.seconds).max() < 1e-3
        assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < 2


def test_benchmark_of_readers_on_small_files(tmp_path: Path) -> None:
    from rich.console import Console

    from vidllm.eval.bench.video_reading import bench_video, render_table

    result = bench_video(tmp_path, seconds_short=2, seconds_long=4, frames=4, runs=1)
    ours = {row["file"]: row for row in result["rows"] if row["reader"] == "pyav"}
    assert set(ours) == {"short", "long"}
    assert all(row["same"] == 4 for row in result["rows"])
    assert load_video(tmp_path / "long-4s-640x360.mp4", frames=1).duration == pytest.approx(4.0)
    console = Console(width=120, record=True)
    console.print(render_table(result))
    assert "long over short" in console.export_text()
    with pytest.raises(InputError, match="multiple"):
        bench_video(tmp_path, seconds_short=2, seconds_long=3)
