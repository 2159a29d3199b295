"""Indexes of long videos: the same whatever happens on the way, and answers that repeat."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model
from videos import cut_file, write_sound, write_video

from vidllm import InputError, VideoIndex, VideoLLM, WorkError
from vidllm.longvideo.choosing import Vote, elected, grouped, tiou
from vidllm.longvideo.parts import folder_of
from vidllm.longvideo.scan import expected_iou
from vidllm.longvideo.windows import Cuts, Level, nearest
from vidllm.models.native import NativeConfig, NativeVideoLLM

FPS = 4.0
ASKED = "when does the red star spin?"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty seconds, so that there are several blocks and two levels of windows."""
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", count=160, fps=2)


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return VideoLLM(*tiny_model(), compressors="temporal-pool", keep=0.25)


def streaming() -> VideoLLM:
    """The same model with a temporal encoder that reads forwards alone."""
    model, tokenizer = tiny_model()
    config = NativeConfig.from_dict(model.config.to_dict())
    config.temporal = [
        {"name": "ssd", "layers": 1, "head_dim": 16, "bidirectional": False, "scan": "slot"}
    ]
    torch.manual_seed(1)
    other = NativeVideoLLM(config).eval()
    with torch.no_grad():
        for p in other.temporal.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return VideoLLM(other, tokenizer, compressors="temporal-pool", keep=0.25)


def indexed(llm: VideoLLM, video: Path, path: Path, **more: object) -> VideoIndex:
    return llm.index(video, path, fps=FPS, precision="float32", **more)


def same(one: VideoIndex, two: VideoIndex) -> bool:
    tensors = {name: (one.tensor(name), two.tensor(name)) for name in one.names()}
    return one.names() == two.names() and all(torch.equal(a, b) for a, b in tensors.values())


