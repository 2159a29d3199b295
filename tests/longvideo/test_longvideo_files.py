"""Indexes of all kinds of videos, and index files that are damaged, foreign or opened alone."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from long_tiny import ASKED, indexed, loud
from videos import bad_inputs, cut_file, damage_file, write_video

from vidllm import InputError, VideoIndex, VideoLLM
from vidllm.compressors import build
from vidllm.longvideo.build import native_engine
from vidllm.longvideo.marks import method_facts, method_of, method_words, model_mark, source_mark
from vidllm.longvideo.store import IndexFile, is_index
from vidllm.longvideo.windows import levels_for, on_screen

SMALL = {"size": (64, 48)}


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return loud()


@pytest.fixture(scope="module")
def ahead() -> VideoLLM:
    return loud(streaming=True)


@pytest.fixture(scope="module")
def index(llm: VideoLLM, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    folder = tmp_path_factory.mktemp("i")
    return indexed(llm, write_video(folder / "v.mp4", 60, fps=2, size=(64, 48)), folder / "v.vidx")


def seen(index: VideoIndex, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of what every token of window `at` covers, in seconds of the window."""
    span = index.tensor("span.0")[at].numpy()
    return span[:, 0], span[:, 1]


def test_a_damaged_stretch_is_told_and_the_rest_answers(
    llm: VideoLLM, ahead: VideoLLM, tmp_path: Path
) -> None:
    whole = write_video(tmp_path / "w.mp4", 600, fps=5, gop=10, noise=20.0)
    bad = damage_file(whole, tmp_path / "bad.mp4", 0.4, whole.stat().st_size // 4)
    for model in (llm, ahead):  # whole blocks are empty: the carried state passes them
        path = tmp_path / f"{model.model.temporal[0].causal}.vidx"
        index = indexed(model, bad, path, fps=5.0)
        (start, end), *_ = index.facts["lost"]
        assert index.facts["complete"] and 40 < start < 55 and 70 < end < 85
        assert any("nothing could be read between 0:4" in note for note in index.notes)
        seconds, _ = index.frames()
        assert not ((seconds > start + 0.1) & (seconds < end - 0.1)).any()
        assert index.duration == pytest.approx(120.0) and seconds.max() > 119
        answer = index.ground_answer("the red star spins")
        assert answer.spans and set(index.notes) <= set(answer.notes)
        begin, stop = seen(index, 0)  # what is told of the frames beside the hole is their own
        assert (np.diff(begin) >= 0).all() and (stop >= begin).all()


def test_a_file_that_was_cut_off_is_indexed_as_far_as_it_goes(
    llm: VideoLLM, tmp_path: Path
) -> None:
    whole = write_video(tmp_path / "w.mkv", 300, fps=5, noise=10.0)
    index = indexed(llm, cut_file(whole, tmp_path / "cut.mkv", 0.5), tmp_path / "cut.vidx")
    assert any("cut off" in note for note in index.notes)
    assert 20 < index.frames()[0].max() < 40
    assert index.ask(ASKED).spans or index.ask(ASKED).text


def test_what_is_no_video_is_refused_in_one_line(llm: VideoLLM, tmp_path: Path) -> None:
    for kind, file in bad_inputs(tmp_path / "bad").items():
        with pytest.raises(InputError, match=file.name) as caught:
            llm.index(file, tmp_path / "x.vidx")
        assert "\n" not in str(caught.value), kind
    assert not list(tmp_path.glob("x.vidx*"))


@pytest.mark.parametrize(("count", "fps"), [(1, 25), (3, 1), (30, 10)])
def test_short_videos(llm: VideoLLM, ahead: VideoLLM, count: int, fps: int, tmp_path: Path) -> None:
    video = write_video(tmp_path / "short.mp4", count, fps=fps, **SMALL)
    for model in (llm, ahead):
        path = tmp_path / f"{model.model.temporal[0].causal}.vidx"
        index = model.index(video, path, fps=2.0)
        assert [level["windows"] for level in index.facts["levels"]] == [1]
        assert index.facts["levels"][0]["length"] == pytest.approx(count / fps)
        for span in index.ground("the red star spins"):
            assert 0 <= span.start <= span.end <= count / fps + 1e-6
        assert index.ask("what spins?").text and index.caption().receipt.frames
        assert len(index.thumbnails()) == 1


def test_seconds_and_pictures_are_those_of_the_file(tmp_path: Path) -> None:
    """A variable frame rate: slides that stay for long, with a quick part between."""
    times = [0.0, 30.0, *(60 + 0.2 * k for k in range(10)), 70.0, 100.0, 139.0]
    video = write_video(tmp_path / "slides.mp4", times=times, **SMALL)
    llm = loud(compressor="none")  # sixteen frames a window: 7.5 s each
    index = indexed(llm, video, tmp_path / "slides.vidx", fps=1.0, near=0.0)
    seconds, row = index.frames()
    assert set(np.round(seconds, 3)) <= set(np.round(times, 3))
    assert {0.0, 30.0, 70.0, 100.0, 139.0} <= set(seconds.tolist())
    assert len(set(row.tolist())) == len(seconds)
    assert [t for t, _ in index.thumbnails()] == [0.0, 30.0, 60.0, 70.0, 100.0, 139.0]
    begin, end = seen(index, 0)
    assert (np.diff(begin) >= 0).all() and end.max() <= 120 + 1e-3
    wide = (end - begin).max()  # a slide that stays is told at every moment that shows it
    assert wide <= 15, "one token claims a whole slide"


def test_what_is_on_the_screen() -> None:
    even = np.arange(10.0)
    chosen, told = on_screen(even, np.array([0.2, 3.4, 3.6, 9.4]), 1.0)
    assert chosen.tolist() == [0, 3, 4, 9] and told.tolist() == [0.0, 3.0, 4.0, 9.0]
    held = np.array([0.0, 100.0])  # one picture for a hundred seconds, read at one a second
    chosen, told = on_screen(held, np.array([0.5, 60.0, 98.5, 99.5, 100.5]), 1.0)
    assert chosen.tolist() == [0, 0, 0, 1, 1] and told.tolist() == [0.0, 60.0, 98.5, 100.0, 100.0]
    chosen, told = on_screen(held, np.array([20.0, 40.0, 60.0]), 1.0, [[30.0, 50.0]])
    assert told.tolist() == [20.0, 20.0, 60.0]  # what was shown at 40 is not known
    chosen, told = on_screen(np.array([5.0]), np.array([1.0, 5.0, 9.0]), 1.0)
    assert chosen.tolist() == [0, 0, 0] and told.tolist() == [5.0, 5.0, 9.0]
    with pytest.raises(InputError, match="no frame"):
        on_screen(np.zeros(0), np.array([1.0]), 1.0)


def test_levels_follow_the_length_and_the_rate() -> None:
    assert [(x.seconds, x.frames) for x in levels_for(1.0, 64, 3600)] == [(120, 64), (60, 60)]
    assert [(x.seconds, x.frames) for x in levels_for(1.0, 64, 50)] == [(120, 50)]
    assert [x.frames for x in levels_for(0.1, 64, 3600)] == [12, 6]
    assert [x.frames for x in levels_for(1.0, 64, 0.04)] == [1]


def test_equal_frames_are_not_encoded_again(llm: VideoLLM, tmp_path: Path) -> None:
    still = write_video(tmp_path / "still.mp4", times=[0.25 * k for k in range(120)], **SMALL)
    usual = indexed(llm, still, tmp_path / "a.vidx", near=0.0)
    loose = indexed(llm, still, tmp_path / "b.vidx", near=255.0)
    assert usual.facts["near_error"] == 0.0 < loose.facts["near_error"]
    assert len(loose.tensor("tokens")) == 2 < len(usual.tensor("tokens")) == 120  # one a block
    tight = indexed(llm, still, tmp_path / "c.vidx", tokens_per_minute=480)
    assert tight.facts["fps"] == 2.0 and len(tight.frames()[0]) == 60
    with pytest.raises(InputError, match="4 tokens: tokens_per_minute 3"):
        indexed(llm, still, tmp_path / "d.vidx", tokens_per_minute=3)


def test_it_opens_without_a_model(index: VideoIndex) -> None:
    code = (
        "import sys; from vidllm import VideoIndex; i = VideoIndex.load(sys.argv[1]);"
        "print(len(i.thumbnails()), i.duration, repr(i));"
        "print([m for m in ('transformers', 'vidllm.models.native', 'av') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(index.path)], capture_output=True, text=True, check=True
    )
    told = "3 30.0 VideoIndex('v.mp4', 0:30, 4 fps, 1 windows of 120 s)\n[]\n"
    assert found.stdout == told


def test_every_damage_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    data = index.path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    draw, bad = random.Random(3), tmp_path / "bad.vidx"
    places = [draw.randrange(8, header) for _ in range(150)]
    places += [draw.randrange(len(data)) for _ in range(50)] + [0, 7, len(data) - 1]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        bad.write_bytes(changed)
        with pytest.raises(InputError) as caught:
            VideoIndex.load(bad)
        assert "\n" not in str(caught.value) and "bad.vidx" in str(caught.value), place
    for length in (0, 5, 100, header - 1, header, header + 1, len(data) - 1):
        bad.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"bad\.vidx"):
            VideoIndex.load(bad)
    bad.write_bytes(data + b"more")
    with pytest.raises(InputError, match="damaged"):
        VideoIndex.load(bad)


