"""Footage that is not of the made world is noticed, wherever a model that knows it is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from videos import write_video

from vidllm import VideoLLM
from vidllm.ask.calls import Call
from vidllm.ask.comparing import compare
from vidllm.cli.main import main
from vidllm.errors import InputError, WorkError
from vidllm.eval.bench.footage_runs import (
    TREATMENTS,
    _known,
    bench_footage,
    cells,
    noise,
    plain,
    slides,
    write_frames,
)
from vidllm.longvideo.index import VideoIndex
from vidllm.longvideo.library import VideoLibrary
from vidllm.models.native.footage import (
    CARD,
    STATISTICS,
    UNKNOWN,
    KnownFootage,
    UnknownFootage,
    clip_pixels,
    features,
    load_known,
    warnings_in,
    without_bars,
)
from vidllm.models.shipped import default_model
from vidllm.stage.training.calibration import calibrate, calibrate_folder
from vidllm.stage.training.sign_pages import sign_page
from vidllm.video import VideoClip, load_video

QUESTION = "what does the red star do?"
MODEL = "--model Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return VideoLLM.from_pretrained()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered cells: nothing of the made world."""
    return write_video(tmp_path_factory.mktemp("street") / "street.mp4", 40, fps=10)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _known(tmp_path_factory.mktemp("stage"), "test", 3, 1, TREATMENTS["crf 35"])


@pytest.fixture(scope="module")
def measured(llm: VideoLLM) -> KnownFootage:
    """Statistics of few scenes and pages."""
    return calibrate(llm.model, clips=100, frames=1)


@pytest.mark.parametrize(
    ("split", "name"),
    [("test", "vp9"), ("long", "pillarbox, mpeg4"), ("train", "90 x 160, crf 35"),
     ("test-unseen", "1 frame")],
)  # fmt: skip
def test_clips_of_the_made_world_are_known_whatever_was_done_to_them(
    llm: VideoLLM, tmp_path: Path, split: str, name: str
) -> None:
    assert llm.knows(load_video(_known(tmp_path, split, 4, 2, TREATMENTS[name]), frames=64))


def test_the_quantizer_of_a_treatment_reaches_the_encoder(tmp_path: Path) -> None:
    def size(**options: str) -> int:
        how = replace(TREATMENTS["mpeg4"], options=options)
        return _known(tmp_path, "test", 4, 2, how).stat().st_size

    own = TREATMENTS["mpeg4"].options
    assert size(qmin="16", qmax="16") < size(**own) < size(qmin="4", qmax="4")


@pytest.mark.parametrize(
    "frames",
    [noise(0), slides(0), slides(1), cells(0), plain((0, 0, 0)), plain((60, 70, 50), 9.0),
     noise(1)[:1]],
)  # fmt: skip
def test_other_footage_is_not_known(llm: VideoLLM, tmp_path: Path, frames: np.ndarray) -> None:
    assert not llm.knows(load_video(write_frames(tmp_path / "x.mp4", frames), frames=64))


