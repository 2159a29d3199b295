"""Course "video-llm": every recipe is trained whole, goes on, and is asked afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tiny import write_charades
from safetensors.torch import load_file
from tiny import save_tiny, write_video

from vidllm import VideoLLM
from vidllm.cli.main import main
from vidllm.encoders.temporal import temporal_names
from vidllm.encoders.temporal.alike import USUAL, encoders_like, parameters_of
from vidllm.errors import InputError, WorkError
from vidllm.models.loading import load_native
from vidllm.recipes import get_recipe, list_recipes
from vidllm.recipes.courses import CourseSettings
from vidllm.recipes.courses.adapters import merged_state
from vidllm.recipes.courses.reducing import DeletionControl
from vidllm.recipes.courses.start_model import load_start
from vidllm.recipes.courses.variant import as_trained, read_mixture
from vidllm.recipes.courses.video_llm import Tuning, train
from vidllm.stage.training.checkpoint import read_checkpoint
from vidllm.stage.training.run_folder import TrainingFolder

NAMES = [r.name for r in list_recipes() if r.course == "video-llm"]
QUESTION = "when does the red star spin ?"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", [i / 4 for i in range(16)])


def settings(out: Path, **more: Any) -> CourseSettings:
    usual = {"size": "tiny", "steps": 2, "batch": 1, "clips": 2, "workers": 0, "log_every": 1}
    return CourseSettings(out=str(out), **{**usual, "quiet": True, **more})


def run(name: str, out: Path, **more: Any) -> Path:
    return train(get_recipe(name), settings(out, **more))


def needs_peft(name: str) -> None:
    if get_recipe(name).lora is not None:
        pytest.importorskip("peft", reason=f"{name} has adapters: pip install 'vidllm[lora]'")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_trained_and_then_asked_by_name(
    name: str, video: Path, tmp_path: Path
) -> None:
    needs_peft(name)
    recipe = get_recipe(name)
    mixture = f"{recipe.mixture[-1][0]}"
    folder = run(name, tmp_path / "out", mixture=mixture, lr=1e-2)
    told = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert (told["recipe"], told["step"], told["steps"]) == (name, 2, 2)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"vidllm train {name} --out out" in card and str(tmp_path) not in card
    assert len((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    llm = VideoLLM.from_pretrained(folder, recipe=name, frames=8)
    assert llm.config.recipe == name and llm.compressor.name == recipe.compressors.replace(
        ":keep=0.25", ""
    )
    assert not llm.compressor.notes()  # what is learned was trained, and is found beside the model
    answer = llm.ask(video, QUESTION, max_new_tokens=2)
    whole = answer.receipt.tokens_full
    assert answer.receipt.tokens_kept == max(1, round(whole * (recipe.keep or 1)))


@pytest.mark.parametrize("name", ["lita", "vtg-llm", "pyra", "mrt5"])
def test_what_is_trained_moves_and_all_else_stays(name: str, tmp_path: Path) -> None:
    needs_peft(name)
    base = save_tiny(tmp_path / "base", vision="vit")
    mixture = get_recipe(name).mixture[-1][0]
    told = settings(tmp_path / "out", init=str(base), mixture=mixture, lr=0.05)
    folder = TrainingFolder(tmp_path / "out")
    with folder.claimed():
        tuning = Tuning(as_trained(get_recipe(name), told), told, folder)
        before = {k: v.detach().clone() for k, v in tuning.plain.named_parameters()}
        tuning.go()
    after = dict(tuning.plain.named_parameters())
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    trained = {id(p) for some in tuning.parts.values() for p in some}
    frozen = {k for k, v in after.items() if id(v) not in trained and not k.startswith("heads.")}
    assert frozen and not moved & frozen
    for part, parameters in tuning.parts.items():
        own = {k for k, v in after.items() if any(v is p for p in parameters)}
        assert moved & own, f"nothing of {part} moved"
    state = merged_state(tuning.model)
    assert not any("lora" in key or "base_layer" in key for key in state)
    if name != "vtg-llm":  # which tells time in other words
        assert state.keys() == load_native(str(base), None)[0].state_dict().keys()


@pytest.mark.parametrize("name", ["storm", "mrt5"])
def test_a_stopped_training_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    straight = run(name, tmp_path / "straight", steps=3)
    halted = run(name, tmp_path / "halted", steps=3, minutes=1e-9)
    assert read_checkpoint(halted).step == 1
    with pytest.raises(InputError, match="add --resume to go on"):
        run(name, tmp_path / "halted", steps=3)
    with pytest.raises(InputError, match="is trained with seed 0, not 1"):
        run(name, tmp_path / "halted", steps=3, seed=1, resume=True)
    with pytest.raises(InputError, match="is trained with recipe"):
        run("lita", tmp_path / "halted", steps=3, resume=True)
    run(name, tmp_path / "halted", steps=3, resume=True)
    one, two = weights(straight), weights(halted)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert (straight / "log.jsonl").read_text().count("\n") == 3
    with pytest.raises(InputError, match="nothing to resume"):
        run(name, tmp_path / "none", resume=True)


def test_trainings_share_a_folder_of_cells_and_an_encoder_may_begin_afresh(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", vision="vit")
    cells = tmp_path / "cells"
    cells.mkdir()
    more = {"cells": str(cells)}
    kept = run("storm", tmp_path / "kept", init=str(base), lr=1e-12, more=more)
    (file,) = cells.glob("*.bin")
    made = file.stat().st_mtime_ns
    more["fresh"] = "temporal"
    told = {"init": str(base), "lr": 1e-12, "minutes": 1e-9}
    fresh = run("storm", tmp_path / "fresh", more=more, **told)
    assert [file] == list(cells.glob("*.bin")) and file.stat().st_mtime_ns == made
    before, one, two = (weights(folder) for folder in (base, kept, fresh))
    name = next(k for k, v in one.items() if k.startswith("temporal.") and v.dim() > 1 and v.any())
    assert torch.equal(one[name], before[name].to(one[name]))
    assert not torch.equal(two[name], one[name])
    assert str(tmp_path) not in (fresh / "training.json").read_text(encoding="utf-8")
    assert "--option fresh=temporal" in (fresh / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="is trained with fresh"):
        run("storm", tmp_path / "fresh", resume=True, more={**more, "fresh": ""}, **told)
    with pytest.raises(InputError, match="fresh can be temporal alone"):
        run("storm", tmp_path / "other", more={"fresh": "tower"})
    with pytest.raises(InputError, match="is trained with without"):
        run("storm", tmp_path / "fresh", resume=True, more={**more, "without": "captions"}, **told)
    with pytest.raises(InputError, match="without can be captions alone"):
        run("storm", tmp_path / "other", more={"without": "answers"})


@pytest.mark.parametrize("name", temporal_names())
def test_every_temporal_encoder_takes_the_place_of_another(name: str, tmp_path: Path) -> None:
    specs = encoders_like(USUAL, name, 32)
    if name not in ("identity", "tsm", "temporal-conv"):
        wanted = parameters_of(USUAL, 32)
        # So small, one layer of some is larger than all of others; at width 192 it is 0.6 to 1.5.
        assert 0.4 * wanted < parameters_of(specs, 32) < 4 * wanted
    made = settings(tmp_path / "out", temporal=name)
    recipe = as_trained(get_recipe("storm"), made)
    start = load_start(recipe, made)
    found = [spec["name"] for spec in start.model.config.temporal]
    assert found == ([] if name == "identity" else [name, name]) or name == "ssd"
    assert all("head_dim" not in spec for spec in specs if name == "h3")  # outer products there
    if name == "mambamixer":  # its channels mix over the frame's own tokens
        sides = [spec["slots"] for spec in start.model.config.temporal]
        assert sides == [start.model.grid_side**2] * 2
    assert start.fresh == (set() if name == "ssd" else {"temporal"})
    tokens = torch.randn(1, 4, 16, 32)
    mixed = start.model.mix(tokens, torch.arange(4.0)[None])
    assert mixed.shape == tokens.shape
    if name not in ("tsm",):  # it starts as the identity, so that the start is as good as it was
        assert torch.allclose(mixed, tokens, atol=1e-5) or name in _NOT_ZERO


_NOT_ZERO = ("mambamixer", "s-mamba", "temporal-conv")


def test_one_trains_on_videos_of_ones_own(video: Path, tmp_path: Path) -> None:
    data = write_charades(tmp_path / "data", videos=2)
    base = save_tiny(tmp_path / "base", vision="vit")
    words = {"init": str(base), "data": str(data), "task": "charades", "batch": 2, "frames": 4}
    folder = run("storm", tmp_path / "out", **words)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "data, annotations as of charades" in card
    assert VideoLLM.from_pretrained(folder, recipe="storm").ask(video, "when ?", max_new_tokens=2)
    (data / "videos" / "V0001.mp4").unlink()
    with pytest.raises(InputError, match="no video 'V0001'"):
        run("storm", tmp_path / "gone", **words)
    (data / "videos" / "V0001.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="V0001"):
        run("storm", tmp_path / "bad", **{**words, "steps": 4})
    with pytest.raises(InputError, match=r"has no answers that a model could be taught|needs"):
        run("storm", tmp_path / "odd", **{**words, "task": "msrvtt"})


def test_changes_to_a_shipped_model_are_kept_as_changes(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "weights"
    save_tiny(home / "usual", vision="vit")
    model, _ = load_native(str(home / "usual"), None)
    model.save_pretrained(
        home / "usual", state_dict={k: v.bfloat16() for k, v in model.state_dict().items()}
    )
    rounded, _ = load_native(str(home / "usual"), None)
    (home / "manifest.json").write_text('{"default": "usual", "files": {}}', encoding="utf-8")
    monkeypatch.setenv("VIDLLM_WEIGHTS", str(home))
    folder = run("lita", tmp_path / "out", size="small", frames=8)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["base"] == "usual" and config["recipe"] == "lita"
    assert not any(name.startswith(("vision.", "temporal.")) for name in weights(folder))
    asked = VideoLLM.from_pretrained(folder, recipe="lita")
    tower = asked.model.vision.state_dict()
    assert all(torch.equal(v, tower[k]) for k, v in rounded.vision.state_dict().items())
    assert asked.ask(video, QUESTION, max_new_tokens=2).text is not None
    again = run("lita", tmp_path / "again", init=str(folder), frames=8)
    assert (
        "base" not in json.loads((again / "config.json").read_text())
        or not json.loads((again / "config.json").read_text())["base"]
    )
    save_tiny(home / "usual", vision="vit")
    with pytest.raises(WorkError, match="is another one now"):
        VideoLLM.from_pretrained(folder)
    shutil.rmtree(home / "usual")
    (home / "manifest.json").write_text('{"default": "other", "files": {}}', encoding="utf-8")
    with pytest.raises(WorkError, match="is not in the weights folder"):
        VideoLLM.from_pretrained(folder)


def test_the_controller_weighs_more_while_too_little_is_deleted() -> None:
    control = DeletionControl()
    weight = [float(control.weight(torch.tensor(0.1), 0.8)) for _ in range(5)]
    assert weight == sorted(weight) and weight[0] == pytest.approx(0.05 * 0.7 + 0.7e-5)
    assert float(control.weight(torch.tensor(1.0), 0.0)) >= 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"compressor": "fastv", "keep": 0.5}, "fastv:keep=1 works inside the decoder"),
        ({"compressor": "aim,aim-prune"}, "leaves open|inside the decoder"),
        ({"mixture": "aim"}, "how much should aim keep in training"),
        ({"mixture": "aim:keep=0.5@x"}, "--mixture is a list such as"),
        ({"temporal": "mambo"}, "no temporal encoder 'mambo'"),
        ({"time_code": "dates"}, "no time code 'dates'"),
        ({"vision": "eye"}, "no vision tower 'eye'"),
        ({"data": "missing"}, "missing"),
        ({"task": "charades"}, "--task goes with --data DIR"),
        ({"size": "huge", "init": ""}, "size must be small or tiny"),
        ({"lora": 4, "compressor": "mrt6"}, "no compressor 'mrt6'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        run("storm", tmp_path / "out", **more)
    assert len(str(caught.value).splitlines()) == 1


def test_a_mixture_is_written_as_a_list() -> None:
    assert read_mixture("none@1; aim:keep=0.25@3") == (("none", 0.25), ("aim:keep=0.25", 0.75))
    assert read_mixture("evs:keep=0.5") == (("evs:keep=0.5", 1.0),)


def test_methods_that_read_features_or_the_question_train(tmp_path: Path) -> None:
    for number, spec in enumerate(("dart", "semvid:keep=0.5", "dycoke:keep=0.5", "tome:keep=0.5")):
        if number:
            assert run("plain", tmp_path / str(number), mixture=spec, steps=1).is_dir()
        else:
            with pytest.raises(InputError, match="inside the decoder"):
                run("plain", tmp_path / "dart", mixture=f"{spec}:keep=0.5")


def test_the_command_line_trains_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["train", "lita", "--out", str(out), "--size", "tiny", "--minutes", "1", "--steps", "1",
             "--batch", "1", "--clips", "1", "--workers", "0"]  # fmt: skip
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 1
    for more, reason in (
        (["aim", "--out", str(out)], "recipe 'aim' trains nothing"),
        (["lita", "--out", str(out), "--steps-see", "3"], "--steps-see is for the training of"),
        (["stage", "--out", str(out), "--lora", "3"], "--lora is for recipes"),
        (["litta", "--out", str(out)], "no training recipe 'litta': did you mean lita"),
        (["lita", "--out", str(out), "--option", "x"], "--option must be NAME=VALUE"),
        ([*words[1:]], "holds a trained model already"),
    ):
        assert main(["train", *more]) == 2
        said = capsys.readouterr()
        assert reason in said.err and said.out == "", said.err