def test_another_version_is_named(index: VideoIndex, tmp_path: Path) -> None:
    file = tmp_path / "later.vidx"
    file.write_bytes(index.path.read_bytes().replace(b'"format": "1"', b'"format": "9"', 1))
    assert is_index(file)
    with pytest.raises(InputError, match=r"another version \(format 9, this is 1\)"):
        IndexFile(file)


def test_a_changed_source_is_refused_and_an_absent_one_is_not(
    llm: VideoLLM, index: VideoIndex, tmp_path: Path
) -> None:
    video = tmp_path / "v.mp4"
    shutil.copyfile(Path(index.facts["source"]["path"]), video)
    made = indexed(llm, video, tmp_path / "v.vidx")
    mark = source_mark(video)["sha256"]
    with video.open("rb+") as file:
        file.seek(video.stat().st_size // 2)
        file.write(b"!")
    assert source_mark(video)["sha256"] != mark
    with pytest.raises(InputError, match=r"v\.mp4 has changed since v\.vidx was made"):
        VideoIndex.load(made.path, llm)
    video.unlink()
    assert VideoIndex.load(made.path, llm).duration == 30.0


def test_the_mark_of_a_model_is_of_its_weights(index: VideoIndex) -> None:
    mine, other = loud(), loud(seed=2)
    assert (
        model_mark(native_engine(mine)) == index.facts["model"] != model_mark(native_engine(other))
    )
    mine.model.to(torch.bfloat16)
    assert model_mark(native_engine(mine)) == index.facts["model"]
    with pytest.raises(InputError, match="another model"):
        VideoIndex.load(index.path, other)


@pytest.mark.parametrize(
    "spec", ["none", "temporal-pool:keep=0.25", "spatial-pool,uniform", "random:seed=3:keep=0.5"]
)
def test_the_compressor_is_kept_by_name(llm: VideoLLM, spec: str) -> None:
    method = build(spec, keep=0.5) if "," in spec else build(spec)
    told = json.loads(json.dumps(method_facts(method)))
    assert repr(method_of(told, native_engine(llm))) == repr(method) and told["spec"]
    assert method.name.split(",")[0] in method_words(told)


def test_a_compressor_of_ones_own_must_be_given_again(llm: VideoLLM) -> None:
    told = {**method_facts(llm.compressor), "spec": None, "repr": "Mine(keep=0.5)"}
    with pytest.raises(InputError, match="Mine"):
        method_of(told, native_engine(llm))


@pytest.mark.parametrize("spec", ["fastv", "nasva", "mustdrop"])
def test_methods_that_cannot_make_an_index_are_refused(spec: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 4, **SMALL)
    with pytest.raises(InputError, match=spec):
        loud(compressor=spec, keep=0.5).index(video)
    assert list(tmp_path.iterdir()) == [video]
