"""Recipes as whole systems: what they are made of, what models can carry them, what is listed."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny, write_video

from vidllm import VideoLLM
from vidllm.ask.serving import offers
from vidllm.cli.listing import entries, table
from vidllm.cli.main import main
from vidllm.compressors import build
from vidllm.encoders.heads import head_names
from vidllm.encoders.temporal import temporal_names
from vidllm.errors import InputError
from vidllm.eval.tasks import task_names
from vidllm.models.loading import model_parts
from vidllm.models.parts import ModelParts
from vidllm.models.shipped import weights_dir
from vidllm.recipes import RECIPES, Recipe, get_recipe, list_recipes
from vidllm.recipes.courses import FILES, CourseSettings
from vidllm.recipes.courses.variant import as_trained
from vidllm.recipes.models import check_carries, model_of, ships
from vidllm.timecode import get_timecode

EVERY = [pytest.param(r, id=r.name) for r in list_recipes()]
#: What the shipped kind of model is made of: a ViT, state spaces, relative time tokens.
USUAL = ModelParts("clip_vision_model", ("ssd", "ssd"), "relative", ("model", "mrt5"))


@pytest.mark.parametrize("recipe", EVERY)
def test_a_recipe_is_made_of_parts_that_there_are(recipe: Recipe) -> None:
    build(recipe.compressors, keep=1.0 if recipe.keep is None else recipe.keep)
    for spec, weight in recipe.mixture:
        assert build(spec) is not None and weight > 0
    assert set(recipe.temporal_names) <= set(temporal_names())
    assert recipe.head is None or recipe.head in head_names()
    assert recipe.time_code is None or get_timecode(recipe.time_code).name == recipe.time_code
    assert recipe.tasks and set(recipe.tasks) <= set(task_names())
    assert recipe.summary and recipe.claim is not None
    assert recipe.course == "none" or (recipe.course in FILES and recipe.trained and recipe.steps)
    assert ("lora" in recipe.trained) == (recipe.lora is not None)
    assert recipe.refusal("itself", recipe.parts()) == "" or not recipe.answers


@pytest.mark.parametrize("recipe", [r for r in EVERY if r.values[0].course == "video-llm"])  # type: ignore[attr-defined]
def test_a_video_llm_meets_its_own_reduction_in_training(recipe: Recipe) -> None:
    met = {name.split(":")[0] for spec, _ in recipe.mixture for name in spec.split(",")}
    own = {name.split(":")[0] for name in recipe.compressors.split(",")}
    assert own & met
    assert abs(sum(weight for _, weight in recipe.mixture) - 1) < 1e-9


def test_the_list_says_what_is_trained_whether_weights_ship_and_for_which_tasks() -> None:
    found = {entry["name"]: entry for entry in entries("recipes")}
    assert list(found) == list(RECIPES)
    assert json.loads(json.dumps(list(found.values())))  # as `--json` prints it
    lines = dict(line.split(None, 1) for line in table(list(found.values())).splitlines())
    assert "trains projector and llm, weights: vidllm-lita" in lines["lita"]
    assert "trains projector and temporal and llm, no weights shipped" in lines["storm"]
    assert "for stage, activitynet-rtl" in lines["lita"]
    assert "nothing trained" in lines["aim"] and "aim:keep=0.25,aim-prune" in lines["aim"]
    assert "weights: vidllm-stage" in lines["plain"]


@pytest.mark.parametrize(
    ("name", "parts", "reason"),
    [
        ("storm", {"temporal": ()}, "reduces behind a temporal encoder, and it has none"),
        ("storm", {"temporal": ("identity",)}, "and it has none"),
        ("storm", {"temporal": ("lmu",)}, "has the temporal encoder ssd, and it has lmu"),
        ("lita", {"time_code": "text"}, "tells time by the relative code, and it by text"),
        ("vtg-llm", {}, "tells time by the absolute code, and it by relative"),
        ("timesuite", {"time_code": "text"}, "needs trained weights of timesuite, and it has none"),
        ("flextok", {}, "needs trained weights of flextok, and it has none"),
        ("mrt5", {"learned": ("model",)}, "needs trained weights of mrt5, and it has none"),
        ("pyra", {"vision": "conv"}, "has the tower clip_vision_model, and it has conv"),
        ("tempme", {}, "is a system of its own"),
        ("nasva", {}, "is a system of its own"),
        ("tem-adapter", {}, "is a system of its own"),
        ("dist", {}, "is a system of its own"),
        ("squeezetime", {}, "is a system of its own"),
    ],
)  # fmt: skip
def test_a_model_that_lacks_a_part_is_refused_by_name_and_reason(
    name: str, parts: dict[str, Any], reason: str
) -> None:
    made = ModelParts(**{**vars(USUAL), **parts})
    with pytest.raises(InputError) as caught:
        get_recipe(name).check_model("it", made)
    said = str(caught.value)
    assert f"recipe {name!r}" in said and reason in said and len(said.splitlines()) == 1
    lacks = "needs trained weights" in reason or "it has none" in reason
    has = {} if lacks else {"learned": get_recipe(name).learned}
    own = ModelParts(**{**vars(made), **has, "recipe": name})  # its other parts may be others
    assert get_recipe(name).refusal("it", own) == (str(caught.value) if lacks else "")


def test_a_variant_differs_from_its_recipe_in_the_method_alone() -> None:
    for name, other in (("lita", "uniform"), ("vtg-llm", "vtg-llm:timed=false"),
                        ("timesuite", "spatial-pool")):  # fmt: skip
        recipe = get_recipe(name)
        made = as_trained(recipe, CourseSettings(out="", compressor=other))
        own = [(spec.replace(f"{name}:keep", f"{other}:keep"), w) for spec, w in recipe.mixture]
        assert list(made.mixture) == own
    storm = as_trained(get_recipe("storm"), CourseSettings(out="", compressor="aim"))
    assert {spec.split(":")[0] for spec, _ in storm.mixture} == {"none", "aim"}
    with pytest.raises(InputError, match="the parameters of flextok would learn nothing"):
        as_trained(get_recipe("plain"), CourseSettings(out="", compressor="flextok"))
    assert as_trained(get_recipe("lita"), CourseSettings(out="", compressor="none")).keep == 1
    with pytest.raises(InputError, match=r"none keeps every token: leave out --keep 0\.5"):
        as_trained(get_recipe("lita"), CourseSettings(out="", compressor="none", keep=0.5))


@pytest.mark.parametrize("recipe", ["storm", "dist"])
def test_no_training_begins_with_a_system_that_is_no_video_llm(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", recipe, "--size", "tiny", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--init", "vidllm-dist"]) == 2
    said = capsys.readouterr().err
    assert "is a system without an LLM" in said and len(said.splitlines()) == 1


def test_who_names_another_model_for_what_ships_is_told_to_leave_it_out(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    with pytest.raises(InputError) as caught:
        VideoLLM.from_pretrained(folder, recipe="dist")
    said = str(caught.value)
    assert said.endswith("is none of it: leave out --model: its weights ship as vidllm-dist")
    with pytest.raises(InputError, match=r"vidllm train tem-adapter --out DIR\) and give"):
        VideoLLM.from_pretrained(folder, recipe="tem-adapter")
    llm = VideoLLM.from_pretrained(folder)
    found = {offer.name: offer.reason for offer in offers(llm) if offer.kind == "recipe"}
    assert (
        "its weights ship" in found["dist"] and "vidllm train tem-adapter" in found["tem-adapter"]
    )


def test_what_needs_no_training_is_carried_by_a_usual_model() -> None:
    carried = [r.name for r in list_recipes() if not r.refusal("it", USUAL)]
    assert {"plain", "storm", "storm-sampling", "aim", "aim-merge", "mustdrop", "lita"} <= set(
        carried
    )
    assert "mrt5" in carried and "flextok" not in carried


def test_trained_weights_that_ship_are_asked_where_no_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "weights"
    save_tiny(home / "usual")
    shutil.copytree(home / "usual", home / "own")
    file = home / "own" / "config.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told |= {"recipe": "lita", "compressors": "lita", "keep": 0.5}
    file.write_text(json.dumps(told), encoding="utf-8")
    (home / "manifest.json").write_text('{"default": "usual", "files": {}}', encoding="utf-8")
    monkeypatch.setenv("VIDLLM_WEIGHTS", str(home))
    lita = get_recipe("lita")
    monkeypatch.setitem(RECIPES, "lita", Recipe(**{**vars(lita), "weights": "own"}))
    assert ships(get_recipe("lita")) and not ships(get_recipe("storm"))
    assert Path(model_of(get_recipe("lita"))).name == "own"
    assert Path(model_of(get_recipe("storm"))).name == "usual" == Path(model_of(None)).name
    assert Path(model_of(get_recipe("lita"), "usual")).name == "usual"  # who names one gets it
    asked = VideoLLM.from_pretrained(recipe="lita")
    assert asked.config.recipe == "lita" and asked.compressor.keep == lita.keep
    assert model_parts(str(home / "own")).recipe == "lita"


def test_ask_and_eval_refuse_a_recipe_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "tiny")
    video = write_video(tmp_path / "v.mp4", [i / 4 for i in range(8)])
    capsys.readouterr()
    for words in (
        ["ask", str(video), "when ?"],
        ["ground", str(video), "it spins"],
        ["caption", str(video)],
        ["index", str(video), "--out", str(tmp_path / "v.vidx")],
        ["eval", "stage", "--data", str(tmp_path / "data"), "--limit", "1"],
    ):
        assert main([*words, "--model", str(folder), "--recipe", "vtg-llm"]) == 2, words
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1, said.err
        assert "recipe 'vtg-llm' tells time by the absolute code" in said.err, said.err


def test_a_course_is_a_file_with_a_training() -> None:
    module = import_module("vidllm.recipes.courses.video_llm")
    assert callable(module.train)
    with pytest.raises(InputError, match="no recipe 'strom': did you mean storm"):
        get_recipe("strom")


def test_a_model_carries_its_own_recipe(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    check_carries(get_recipe("storm"), str(folder))
    with pytest.raises(InputError, match="recipe 'flextok' needs trained weights of flextok"):
        check_carries(get_recipe("flextok"), str(folder))


@pytest.mark.parametrize("name", ["dist", "squeezetime"])
def test_what_ships_names_the_actions_of_clips_it_never_saw(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "stage-actions", "--recipe", name, "--limit", "8", "--seed", "11"]
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*words, *places, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"].values()
    assert found["scores"]["accuracy"] >= 0.75  # a guess has 0.1; 0.92 and 0.985 over 200 clips


def test_the_lita_that_ships_finds_an_event_by_a_twentieth_of_the_tokens() -> None:
    llm = VideoLLM.from_pretrained(recipe="lita")
    answer = llm.ask(weights_dir() / "samples" / "red-star.mp4", "when does the red star spin?",
                     keep=0.05)  # fmt: skip
    (span,) = answer.spans  # the event is from 15.8 to 22.5 s
    assert answer.receipt.tokens_kept == 51 and answer.receipt.model == "vidllm-lita"
    assert min(span.end, 22.5) - max(span.start, 15.8) > 0.8 * (22.5 - 15.8)


@pytest.mark.parametrize("recipe", [r for r in EVERY if r.values[0].course == "video-llm"])  # type: ignore[attr-defined]
def test_without_an_option_training_meets_the_recipe_s_own_mixture(recipe: Recipe) -> None:
    assert as_trained(recipe, CourseSettings(out="")).mixture == recipe.mixture
