"""Systems without an LLM: trained in a folder, gone on with, asked, refused, and scored."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import run_page
from run_tiny import done, order, tiny_options
from safetensors.torch import load_file
from tiny import save_tiny

from vidllm import InputError, VideoClip, VideoLLM, load_video
from vidllm.cli.main import main
from vidllm.demo.host import Host
from vidllm.demo.opening import EXAMPLES, model_card
from vidllm.demo.settings import Settings
from vidllm.eval.bench.claims.alignment_claim import measure_alignment
from vidllm.eval.bench.claims.choice_claim import measure_choice
from vidllm.eval.bench.claims.claim_rows import ClaimSettings, claim_table
from vidllm.eval.bench.claims.recognition_claim import measure_recognition
from vidllm.eval.bench.footage_runs import bench_footage
from vidllm.eval.tasks import get_task
from vidllm.models.cost.shapes import shape_of
from vidllm.models.heads.sentence_aligner import SecondsByQuestion, SentenceAligner
from vidllm.models.heads.systems import load_system
from vidllm.models.native.footage import UnknownFootage
from vidllm.models.shipped import sample_videos, weight_files
from vidllm.progress.interruption import Halt
from vidllm.recipes import get_recipe
from vidllm.recipes.courses import CourseSettings, find_course
from vidllm.recipes.courses.alignment import ROUNDS, AlignmentLesson, narrated_seconds
from vidllm.recipes.courses.head_settings import HeadSettings
from vidllm.recipes.courses.head_start import painted
from vidllm.recipes.courses.video_llm import BATCH
from vidllm.stage.training.checkpoint import CHECKPOINT

NAMES = ("nasva", "tem-adapter", "dist", "squeezetime")
#: What each answers, and what none of the others is asked.
ASKED = {
    "nasva": "when does the red star spin ?",
    "tem-adapter": "what does the red star do ? A. spins B. jumps",
    "dist": "what happens ?",
    "squeezetime": "Which action is it? A. move left B. move right",
}
TASKS = {"nasva": "stage-align", "tem-adapter": "stage-choice", "dist": "stage-actions"}


def trained(name: str, out: Path, **settings: Any) -> Path:
    given = {"size": "tiny", "steps": 4, "log_every": 1, "quiet": True, **settings}
    recipe = get_recipe(name)
    given |= {} if recipe.course == "recognition" else {"clips": 4}
    return find_course(recipe).train(recipe, CourseSettings(out=str(out), **given))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any]) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("heads")
    made = {name: trained(name, home / name) for name in NAMES if name != "squeezetime"}
    ran = cli("train", "squeezetime", "--out", home / "squeezetime", "--size", "tiny",
              "--steps", 4, "--minutes", 1, "--json")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["step"] == 4
    return {**made, "squeezetime": home / "squeezetime"}


@pytest.fixture(scope="module")
def sample() -> Path:
    return next(path for path in sample_videos() if "red-star" in path.name)


def test_a_course_leaves_a_model_its_log_and_a_card(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        card = (folder / "README.md").read_text(encoding="utf-8")
        head, title = card.removeprefix("---\n").split("---\n\n", 1)
        assert head.startswith("license: apache-2.0\nlibrary_name: vidllm\ntags: [video, ")
        assert title.startswith(f"# {name}\n") and "4 of 4 steps" in card and "Toy" in card
        told = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        assert told["recipe"] == name and told["step"] == 4
        rows = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 4 and all("total" in row for row in rows)
        assert json.loads((folder / "config.json").read_text())["recipe"] == name
    with pytest.raises(InputError, match="holds a trained model already"):
        trained("nasva", folders["nasva"])


def test_a_trainings_folder_ships_without_what_it_goes_on_from(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(folders["nasva"], tmp_path / "own")
    for name in (".lock", "cells.bin", "cells.bin.json", "samples/.DS_Store", "samples/v.mp4"):
        file = home / name if "/" not in name else tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    aside = {CHECKPOINT, "features.bin", "features.bin.json", "start"}
    assert aside <= {entry.name for entry in home.iterdir()}
    monkeypatch.setenv("VIDLLM_WEIGHTS", str(tmp_path))
    models = ("README.md", "config.json", "log.jsonl", "model.safetensors", "tokenizer.json",
              "tokenizer_config.json", "training.json")  # fmt: skip
    assert weight_files() == [*(f"own/{name}" for name in models), "samples/v.mp4"]


def test_what_is_given_counts_where_other_courses_have_it_anyway(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    usual = BATCH  # of courses with an LLM
    given = ("--size", "tiny", "--steps", 1, "--batch", usual, "--lr", 0.002, "--json")
    ran = cli("train", "squeezetime", "--out", tmp_path / "run", *given)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((tmp_path / "run" / "training.json").read_text())
    assert told["batch"] == usual and told["lr"] == 0.002
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert (
        f"vidllm train squeezetime --size tiny --steps 1 --batch {usual} --lr 0.002 --seed 0`"
        in card
    )


def test_the_card_names_the_options_that_were_given_and_no_place(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    more = {"ema": "0.5", "warmup": 3, "features": str(tmp_path / "own.bin")}
    start = folders["tem-adapter"] / "start"
    home = trained("nasva", tmp_path / "run", init=str(start), steps=1, more=more)
    card = (home / "README.md").read_text(encoding="utf-8")
    given = "--init start --option features=own.bin --option warmup=3 --option ema=0.5`"
    assert given in card and str(tmp_path) not in card and str(start.parent) not in card
    stamp = (home / "training.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in stamp and str(start.parent) not in stamp


@pytest.mark.parametrize("name", ["tem-adapter", "squeezetime"])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = trained(name, tmp_path / "whole")
    parts = tmp_path / "parts"
    trained(name, parts, minutes=1e-9)
    assert json.loads((parts / "training.json").read_text())["step"] == 1
    with pytest.raises(InputError, match="seed"):
        trained(name, parts, resume=True, seed=7)
    with pytest.raises(InputError, match="lr"):
        trained(name, parts, resume=True, lr=0.5)
    with pytest.raises(InputError, match=r"is trained with ema 0\.998, not 0\.5"):
        trained(name, parts, resume=True, more={"ema": "0.5"})
    trained(name, parts, resume=True)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("squeezetime", ["--init", "vidllm-stage"], "squeezetime is trained from nothing"),
        ("squeezetime", ["--clips", "8"], "--clips is for recipes that keep features of clips"),
        ("dist", ["--clips", "8"], "dist sees none twice: leave it out"),
        ("dist", ["--option", "features=x.bin"], "--option features is for recipes that keep"),
        ("nasva", ["--option", "out=elsewhere"], "no setting 'out' here"),
        ("nasva", ["--option", "seed=3"], "no setting 'seed' here"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    name: str, words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", name, "--out", str(tmp_path / "run"), "--size", "tiny", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and says in said.err and len(said.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_no_gradient_goes_through_the_frozen_tower(folders: dict[str, Path]) -> None:
    saved = load_file(folders["dist"] / "model.safetensors")
    assert saved and not any(".vit." in key for key in saved)
    system = load_system(folders["dist"]).train()
    tower = system.recogniser.encoder.vit  # type: ignore[union-attr]
    start = system.frozen.model.vision.state_dict()
    assert all(torch.equal(v, start[k]) for k, v in tower.state_dict().items())
    size = tower.image_size
    batch = {"frames": torch.rand(2, 16, 3, size, size), "label": torch.tensor([0, 1])}
    batch["seconds"] = torch.arange(16.0).repeat(2, 1)
    system.loss(batch)["total"].backward()
    assert all(p.grad is None for p in tower.parameters())
    assert all(p.grad is not None for p in system.recogniser.encoder.stem.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_system_answers_its_questions_and_refuses_the_rest_in_a_line(
    name: str, folders: dict[str, Path], sample: Path
) -> None:
    llm = VideoLLM.from_pretrained(folders[name], recipe=name)
    clip = llm.sample(sample)
    answer = llm.ask(clip, ASKED[name])
    assert answer.text and answer.receipt.tokens_full == len(clip)
    assert len(llm.preview(clip)) == len(clip)  # as the page shows it: nothing is left out
    with pytest.raises(InputError, match="a system without an LLM, which has no prefill"):
        shape_of(str(folders[name]))
    assert llm.ask(sample, ASKED[name]).text == answer.text
    if name == "nasva":
        (span,) = answer.spans
        assert 0 <= span.start < span.end <= clip.duration
        assert llm.ground(clip, ASKED[name])[0] == span
        assert len(clip) == 1 + int(clip.duration)  # a frame a second
        assert llm.ask(clip, ["At which second does the video show 'the red star spins'?"] * 2)
    else:
        with pytest.raises(InputError, match="tells no times"):
            llm.ground(clip, "the red star spins")
    if name == "squeezetime":
        assert answer.text in ("A. move left", "B. move right")
        (note,) = answer.notes
        share = re.fullmatch(r".* names one of 2 actions whatever a clip shows: .* by (\d+)%", note)
        assert share and 50 <= int(share[1]) <= 100
        with pytest.raises(InputError, match="does not know the action 'spins'"):
            llm.ask(clip, "what happens? A. spins B. move left")
    for wrong in ("describe the video .", ""):
        with pytest.raises(InputError) as told:
            llm.ask(clip, wrong)
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="describes nothing"):
        llm.caption(clip)
    with pytest.raises(InputError, match="no LLM that could read fewer tokens"):
        VideoLLM.from_pretrained(folders[name], compressor="aim", keep=0.5)


def test_a_narrated_clip_is_learnt_from_as_it_is_asked_about(tmp_path: Path) -> None:
    settings = HeadSettings(str(tmp_path), size="tiny", clips=5, steps=1)
    lesson = AlignmentLesson(get_recipe("nasva"), settings)
    lesson.prepare(lambda done, total: None, Halt())
    assert lesson.features is not None
    assert Counter(k for clip in lesson.clips for k in clip) == dict.fromkeys(range(5), ROUNDS)
    number = max(range(len(lesson.clips)), key=lambda k: len(lesson.clips[k]))
    chosen, start, frames, seconds = lesson.clips[number], 0.0, [], []
    assert len(chosen) > 1
    for scene in map(lesson.scene, chosen):
        shown = narrated_seconds(scene)
        frames.append(painted(scene, shown, lesson.frozen.size, scene.seed))
        seconds.append(torch.from_numpy(shown + start).float())
        start += scene.duration
    asked = lesson.frozen(torch.cat(frames), torch.cat(seconds))
    torch.testing.assert_close(lesson.features[number], asked, atol=0.02, rtol=0.01)  # bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_the_web_page_suggests_what_a_system_answers(name: str, folders: dict[str, Path]) -> None:
    llm, settings = VideoLLM.from_pretrained(folders[name]), Settings(model=str(folders[name]))
    host = Host(llm, settings)
    for clip in (*sample_videos(), None):
        suggested = host.questions(clip)
        assert suggested and set(suggested) <= EXAMPLES  # else they would stay with other clips
        llm.engine.check_questions(suggested, None)
    host.close()
    card = model_card(llm, settings)
    assert "It has no LLM: it " in card and "said by those who trained it" in card


def test_a_head_is_refused_without_the_model_it_stands_on(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((folders["nasva"] / "config.json").read_text())
    for wrong, words in ((tmp_path / "nowhere", "is missing"), (None, "another model")):
        home = tmp_path / words.replace(" ", "-")
        home.mkdir()
        start = str(wrong or folders["tem-adapter"] / "start")
        mark = config["mark"] if wrong else "0" * 16
        told = {**config, "start": start, "mark": mark}
        (home / "config.json").write_text(json.dumps(told))
        with pytest.raises(InputError, match=words):
            load_system(home)
    save_tiny(tmp_path / "start", vision="conv")
    with pytest.raises(InputError, match="image transformer"):
        trained("dist", tmp_path / "conv", init=str(tmp_path / "start"), size="small")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_made_clips_scores_a_system(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    kind = type(get_task(TASKS[name]))
    task = kind(chapters=1) if name == "nasva" else kind()  # type: ignore[call-arg]
    options = tiny_options(folders[name], frames=None)
    asked = order(TASKS[name], tmp_path, None, None, None, task=task, limit=2)
    results = done(asked, options).results
    (one,) = results["results"].values()
    assert results["answers"] == results["expected"] > 0 and one["failed"] == 0
    assert one["scores"]["parse_failures"] == 0
    assert 0 <= one["scores"][task.headline] <= 1


def test_the_page_runs(sample: Path) -> None:
    swaps = {
        '"long.mp4"': repr(str(sample)),
        '"the red star spins", 64': '"the red star spins", 5',
    }
    assert len(run_page("docs/heads.md", {}, swaps)["few"]) == 5


def test_the_shipped_aligner_finds_what_the_shipped_llm_finds(sample: Path) -> None:
    llm = VideoLLM.from_pretrained(recipe="nasva")
    (span,) = llm.ground(str(sample), "the red star spins")
    (other,) = VideoLLM.from_pretrained().ground(str(sample), "the red star spins")
    shared = min(span.end, other.end) - max(span.start, other.start)
    assert shared > 0.4 * (span.end - span.start)


def test_a_shipped_system_is_loaded_by_its_name() -> None:
    assert load_system("vidllm-dist").config.recipe == "dist"
    with pytest.raises(InputError, match=r"vidllm-stage is no system without an LLM: VideoLLM\."):
        load_system("vidllm-stage")
    with pytest.raises(InputError, match="no model 'vidllm-dits': did you mean vidllm-dist"):
        load_system("vidllm-dits")


def test_a_trained_aligner_chooses_frames_for_a_model(
    folders: dict[str, Path], sample: Path
) -> None:
    from vidllm.compressors.nasva import Nasva
    from vidllm.video import load_video

    system = load_system(folders["nasva"])
    assert isinstance(system, SentenceAligner)
    clip = load_video(sample, fps=1)
    few = system.choose(clip, "the red star spins", 5)
    assert len(few) == 5 and set(few.seconds) <= set(clip.seconds)
    llm = VideoLLM.from_pretrained(folders["nasva"] / "start")
    method = Nasva(keep=0.25, head=SecondsByQuestion(system))
    answer = llm.ask(clip, "when does the red star spin ?", compressor=method)
    assert answer.receipt.tokens_kept == round(0.25 * answer.receipt.tokens_full)


def test_claims_are_measured_arm_by_arm(tmp_path: Path, cli: Callable[..., Any]) -> None:
    few: dict[str, Any] = {"size": "tiny", "steps": 2, "seeds": 1, "tested": 2, "clips": 4}
    saved: list[int] = []
    aligned = measure_alignment(
        ClaimSettings(tmp_path, **few, arms=("similarity", "projection", "nasva")),
        lambda rows: saved.append(len(rows)),
    )
    assert saved == sorted(saved) and len(saved) == 3
    recall = [r for r in aligned if r["measure"] == "R@1 narrated"]
    assert [r["arm"] for r in recall] == ["similarity", "projection", "nasva"]
    assert all(r["low"] <= r["value"] <= r["high"] for r in recall)
    chosen = measure_choice(ClaimSettings(tmp_path / "choice", **few, arms=("blind", "both")))
    assert {r["arm"] for r in chosen if r["measure"] == "accuracy"} == {"blind", "both"}
    few = {**few, "tested": 10, "clips": 0}
    rows = measure_recognition("dist", ClaimSettings(tmp_path / "dist", **few))
    told = {(r["arm"], r["measure"]): r["value"] for r in rows}
    assert told["dist", "tower weights with a gradient"] == 0
    assert told["tuned", "tower weights with a gradient"] > 0
    assert told["dist", "MB of a step"] > 0 and told["dist", "GFLOPs a clip"] > 0
    assert told["frozen", "order"] == 0.5  # by construction, without time
    assert claim_table(rows).row_count == 4
    ran = cli("bench", "claim", "squeezetime", "--size", "tiny", "--steps", 2, "--seeds", 1,
              "--tested", 10, "--out", tmp_path / "claim.csv", "--json")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "claim.csv").open(encoding="utf-8") as file:
        arms = {row["arm"] for row in csv.DictReader(file)}
    assert arms == {"framewise", "squeezetime"}


@pytest.mark.parametrize("name", NAMES)
def test_footage_that_the_frozen_model_does_not_know_is_refused(
    name: str, tmp_path: Path, sample: Path
) -> None:
    """By the shipped model, which knows its own footage; nothing is learnt in a step."""
    home = trained(name, tmp_path / name, size="small", steps=1, batch=2)
    llm = VideoLLM.from_pretrained(str(home))
    assert llm.footage is not None and llm.knows(load_video(sample))
    grain = torch.rand(8, 96, 96, 3, generator=torch.Generator().manual_seed(0)) * 255
    other = VideoClip.from_frames(grain.to(torch.uint8).numpy(), fps=2.0)
    with pytest.raises(UnknownFootage):
        llm.ask(other, ASKED[name])
    assert "means nothing" in llm.ask(other, ASKED[name], anyway=True).notes[0]
    with pytest.raises(InputError, match="the model under it"):
        bench_footage(llm)


def test_a_head_without_the_model_that_knows_its_footage_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    told = json.loads((folders["squeezetime"] / "config.json").read_text(encoding="utf-8"))
    assert told["guard"] == "vidllm-stage" and not told["start"]
    home = shutil.copytree(folders["squeezetime"], tmp_path / "head")
    (home / "config.json").write_text(json.dumps({**told, "guard": str(tmp_path / "none")}))
    with pytest.raises(InputError, match="the model whose footage this head knows is missing"):
        VideoLLM.from_pretrained(str(home))
    (home / "config.json").write_text(json.dumps({**told, "guard": ""}))  # makes no claim
    assert VideoLLM.from_pretrained(str(home)).footage is None