@pytest.fixture(scope="module")
def whole(llm: VideoLLM, video: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return indexed(llm, video, tmp_path_factory.mktemp("index") / "whole.vidx")


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_frames_read_at_once_do_not_show(
    llm: VideoLLM, video: Path, whole: VideoIndex, chunk: int, tmp_path: Path
) -> None:
    assert same(indexed(llm, video, tmp_path / "other.vidx", chunk=chunk), whole)


def test_seconds_are_those_of_the_file(whole: VideoIndex) -> None:
    seconds, row = whole.frames()
    assert np.allclose(np.diff(seconds), 0.5) and seconds[0] == 0  # each frame once
    assert len(row) == 160 and int(row.max()) < whole.tensor("tokens").shape[0]
    assert whole.duration == pytest.approx(80.0)
    times = [t for t, _ in whole.thumbnails()]
    assert times[0] == 0 and all(data[:2] == b"\xff\xd8" for _, data in whole.thumbnails())
    assert np.all(np.diff(times) >= 9)


def test_a_saved_index_answers_alike_and_questions_leave_it_alone(
    llm: VideoLLM, whole: VideoIndex, tmp_path: Path
) -> None:
    before = whole.path.read_bytes()
    first = whole.ask(ASKED)
    again = whole.ask(ASKED)  # from the caches of the first
    other = whole.ask("what happens first?")
    third = whole.ask(ASKED)
    loaded = VideoIndex.load(whole.save(tmp_path / "copy.vidx"), llm)
    for answer in (again, third, loaded.ask(ASKED)):
        assert (answer.text, answer.spans) == (first.text, first.spans)
    assert loaded.ask("what happens first?").text == other.text
    assert whole.path.read_bytes() == before
    assert any("looked at" in note for note in first.notes)
    assert whole.ground("the red star spins") == loaded.ground("the red star spins")
    told = whole.caption(10.0, 60.0)
    assert all(10 <= s.start <= s.end <= 60 for s in told.spans)


def test_a_streaming_encoder_is_carried_over_the_blocks(video: Path, tmp_path: Path) -> None:
    llm = streaming()
    index = indexed(llm, video, tmp_path / "carried.vidx", near=0.0)
    assert index.facts["carried"]
    clip = llm.sample(video, fps=2.0)
    tokens, _ = llm.encode(clip)
    kept = index.tensor("tokens").flatten(0, 1)
    assert torch.allclose(kept, tokens.features, atol=1e-5)
    assert same(indexed(llm, video, tmp_path / "two.vidx", near=0.0, chunk=5), index)
    assert index.ask(ASKED).text == index.ask(ASKED).text


def test_killed_at_random_moments_it_goes_on(
    llm: VideoLLM, video: Path, whole: VideoIndex, tmp_path: Path
) -> None:
    """Twenty kills -9 of forked children; then the index is that of an undisturbed run."""
    path, rng = tmp_path / "killed.vidx", random.Random(0)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            try:
                indexed(llm, video, path)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():  # it was done before it was killed: begin anew
            path.unlink()
            shutil.rmtree(folder_of(path), ignore_errors=True)
    assert same(indexed(llm, video, path), whole)
    assert not folder_of(path).exists()


def test_a_video_that_vanishes_leaves_what_was_read(
    llm: VideoLLM, video: Path, whole: VideoIndex, tmp_path: Path
) -> None:
    copy, path = tmp_path / "copy.mp4", tmp_path / "part.vidx"
    shutil.copyfile(video, copy)

    def vanish(done: float, total: float) -> None:
        copy.unlink(missing_ok=True)

    with pytest.raises(WorkError, match=r"copy\.mp4") as caught:
        indexed(llm, copy, path, progress=vanish)
    assert "\n" not in str(caught.value)
    part = VideoIndex.load(path, llm)
    assert 0 < part.duration < 80 and any("only the first" in note for note in part.notes)
    assert part.ask(ASKED).receipt.frames == len(part.frames()[0])
    shutil.copyfile(video, copy)
    assert same(indexed(llm, copy, path), whole)


def test_what_is_wrong_is_said_in_one_line(
    llm: VideoLLM, video: Path, whole: VideoIndex, tmp_path: Path
) -> None:
    data = bytearray(whole.path.read_bytes())
    bad = tmp_path / "bad.vidx"
    data[-100] ^= 1
    bad.write_bytes(data)
    cut = cut_file(whole.path, tmp_path / "cut.vidx")
    other = streaming()
    sound = write_sound(tmp_path / "sound.mp4")
    for match, call in {
        "damaged": lambda: VideoIndex.load(bad, llm),
        "damaged|cut": lambda: VideoIndex.load(cut, llm),
        "no index": lambda: VideoIndex.load(video, llm),
        "no such": lambda: VideoIndex.load(tmp_path / "none.vidx", llm),
        "another": lambda: VideoIndex.load(whole.path, other),
        "no video|audio": lambda: indexed(llm, sound, tmp_path / "sound.vidx"),
        "fps": lambda: llm.index(video, tmp_path / "x.vidx", fps=0.0),
        "start and end": lambda: whole.caption(50.0, 10.0),
        "empty": lambda: whole.ask("  "),
    }.items():
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    aim = VideoLLM(*tiny_model(), compressors="fastv", keep=0.25)
    with pytest.raises(InputError, match="fastv"):
        indexed(aim, video, tmp_path / "y.vidx")


def test_a_video_that_changed_is_refused(llm: VideoLLM, video: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    shutil.copyfile(video, copy)
    path = tmp_path / "copy.vidx"
    indexed(llm, copy, path)
    write_video(copy, count=20, fps=2)
    with pytest.raises(InputError, match="changed"):
        VideoIndex.load(path, llm)


def test_expected_iou_is_the_mean_over_what_the_model_holds_for_possible() -> None:
    law = torch.softmax(torch.randn(2, 12, generator=torch.Generator().manual_seed(3)), -1)
    start, end = 3, 8
    mean = sum(
        float(law[0, i] * law[1, j]) * tiou((start, end), (i, j))
        for i in range(12)
        for j in range(12)
        if j > i
    )
    assert expected_iou((start, end), [law[0], law[1]]) == pytest.approx(mean, abs=1e-5)
    sure = torch.eye(12)
    assert expected_iou((3, 8), [sure[3], sure[8]]) == pytest.approx(1.0)


def test_cuts_lead_back_to_the_video() -> None:
    cuts = Cuts.around([(50.0, 60.0), (10.0, 20.0), (58.0, 70.0)], 5.0, 72.0)
    assert cuts.pieces == ((5.0, 25.0), (45.0, 72.0))
    joined, moments = cuts.moments(30)
    for a, b, true in zip(joined[:-1], joined[1:], moments[:-1], strict=True):
        back = cuts.back(float(a), float(b))
        assert back[0] == pytest.approx(float(true)) or back[1] >= float(true)
    assert cuts.back(0.0, 20.0) == (5.0, 25.0)


def test_windows_cover_the_video_and_end_with_it() -> None:
    for duration in (1.0, 59.0, 120.0, 121.0, 1000.0):
        level = Level(120.0, 64)
        starts, length = level.starts(duration), level.length(duration)
        assert starts[0] == 0 and starts[-1] + length == pytest.approx(duration)
        assert np.all(np.diff(starts) <= 60 + 1e-9)
    assert nearest(np.array([0.0, 1.0, 2.0]), np.array([-1.0, 0.4, 0.6, 9.0])).tolist() == [
        0,
        0,
        1,
        2,
    ]


def test_votes_that_agree_win() -> None:
    votes = [Vote((10, 20), 0.5), Vote((11, 21), 0.5), Vote((50, 52), 0.7)]
    assert grouped(votes)[0].span == (10, 20) or grouped(votes)[0].score == pytest.approx(0.5)
    won = elected(votes)
    assert tiou(won[0].span, (10, 20)) > 0.8
    assert won[1].span == (50, 52)
    assert sum(v.score for v in won) == pytest.approx(1.0)
