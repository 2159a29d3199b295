"""What is said about the models that ship: whole ones, changes to another one, and heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

from vidllm.cli.doctor import _weights
from vidllm.cli.listing import entries, table
from vidllm.cli.main import main
from vidllm.errors.writing import sha256
from vidllm.recipes import RECIPES, Recipe, get_recipe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder: a model, a recipe's changes to it, and a head that stands on it."""
    home = tmp_path / "weights"
    save_tiny(home / "usual")
    changed = shutil.copytree(home / "usual", home / "changed")
    base = {"base": "usual", "base_sha256": sha256(home / "usual" / "model.safetensors")}
    rewrite(changed, recipe="lita", **base)
    (home / "head").mkdir()
    rewrite(home / "head", model_type="vidllm-head", recipe="dist", course="recognition",
            start="usual", labels=["grow", "shrink"])  # fmt: skip
    manifest = {"default": "usual", "sample": "", "files": {}}
    (home / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setenv("VIDLLM_WEIGHTS", str(home))
    return home


def rewrite(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(told | fields), encoding="utf-8")


def broken() -> list[str]:
    return [c.detail for c in _weights() if c.name == "weights" and c.state == "broken"]


def test_doctor_finds_changes_to_another_model_than_the_one_that_ships(home: Path) -> None:
    assert broken() == []
    (home / "usual" / "model.safetensors").write_bytes(b"another")
    (said,) = broken()
    assert "changes to the shipped model 'usual', which is another one now" in said
    rewrite(home / "changed", base="gone")
    (said,) = broken()
    assert "changes to the shipped model 'gone', which is not in the weights folder" in said


def test_doctor_finds_a_head_without_the_model_that_it_needs(home: Path) -> None:
    for fields in ({"start": "gone"}, {"start": "", "guard": "gone"}):
        rewrite(home / "head", **fields)
        assert broken() == ["head needs the model gone, which does not ship: get the weights again"]
    shutil.copytree(home / "usual", elsewhere := home.parent / "own")
    rewrite(home / "head", start=str(elsewhere))  # nobody else has that folder
    assert "does not ship" in broken()[0]
    rewrite(home / "head", start="", guard="")  # it needs none
    assert broken() == []
    rewrite(home / "head", course="poetry")
    (said,) = broken()
    assert "config.json" in said and "course" in said


def test_the_list_says_what_a_shipped_model_is_and_which_one_it_needs(home: Path) -> None:
    found = {entry["name"]: entry for entry in entries("models")}
    assert json.loads(json.dumps(found))  # as `--json` prints it
    assert {"name", "kind", "summary"} <= set(found["head"])
    assert (found["head"]["recipe"], found["head"]["needs"]) == ("dist", "usual")
    assert (found["changed"]["recipe"], found["changed"]["needs"]) == ("lita", "usual")
    lines = dict(line.split(None, 1) for line in table(list(found.values())).splitlines())
    assert "recipe dist: names an action, needs usual; 0.0 MB of weights" in lines["head"]
    assert "recipe lita: changes to usual; " in lines["changed"]
    assert lines["usual"].split(") ")[1].endswith("MB of weights, in weights/usual")
    assert "changes" not in lines["usual"] and max(map(len, lines.values())) < 200


def ship(monkeypatch: pytest.MonkeyPatch, recipe: str, weights: str) -> None:
    own = Recipe(**{**vars(get_recipe(recipe)), "weights": weights})
    monkeypatch.setitem(RECIPES, recipe, own)


def test_the_cost_of_a_recipe_is_that_of_its_own_model_where_that_ships(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def model(*words: str) -> str:
        capsys.readouterr()
        assert main(["cost", *words, "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["model"])

    ship(monkeypatch, "lita", "changed")
    assert model() == "usual" == model("--recipe", "storm-sampling")
    assert model("--recipe", "lita") == "changed"
    assert model("--recipe", "lita", "--model", "usual") == "usual"
    ship(monkeypatch, "dist", "head")
    capsys.readouterr()
    assert main(["cost", "--recipe", "dist"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "head is a system without an LLM, which has no prefill" in said.err