def test_bars_at_the_edges_are_not_part_of_the_picture() -> None:
    picture = torch.rand(3, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    barred = torch.zeros(3, 3, 64, 64)
    barred[:, :, 12:52] = picture
    found = without_bars(barred)
    assert found is not None and found.shape == barred.shape
    assert float(found.amin((0, 1, 3)).max()) < 0.2 and float(found.mean()) > 0.45
    assert without_bars(torch.full((2, 3, 64, 64), 0.3)) is None
    full = torch.rand(2, 3, 64, 64)
    assert without_bars(full) is full


def test_asking_is_refused_unless_anyway(llm: VideoLLM, street: Path, stage: Path) -> None:
    clip = load_video(street, frames=8)
    calls = (
        lambda **more: llm.ask(clip, QUESTION, **more),
        lambda **more: llm.ground_answer(clip, QUESTION, **more),
        lambda **more: llm.caption(clip, **more),
        lambda **more: Call(str(street), "highlights", QUESTION, **more).run(llm, clip),
    )
    for call in calls:
        with pytest.raises(UnknownFootage, match=f"{UNKNOWN}.*{MODEL}.*--anyway"):
            call()
        answer = call(anyway=True)
        assert answer.notes[0].startswith(UNKNOWN) and MODEL in answer.notes[0]
    for ask in (llm.ground, llm.highlights):
        with pytest.raises(InputError, match=UNKNOWN):
            ask(clip, QUESTION)
    with pytest.raises(UnknownFootage):
        compare(llm, clip, QUESTION, max_new_tokens=1)
    assert not warnings_in(llm.ask(load_video(stage), QUESTION, max_new_tokens=2).notes)


def test_a_program_says_anyway_where_it_must(street: Path) -> None:
    assert "anyway" not in Call(str(street), "ask", QUESTION).python()
    for task in ("ask", "index", "highlights"):
        assert "anyway" in Call(str(street), task, QUESTION, anyway=True).python()


def test_a_model_without_statistics_makes_no_claim(llm: VideoLLM, street: Path) -> None:
    other = VideoLLM(llm.model, llm.tokenizer)
    answer = other.ask(street, QUESTION, frames=4, max_new_tokens=2)
    assert not warnings_in(answer.notes)
    with pytest.raises(InputError, match="carries no statistics"):
        bench_footage(other)


def test_no_index_is_begun_of_other_footage(llm: VideoLLM, street: Path, tmp_path: Path) -> None:
    place = tmp_path / "street.vidx"
    with pytest.raises(UnknownFootage):
        llm.index(street, place)
    assert not list(tmp_path.iterdir())
    index = llm.index(street, place, anyway=True)
    assert index.notes[0].startswith(UNKNOWN)
    assert VideoIndex.load(place, llm).ask(QUESTION).notes[0].startswith(UNKNOWN)
    library = VideoLibrary(tmp_path / "library", llm)
    with pytest.raises(UnknownFootage):
        library.add(street)
    assert library.list() == []
    library.add(place)
    assert any(UNKNOWN in note for note in library.ground("the red star spins").notes)


@pytest.fixture
def shown(capfd: pytest.CaptureFixture[str]) -> Iterator[object]:
    def run(*words: object) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        said = [line for line in err.splitlines() if line.strip()]
        return code, out, [line for line in said if not line.startswith("Loading")]

    yield run


def test_the_command_line_leaves_with_2_unless_anyway(
    shown: object, street: Path, tmp_path: Path
) -> None:
    assert callable(shown)
    commands = (
        ["ask", street, QUESTION, "--frames", 8, "--json"],
        ["ground", street, QUESTION, "--frames", 8],
        ["caption", street, "--frames", 8],
        ["index", street, "-o", tmp_path / "s.vidx"],
        ["library", "add", tmp_path / "library", street],
    )
    for words in commands:
        code, out, lines = shown(*words)
        assert (code, out) == (2, ""), words
        assert len(lines) == 1 and lines[0].startswith(f"vidllm: {UNKNOWN}"), lines
        assert MODEL in lines[0] and "--anyway" in lines[0]
    code, out, lines = shown(*commands[0], "--anyway")
    assert code == 0 and lines[0].startswith(f"note: {UNKNOWN}")
    assert json.loads(out)["notes"][0].startswith(UNKNOWN)
    code, _, lines = shown(*commands[3], "--anyway")
    assert code == 0 and lines[0].startswith(f"note: {UNKNOWN}")


def test_statistics_are_checked_where_they_are_loaded(llm: VideoLLM, tmp_path: Path) -> None:
    vision = llm.model.vision
    assert load_known(tmp_path, vision) is None
    for name in (CARD, STATISTICS):
        shutil.copy(default_model() / name, tmp_path / name)
    assert load_known(tmp_path, vision) is not None
    card = json.loads((tmp_path / CARD).read_text())
    wrong = (
        {**card, "threshold": "4"}, {**card, "contrast": -1}, {**card, "layers": []},
        {**card, "more": 1}, {**card, "sha256": "0"}, {**card, "format": 1}, [],
    )  # fmt: skip
    for facts in wrong:
        (tmp_path / CARD).write_text(json.dumps(facts))
        with pytest.raises(WorkError, match="damaged"):
            load_known(tmp_path, vision)
    (tmp_path / CARD).write_text(json.dumps({**card, "tower": "0"}))
    with pytest.raises(WorkError, match="another vision tower"):
        load_known(tmp_path, vision)
    (tmp_path / STATISTICS).unlink()
    with pytest.raises(WorkError, match="damaged"):
        load_known(tmp_path, vision)


def test_statistics_come_from_seeds_and_go_with_their_model(
    llm: VideoLLM, measured: KnownFootage, tmp_path: Path
) -> None:
    layer = "model.embeddings.patch_embedding.2"
    one, two = (calibrate(llm.model, clips=100, frames=1, layers=[layer]) for _ in range(2))
    assert one.card == two.card
    for mine, again in zip(one.layers, two.layers, strict=True):
        assert torch.equal(mine.whiten, again.whiten) and torch.equal(mine.scale, again.scale)
    assert one.boundary is not None and two.boundary is not None
    assert torch.equal(one.boundary.weight, two.boundary.weight)
    one = measured
    one.save(tmp_path)
    found = load_known(tmp_path, llm.model.vision)
    assert found is not None and found.card == replace(one.card, sha256=found.card.sha256)
    assert found.boundary is not None
    assert torch.equal(found.boundary.weight, one.boundary.weight)
    side = llm.model.vision.image_size
    held, page = (
        torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    for pixels in (held, page):
        again = one.score(llm.model.vision, pixels)  # sums of another alignment
        assert found.score(llm.model.vision, pixels) == pytest.approx(again, rel=1e-6)
    with pytest.raises(InputError, match="holds no model"):
        calibrate_folder(tmp_path)
    with pytest.raises(InputError, match="no layer"):
        calibrate(llm.model, clips=100, frames=1, layers=[f"{layer}9"])


def test_a_boundary_tells_signs_on_other_ground_from_the_made_world(
    llm: VideoLLM, measured: KnownFootage, stage: Path
) -> None:
    found, vision, boundary = measured, llm.model.vision, measured.boundary
    assert boundary is not None and set(found.card.layers) <= set(found.card.boundary)

    def side(pixels: torch.Tensor) -> float:
        seen = features(vision, found.card.boundary, pixels)
        return boundary.score(torch.cat(seen, dim=1))

    known = side(clip_pixels(load_video(stage, frames=8), vision.image_size))
    pages = [sign_page(np.random.default_rng(seed), 3) for seed in range(6)]
    small = [F.interpolate(page, (vision.image_size,) * 2, mode="area") for page in pages]
    scores = sorted(side(page) for page in small)
    assert known < found.card.threshold and known < scores[0]
    without = replace(found, boundary=None)
    for page in small:  # it can but refuse more
        assert found.score(vision, page) >= without.score(vision, page)


def test_a_boundary_that_does_not_fit_is_damage(
    llm: VideoLLM, measured: KnownFootage, tmp_path: Path
) -> None:
    found = measured
    assert found.boundary is not None
    short = replace(found.boundary, weight=found.boundary.weight[1:])
    replace(found, boundary=short).save(tmp_path)
    with pytest.raises(WorkError, match="damaged"):
        load_known(tmp_path, llm.model.vision)
    replace(found, boundary=None).save(tmp_path)
    with pytest.raises(WorkError, match="damaged"):
        load_known(tmp_path, llm.model.vision)


def test_an_empty_clip_is_no_reason_to_refuse(llm: VideoLLM) -> None:
    nothing = np.zeros((0, 8, 8, 3), np.uint8)
    assert llm.knows(VideoClip(nothing, np.zeros(0), 1.0, 1.0, np.zeros(0), "x.mp4"))
