"""Whatever ends the making of an index, what was done is kept and the end is the same."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from long_tiny import FPS, in_child, indexed, loud
from videos import write_video

from vidllm import InputError, VideoIndex, VideoLLM, WorkError
from vidllm.errors.disk import unwritten
from vidllm.longvideo import parts, reading
from vidllm.longvideo.parts import Parts, folder_of

MODES = ("windows", "carried")


@pytest.fixture(scope="module", params=MODES)
def llm(request: pytest.FixtureRequest) -> VideoLLM:
    return loud(streaming=request.param == "carried")


@pytest.fixture(scope="module")
def one() -> VideoLLM:
    """For what does not depend on the mode."""
    return loud()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty seconds: five blocks and two levels of windows."""
    return write_video(tmp_path_factory.mktemp("v") / "long.mp4", 160, fps=2, size=(64, 48))


@pytest.fixture(scope="module")
def whole(llm: VideoLLM, video: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an undisturbed run."""
    return indexed(llm, video, tmp_path_factory.mktemp("i") / "whole.vidx").path.read_bytes()


def test_the_bytes_do_not_depend_on_how_frames_are_read(
    llm: VideoLLM, video: Path, whole: bytes, tmp_path: Path
) -> None:
    for chunk in (3, 64):
        path = tmp_path / f"{chunk}.vidx"
        assert indexed(llm, video, path, chunk=chunk).path.read_bytes() == whole
    with pytest.raises(InputError, match="chunk"):
        indexed(llm, video, tmp_path / "none.vidx", chunk=0)


@pytest.mark.parametrize("block", [17, 400])
def test_other_blocks_give_the_same_tokens(
    llm: VideoLLM, video: Path, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = indexed(llm, video, tmp_path / "usual.vidx", near=0.0)
    monkeypatch.setattr(reading, "BLOCK", block)
    other = indexed(llm, video, tmp_path / "other.vidx", near=0.0)
    for index in (usual, other):
        assert index.facts["carried"] == (llm.model.temporal[0].causal)
    (seconds, row), (times, others) = usual.frames(), other.frames()
    assert seconds.tolist() == times.tolist()
    assert torch.allclose(
        usual.tensor("tokens")[row.long()], other.tensor("tokens")[others.long()], atol=1e-5
    )
    for name in ("features.0", "features.1", "span.0", "position.1"):
        assert torch.allclose(usual.tensor(name), other.tensor(name), atol=1e-5), name
    assert [t for t, _ in usual.thumbnails()] == [t for t, _ in other.thumbnails()]


def kept_blocks(path: Path) -> int:
    try:
        return sum(file.name.startswith("block-0000") for file in folder_of(path).iterdir())
    except FileNotFoundError:  # not yet, or the run is whole
        return 0


def test_twenty_kills_end_as_an_undisturbed_run(
    llm: VideoLLM, video: Path, whole: bytes, tmp_path: Path
) -> None:
    """Killed ten times each mode, behind blocks spread over the whole run, its last steps too."""
    path, draw = tmp_path / "killed.vidx", random.Random(7)
    began = time.perf_counter()
    assert in_child(lambda: indexed(llm, video, path), tmp_path / "said") == 0
    lasts, found = time.perf_counter() - began, []
    for more in (1, 2, 0, 1, 0, 1, 2, 0, 3, 1):
        if path.exists():  # it was quicker: once more from the start
            path.unlink()
        found.append(kept_blocks(path))
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            try:
                indexed(llm, video, path)
            finally:
                os._exit(0)
        ended = 0
        while not ended and kept_blocks(path) < found[-1] + more:
            ended = os.waitpid(child, os.WNOHANG)[0]
            time.sleep(0.001)
        if not ended:
            time.sleep(draw.uniform(0.0, 0.2) * lasts)  # and somewhere in the next one
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert max(found) > 0  # some found what one before had kept
    path.unlink(missing_ok=True)
    assert indexed(llm, video, path).path.read_bytes() == whole
    assert not folder_of(path).exists() and not list(tmp_path.glob("*.new"))


def test_a_video_that_vanishes_leaves_a_part_that_goes_on(
    llm: VideoLLM, video: Path, whole: bytes, tmp_path: Path
) -> None:
    copy, path = tmp_path / "copy" / "long.mp4", tmp_path / "part.vidx"
    copy.parent.mkdir()
    shutil.copyfile(video, copy)
    with pytest.raises(WorkError, match=r"long\.mp4 is gone after 0:\d\d of 1:20") as caught:
        indexed(llm, copy, path, progress=lambda done, total: copy.unlink(missing_ok=True))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    part = VideoIndex.load(path, llm)
    assert 16 <= part.duration < 80 and not part.facts["complete"]
    assert part.notes == (f"only the first 0:{part.duration:.0f} of 1:20 are indexed",)
    assert part.frames()[0].max() < part.duration
    answer = part.ground_answer("the red star spins")
    assert part.notes[0] in answer.notes
    assert all(span.end <= part.duration for span in answer.spans)
    # In carried mode the folder now also holds blocks behind the encoders: they do not count.
    shutil.copyfile(video, copy)
    index = indexed(llm, copy, path)
    assert index.made is not None and 0 < index.made["resumed"] < 80
    assert index.facts["complete"] and index.notes == ()
    paths = (str(copy).encode(), str(video).encode())
    assert index.path.read_bytes()[-9000:] == whole[-9000:]
    assert paths[0] in index.path.read_bytes()


def test_a_video_that_changes_midway_is_noticed(one: VideoLLM, video: Path, tmp_path: Path) -> None:
    copy, path = tmp_path / "long.mp4", tmp_path / "long.vidx"
    shutil.copyfile(video, copy)

    def change(done: float, total: float) -> None:
        with copy.open("rb+") as file:
            file.seek(copy.stat().st_size // 3)
            file.write(b"other bytes")

    with pytest.raises(WorkError, match=r"long\.mp4 changed while it was read"):
        indexed(one, copy, path, progress=change)
    assert not path.exists()
    with pytest.raises(InputError, match="begun with another video"):
        indexed(one, copy, path)
    assert indexed(one, copy, path, force=True).facts["complete"]


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_file_that_may_not_grow_is_said_and_the_rest_kept(
    llm: VideoLLM, video: Path, whole: bytes, share: float, tmp_path: Path
) -> None:
    """Files may grow to a share of the finished one: too small for a block, and for the end."""
    path, said = tmp_path / "room.vidx", tmp_path / "said"
    limit = int(share * len(whole))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        indexed(llm, video, path)

    assert in_child(work, said) == 1
    line = said.read_text(encoding="utf-8")
    assert "\n" not in line and line.startswith("the file would be larger than the system allows")
    assert "make room and run it again" in line
    assert not path.exists() and not list(tmp_path.glob("*.new"))
    assert not list(folder_of(path).glob("*.tmp"))
    index = indexed(llm, video, path)
    assert index.path.read_bytes() == whole
    assert index.made is not None and index.made["resumed"] == pytest.approx(
        0 if share < 0.1 else 80
    )


def test_a_disk_that_fills_midway_leaves_a_part_that_is_asked(
    llm: VideoLLM, video: Path, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "full.vidx"

    def fill(done: float, total: float) -> None:
        if done == 32:  # every write to the next block fails: no space left
            (folder_of(path) / "block-000002.tmp").symlink_to("/dev/full")

    with pytest.raises(
        WorkError, match=r"the disk is full.* after 0:32 of 1:20: .*full\.vidx holds"
    ):
        indexed(llm, video, path, progress=fill)
    part = VideoIndex.load(path, llm)
    assert part.notes == ("only the first 0:32 of 1:20 are indexed",)
    assert part.ground_answer("the red star spins").spans
    assert indexed(llm, video, path).path.read_bytes() == whole


def test_a_full_disk_while_the_file_is_written(
    llm: VideoLLM, video: Path, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "full.vidx"
    (tmp_path / "full.vidx.new").symlink_to("/dev/full")  # every write to it fails: no space
    with pytest.raises(WorkError, match=r"the disk is full.*waits in .*full\.vidx\.part"):
        indexed(llm, video, path)
    assert not path.exists()
    index = indexed(llm, video, path)
    assert index.path.read_bytes() == whole
    assert index.made is not None and index.made["resumed"] == pytest.approx(80)
    with pytest.raises(WorkError, match="the disk is full"):
        raise unwritten("x", RuntimeError("I/O error: No space left on device (os error 28)"))


def _unplug(copy: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    copy.unlink()


def _forbid(_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(parts, "_whole", refuse)  # who tests may be root, who may write anywhere


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (_unplug, r"gone after 0:\d\d of 1:20: \S+ holds what was indexed;"
                  " run it again when the video is back$"),
        (_forbid, r"cannot be written: Permission denied after 0:16 of 1:20: \S+ holds what was"
                  " indexed; allow it to be written and run it again$"),
    ],
)  # fmt: skip
def test_the_remedy_is_that_of_the_cause(
    one: VideoLLM,
    video: Path,
    cause: Callable[[Path, pytest.MonkeyPatch], None],
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy, path = tmp_path / "copy.mp4", tmp_path / "cause.vidx"
    shutil.copyfile(video, copy)

    def happen(done: float, total: float) -> None:
        if done == 16:
            cause(copy, monkeypatch)

    with pytest.raises(WorkError, match=remedy):
        indexed(one, copy, path, progress=happen)
    assert path.is_file()


def test_a_video_without_one_whole_picture_says_what_is_wrong_with_it(
    one: VideoLLM, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "noise.mkv", 30, size=(64, 48), gop=1)
    places = [packet.pos for packet in _packets(path)]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place + 4 : place + 24] = b"\xff" * 20  # the slice header of each picture
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"none of the frames of noise\.mkv could be read") as said:
        indexed(one, path, tmp_path / "noise.vidx")
    assert "room" not in str(said.value) and not folder_of(tmp_path / "noise.vidx").exists()


def _packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_stopped_by_hand_it_goes_on(
    llm: VideoLLM, video: Path, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "stopped.vidx"

    def stop(done: float, total: float) -> None:
        raise KeyboardInterrupt

    for kept in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            indexed(llm, video, path, progress=stop)
        assert len(Parts(folder_of(path), _settings(path))) == kept
    told: list[tuple[float, float]] = []
    index = indexed(llm, video, path, progress=lambda *at: told.append(at))
    assert index.path.read_bytes() == whole
    assert told == [(48.0, 80.0), (64.0, 80.0), (80.0, 80.0)]


def _settings(path: Path) -> dict[str, object]:
    return dict(json.loads((folder_of(path) / "index.json").read_text(encoding="utf-8")))


def test_an_index_that_is_there_is_opened_or_refused(
    one: VideoLLM, video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "there.vidx"
    first = indexed(one, video, path)
    assert first.made is not None
    before = path.stat().st_mtime_ns
    assert indexed(one, video, path).made is None and path.stat().st_mtime_ns == before
    other = write_video(tmp_path / "other.mp4", 20, fps=4, size=(64, 48))
    for words, call in {
        "fps 4, not 2": lambda: indexed(one, video, path, fps=2.0),
        "near 1, not 0": lambda: indexed(one, video, path, near=0.0),
        "precision float32, not float16": lambda: indexed(one, video, path, precision="float16"),
        r"another video \(long.mp4\)": lambda: indexed(one, other, path),
        "another model": lambda: indexed(loud(seed=2), video, path),
        "is no index": lambda: indexed(one, video, other, force=True),
        "is a folder": lambda: indexed(one, video, tmp_path),
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert path.stat().st_mtime_ns == before
    assert indexed(one, other, path, force=True).facts["source"]["name"] == "other.mp4"


def test_a_folder_of_blocks_is_for_one_run_of_one_kind(
    one: VideoLLM, video: Path, tmp_path: Path
) -> None:
    path = tmp_path / "blocks.vidx"
    with pytest.raises(KeyboardInterrupt):
        indexed(one, video, path, progress=_interrupt)
    held = Parts(folder_of(path), _settings(path))
    with pytest.raises(InputError, match=r"another process is making blocks\.vidx"):
        indexed(one, video, path)
    held.close()
    with pytest.raises(InputError, match=f"begun with fps {FPS:g}, not 2"):
        indexed(one, video, path, fps=2.0)
    (folder_of(path) / "index.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="damaged: delete the folder"):
        indexed(one, video, path)
    with pytest.raises(KeyboardInterrupt):
        indexed(one, video, path, force=True, progress=_interrupt)
    (folder_of(path) / "block-000000.safetensors").write_bytes(b"nothing of use")
    with pytest.raises(InputError, match=r"block-000000.* is damaged: delete it"):
        indexed(one, video, path)


def _interrupt(done: float, total: float) -> None:
    raise KeyboardInterrupt
