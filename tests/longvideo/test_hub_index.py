"""Indexes of hub models: answers as of the clip itself, true seconds, files that are kept safe."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_tiny import FAMILIES
from long_hub import save_speaker
from long_tiny import in_child, loud
from videos import cut_file, write_video

from vidllm import Answer, InputError, VideoIndex, VideoLibrary, VideoLLM, WorkError
from vidllm.cli.main import main
from vidllm.longvideo import many_looks
from vidllm.longvideo.looking import LookReader
from vidllm.longvideo.parts import folder_of
from vidllm.longvideo.store import IndexFile, write_file
from vidllm.models.cost.memory import tensor_peak

QUERY = "the red star spins"
SMALL = {"size": (64, 48)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by model type, each made once."""
    home, made = tmp_path_factory.mktemp("hub"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_speaker(home / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two and a half minutes."""
    return write_video(tmp_path_factory.mktemp("v") / "long.mp4", 150, fps=1, **SMALL)


@pytest.fixture(scope="module")
def llm(folders: Callable[[str], Path]) -> VideoLLM:
    return VideoLLM.from_pretrained(folders("qwen3_vl"))


@pytest.fixture(scope="module")
def index(llm: VideoLLM, long: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return made(llm, long, tmp_path_factory.mktemp("i") / "long.vidx")


def made(llm: VideoLLM, video: Path, path: Path, **more: Any) -> VideoIndex:
    return llm.index(video, path, **{"near": 0.0, "precision": "float32", **more})


def reader(index: VideoIndex) -> LookReader:
    assert isinstance(index.reader, LookReader)
    return index.reader


def same(one: Answer, other: Answer) -> None:
    assert one.raw == other.raw and one.text == other.text
    assert len(one.spans) == len(other.spans)
    for a, b in zip(one.spans, sorted(other.spans, key=lambda s: -s.score), strict=True):
        assert tuple(a) == pytest.approx(tuple(b), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_index_answers_as_the_clip_that_it_is(
    folders: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    """A video of no more frames than a clip: all of them, an odd number, in one look."""
    llm = VideoLLM.from_pretrained(folders(family), compressor="none")
    video = write_video(tmp_path / "v.mp4", 11, fps=1, **SMALL)
    index = made(llm, video, tmp_path / "v.vidx")
    clip, engine = llm.sample(video, fps=1.0), reader(index).engine
    for question in ("What happens?", "Who spins?"):
        same(index.ask(question), llm.ask(clip, question))
    grounded = index.ground_answer(QUERY)
    same(grounded, llm.ground_answer(clip, QUERY))
    assert grounded.spans and not any("looked" in note for note in grounded.notes)
    for times in (False, True):
        look = reader(index).first()
        assert look.whole
        told = engine.prompt_text(look.clip, "What?", times)
        assert told == llm.prompt_text(clip, "What?", times=times)
    receipt = index.ask("Who?").receipt
    assert (receipt.frames, receipt.tokens_full) == (11, llm.count(48, 64, 11))


@pytest.mark.parametrize("spec", ["uniform", "temporal-pool", "fastv", "semvid"])
def test_compressors_work_when_asked(
    folders: Callable[[str], Path], spec: str, tmp_path: Path
) -> None:
    """Also those that read the question or act inside the decoder, as on the clip itself."""
    llm = VideoLLM.from_pretrained(folders("llava_onevision"), compressor=spec, keep=0.25)
    video = write_video(tmp_path / "v.mp4", 12, fps=1, **SMALL)
    index = made(llm, video, tmp_path / "v.vidx")
    whole = llm.ask(llm.sample(video, fps=1.0), "What happens?")
    answer = index.ask("What happens?")
    same(answer, whole)
    assert answer.receipt.tokens_kept == whole.receipt.tokens_kept == 12
    other = VideoLLM.from_pretrained(folders("llava_onevision"), compressor="none")
    same(VideoIndex.load(index.path, other).ask("What happens?"), whole)  # as it was made


def test_fewer_tokens_a_frame_are_more_frames_a_look(
    folders: Callable[[str], Path], long: Path, tmp_path: Path
) -> None:
    frames = {}
    for keep in (1.0, 0.5, 0.1):
        llm = VideoLLM.from_pretrained(folders("internvl"), compressor="uniform", keep=keep)
        index = made(llm, long, tmp_path / f"{keep}.vidx", near=255.0)
        frames[keep] = index.facts["clip"]["frames"]
    assert frames == {1.0: 32, 0.5: 64, 0.1: 128}  # at most four times the usual ones
    # One group of frames of each block was encoded, and stands for the others.
    assert len(index.tensor("tokens")) == 2 and index.facts["near_error"] > 0


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava_onevision"])
def test_it_looks_closer_and_tells_true_seconds(
    folders: Callable[[str], Path], family: str, long: Path, tmp_path: Path
) -> None:
    llm = VideoLLM.from_pretrained(folders(family), compressor="none")
    index = made(llm, long, tmp_path / "x.vidx")
    asked, first = reader(index), reader(index).first()
    assert not first.whole and len(first.clip) == 32
    near = asked.look(60.0, 70.0)  # which is wider, so that it has all its frames
    assert near.whole and near.start <= 60 and near.end >= 70
    step, seconds = asked.shape.step, near.clip.seconds
    assert np.allclose(np.diff(seconds), 1.0) and len(seconds) == 32
    spread = first.clip.seconds[::step]
    assert spread[0] < 8 and spread[-1] > 140
    assert np.allclose(np.diff(spread), 150 / len(spread), atol=2)
    text = asked.engine.prompt_text(first.clip, "?", times=family == "llava_onevision")
    if family == "qwen3_vl":
        assert all(f"<{t + 0.5:.1f} seconds>" in text for t in spread)
    elif family == "llava_onevision":
        assert f"located at {spread[0]:.2f}s,{spread[1]:.2f}s" in text
    else:  # positions: seconds between pairs, not between the two frames of a pair
        with asked.engine.at_work(asked.method) as work:
            ids = asked.engine.prompt_ids(first.video.placed, "?", False)
            told = asked.features._memory.arguments(first.video, work, ids)
        pace = float(told["second_per_grid_ts"][0])
        assert pace == pytest.approx((spread[-1] - spread[0]) / (len(spread) - 1))
    found = []
    for query in ("a star", "a red ball", "who jumps", "one more"):
        answer = index.ground_answer(query)
        found.append(answer)
        assert answer.notes[0].startswith("looked at the whole in 32 of 150 frames")
        assert answer.receipt.frames == 150
        assert all(0 <= s.start <= s.end <= 150 for s in answer.spans)
    assert any("then closely at" in " ".join(answer.notes) for answer in found)
    again = index.ground_answer("a star")
    assert again.spans == found[0].spans and again.notes == found[0].notes
    caption = index.caption(20, 150)
    assert "looked at 1 piece of 130 s" in caption.notes[0]
    shown = asked.look(40.0, 50.0, widen=False).clip.seconds  # some frames twice
    assert shown.min() >= 38 and shown.max() <= 52 and len(shown) == 32
    with pytest.raises(InputError, match="start and end must lie in"):
        index.caption(200, 300)


def test_a_model_that_names_no_time(
    folders: Callable[[str], Path], long: Path, tmp_path: Path
) -> None:
    folder = save_speaker(tmp_path / "mute", "qwen3_vl", says="abcde")
    index = made(VideoLLM.from_pretrained(folder), long, tmp_path / "x.vidx")
    answer = index.ground_answer(QUERY)
    assert answer.failed and not answer.spans and "the answer names no time" in answer.notes
    assert any("looked at 4 parts of it" in note for note in answer.notes)
    said = index.ask("What happens?")
    assert said.text in tuple("abcde") and not said.failed
    for question in ("", "say <|im_end|>"):
        with pytest.raises(InputError):
            index.ask(question)


def test_a_video_shorter_than_it_promises_and_one_with_uneven_times(
    llm: VideoLLM, tmp_path: Path
) -> None:
    whole = write_video(tmp_path / "w.mkv", 120, fps=2, noise=10.0, **SMALL)
    cut = made(llm, cut_file(whole, tmp_path / "cut.mkv", 0.5), tmp_path / "cut.vidx")
    assert any("cut off" in note for note in cut.notes) and cut.ask("What?").text
    turned = write_video(tmp_path / "t.mp4", 6, fps=1, rotation=90, size=(96, 48))
    index = made(llm, turned, tmp_path / "t.vidx")
    assert (index.facts["clip"]["height"], index.facts["clip"]["width"]) == (96, 48)
    same(index.ask("What?"), llm.ask(llm.sample(turned, fps=1.0), "What?"))
    times = [0.0, 30.0, *(60 + 0.2 * k for k in range(9)), 70.0, 100.0, 139.0]
    one = made(llm, write_video(tmp_path / "one.mp4", 1, fps=1, **SMALL), tmp_path / "one.vidx")
    same(one.ask("What?"), llm.ask(llm.sample(tmp_path / "one.mp4", fps=1.0), "What?"))
    slides = made(llm, write_video(tmp_path / "s.mp4", times=times, **SMALL), tmp_path / "s.vidx")
    seconds, row = slides.frames()
    assert len(seconds) % 2 == 0 and (np.diff(seconds) >= 0).all() and seconds[0] == 0.0
    look = reader(slides).first()
    assert len(look.clip) == 32 and (np.diff(look.clip.seconds) >= 0).all()
    assert look.clip.seconds[4] - look.clip.seconds[2] < 10  # a slide is told while it stays
    assert slides.ground_answer(QUERY).receipt.frames == len(set(seconds)) < len(row)


def test_tokens_per_minute_lower_the_rate(llm: VideoLLM, long: Path, tmp_path: Path) -> None:
    index = made(llm, long, tmp_path / "few.vidx", tokens_per_minute=90)
    clip = index.facts["clip"]
    a_minute = 60 * index.facts["fps"] * clip["rows"] * clip["columns"] / clip["step"]
    assert 60 < a_minute <= 90 and len(index.tensor("tokens")) * 6 <= 2.5 * 90 + 12
    with pytest.raises(InputError, match="tokens: tokens_per_minute 2 is below that"):
        made(llm, long, tmp_path / "none.vidx", tokens_per_minute=2)
    with pytest.raises(InputError, match="leave out --tower"):
        made(llm, long, tmp_path / "none.vidx", tower="tome:keep=0.5")
    assert [path.name for path in tmp_path.iterdir()] == ["few.vidx"]


def test_whatever_ends_it_the_end_is_the_same(
    llm: VideoLLM, index: VideoIndex, long: Path, tmp_path: Path
) -> None:
    whole = index.path.read_bytes()
    assert made(llm, long, tmp_path / "chunk.vidx", chunk=3).path.read_bytes() == whole
    path = tmp_path / "killed.vidx"

    def die(done: float, total: float) -> None:
        os._exit(9)

    for _ in range(2):
        assert in_child(lambda: made(llm, long, path, progress=die), tmp_path / "said") == 9
    assert len(list(folder_of(path).glob("block-*"))) == 2
    last = made(llm, long, path)
    assert last.path.read_bytes() == whole and last.made is not None
    assert last.made["resumed"] == pytest.approx(128.0)
    assert made(llm, long, path).made is None  # it is there
    with pytest.raises(InputError, match="fps 1, not 2"):
        made(llm, long, path, fps=2.0)
    gone = tmp_path / "gone.mp4"
    gone.write_bytes(long.read_bytes())
    with pytest.raises(WorkError, match="is gone"):
        made(llm, gone, tmp_path / "gone.vidx", progress=lambda *_: gone.unlink(missing_ok=True))
    part = VideoIndex.load(tmp_path / "gone.vidx", llm)
    assert not part.facts["complete"] and part.ask("What?").text
    assert any("are indexed" in note for note in part.ground_answer(QUERY).notes)


def test_memory_does_not_grow_with_the_video(llm: VideoLLM, long: Path, tmp_path: Path) -> None:
    longer = write_video(tmp_path / "longer.mp4", 400, fps=1, **SMALL)
    peaks = []
    for number, video in enumerate((long, longer)):
        with tensor_peak(torch.device("cpu")) as peak:
            made(llm, video, tmp_path / f"{number}.vidx")
        peaks.append(peak.megabytes)
    assert 0 < peaks[1] < 1.1 * peaks[0]


def test_every_damage_is_refused(llm: VideoLLM, index: VideoIndex, tmp_path: Path) -> None:
    data, bad, draw = index.path.read_bytes(), tmp_path / "bad.vidx", random.Random(3)
    for place in [draw.randrange(8, 4000) for _ in range(40)] + [len(data) - 1, len(data) // 2]:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        bad.write_bytes(changed)
        with pytest.raises(InputError, match=r"bad\.vidx") as caught:
            VideoIndex.load(bad)
        assert "\n" not in str(caught.value)
    bad.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"bad\.vidx"):
        VideoIndex.load(bad)
    file, clip = IndexFile(index.path), index.facts["clip"]
    for words, change in {
        "field clip": {"clip": {**clip, "height": 480, "width": 64}},
        "tensor tokens": {"clip": {**clip, "tokens": 12}, "grid": [3, 4]},
        "memory is meant to hold": {"clip": {**clip, "height": 10**6, "frames": 10**6}},
        "field clip.step": {"clip": {**clip, "step": 1}},
        "two kinds of models": {"levels": [], "clip": None},
        "fields grid and carried": {"grid": [1, 1]},
    }.items():
        facts = {k: v for k, v in {**file.facts, **change}.items() if v is not None}
        tensors = {name: file[name] for name in file.names()}
        shapes = {name: (x.dtype, tuple(x.shape)) for name, x in tensors.items()}
        write_file(bad, shapes, facts, iter(tensors.items()))
        with pytest.raises(InputError, match=rf"bad\.vidx.*{words}") as caught:
            VideoIndex.load(bad, llm)
        assert "\n" not in str(caught.value)


def test_another_models_index_is_refused(
    folders: Callable[[str], Path], llm: VideoLLM, index: VideoIndex, long: Path, tmp_path: Path
) -> None:
    other = VideoLLM.from_pretrained(save_speaker(tmp_path / "other", "qwen3_vl", seed=1))
    native = loud()
    for stranger in (other, native, VideoLLM.from_pretrained(folders("internvl"))):
        with pytest.raises(InputError, match=r"another model \(Qwen3-VL\) than this one"):
            VideoIndex.load(index.path, stranger)
    with pytest.raises(InputError, match=r"another model \(Qwen3-VL\) than the shipped one"):
        VideoIndex.load(index.path).ask("What?")
    own = native.index(long, tmp_path / "own.vidx", fps=1.0)
    with pytest.raises(InputError, match="another model than this one"):
        VideoIndex.load(own.path, llm)
    half = VideoLLM.from_pretrained(folders("qwen3_vl"), dtype="bfloat16")
    assert VideoIndex.load(index.path, half).ask("What?").text  # the same weights
    options = folders("qwen3_vl") / "video_preprocessor_config.json"
    text = options.read_text()
    try:  # the same weights, and other pixels
        options.write_text(text.replace('"shortest_edge": 64', '"shortest_edge": 128'))
        with pytest.raises(InputError, match="another model"):
            VideoIndex.load(index.path, VideoLLM.from_pretrained(folders("qwen3_vl")))
    finally:
        options.write_text(text)


def test_what_cannot_be_indexed_is_refused_by_name_and_reason(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    video = write_video(tmp_path / "v.mp4", 8, fps=1, **SMALL)
    for spec in ("visionzip", "tome"):
        llm = VideoLLM.from_pretrained(folders("internvl"), compressor=spec, keep=0.5)
        with pytest.raises(InputError, match=f"{spec}.* works with the vision tower"):
            made(llm, video, tmp_path / "x.vidx")
    mixing = VideoLLM.from_pretrained(folders("llava_onevision"))
    mixing.model.model.multi_modal_projector.register_forward_pre_hook(
        lambda _module, args: (args[0] + args[0].mean(0, keepdim=True),)
    )
    with pytest.raises(InputError, match=r"LLaVA-OneVision cannot be indexed: .* frames around it"):
        made(mixing, video, tmp_path / "x.vidx")
    wide = VideoLLM.from_pretrained(folders("llava_onevision"))
    with torch.no_grad():
        wide.model.model.multi_modal_projector.linear_2.weight.mul_(1e6)
    with pytest.raises(InputError, match=r"do not fit into float16: .*--precision float32"):
        made(wide, video, tmp_path / "x.vidx", precision="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert made(wide, video, tmp_path / "x.vidx").ask("What?").text


def test_a_library_ranks_what_fits(
    llm: VideoLLM, index: VideoIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = VideoLibrary(tmp_path / "library", llm)
    library.add(index.path)
    for number in range(3):
        video = write_video(tmp_path / f"v{number}.mp4", 8 + 10 * number, fps=1, **SMALL)
        library.add(video, fps=1.0)
    hits = library.ground(QUERY)
    assert hits.notes == () and hits
    scores = [hit.span.score for hit in hits]
    assert len(set(scores)) > 1
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    one = VideoIndex.load(hits[0].index, llm)
    spans = [(s.start, s.end) for s in one.ground(QUERY)]
    assert (hits[0].span.start, hits[0].span.end) in spans and library.thumbnail(hits[0])
    monkeypatch.setattr(many_looks, "LEAST", 2)  # the others are seen as a whole alone
    few = VideoLibrary(library.folder, llm).ground(QUERY, limit=1)
    assert len(few) == 1
    with pytest.raises(InputError, match="another model, such as"):
        VideoLibrary(library.folder, loud()).add(tmp_path / "v0.mp4", force=True)
    assert VideoLibrary(library.folder, loud()).ground(QUERY).notes


def test_questions_leave_the_index_and_the_next_answer_alone(
    llm: VideoLLM, index: VideoIndex, tmp_path: Path
) -> None:
    before = index.path.read_bytes()
    fresh = [_plain(LookReader(index, index.engine).ask(q)) for q in ("What?", "Who spins?")]
    held = LookReader(index, index.engine)
    for _ in range(2):
        assert [_plain(held.ask(q)) for q in ("What?", "Who spins?")] == fresh
    copy = VideoIndex.load(index.save(tmp_path / "copy.vidx"), llm)
    assert copy.path.read_bytes() == before == index.path.read_bytes()
    assert [_plain(copy.ask(q)) for q in ("What?", "Who spins?")] == fresh
    clip = llm.sample(index.facts["source"]["path"], frames=8)
    llm.ask(clip, "What?")
    index.ask("What?")
    memory: Any = llm.engine
    assert memory.memory.last(clip) is not None  # the model's own last clip stays remembered


def _plain(answer: Answer) -> Answer:
    return replace(answer, receipt=replace(answer.receipt, seconds={}))


def test_from_the_shell(
    folders: Callable[[str], Path],
    long: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = ["--model", str(folders("qwen3_vl")), "--device", "cpu"], tmp_path / "x.vidx"
    assert main(["index", str(long), "--out", str(out), *model]) == 0
    assert str(out) in capsys.readouterr().out
    assert main(["ground", str(out), QUERY, "--json", *model]) == 0
    told = json.loads(capsys.readouterr().out)
    index = VideoIndex.load(out, VideoLLM.from_pretrained(folders("qwen3_vl")))
    assert told["spans"][0][:2] == pytest.approx(index.ground(QUERY)[0][:2], abs=1e-3)
    assert main(["ask", str(out), "What?", *model]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["ask", str(out), "What?"]) == 2
    assert "another model (Qwen3-VL)" in capsys.readouterr().err
    assert main(["ask", str(out), "What?", "--keep", "0.5", *model]) == 2
    assert "--keep does not go here" in capsys.readouterr().err
    assert main(["library", "add", str(tmp_path / "lib"), str(out), *model]) == 0
    assert main(["library", "ground", str(tmp_path / "lib"), QUERY, "--json", *model]) == 0
    assert json.loads(capsys.readouterr().out.strip())["hits"]
