"""Which model the page asks: adapters, a device map, a revision, as with every other command."""

from __future__ import annotations

import html
import json
import urllib.request
from pathlib import Path

import pytest
from demo_server import serving
from hub_tiny import save_home

from vidllm import VideoLLM
from vidllm.ask.calls import Call
from vidllm.cli import demo_command
from vidllm.demo.opening import model_card
from vidllm.demo.settings import Settings
from vidllm.models.shipped import find_model, weights_dir


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and adapters of it that say how it is asked."""
    return save_home(tmp_path_factory.mktemp("hub"))


def test_the_page_asks_adapters_where_they_are_put(home: Path, tmp_path: Path) -> None:
    options = ["--adapter", str(home / "tuned"), "--device-map", "cpu"]
    with serving(tmp_path / "files", *options) as url, urllib.request.urlopen(url) as page:
        shown = html.unescape(page.read().decode())
    assert "with the adapters tuned" in shown
    assert "made world only" not in shown  # it is not the shipped model that answers


def test_a_model_that_ships_is_shown_by_its_name_with_what_it_knows() -> None:
    settings = Settings(model=find_model("vidllm-squeezetime"))
    card = model_card(VideoLLM.from_pretrained("vidllm-squeezetime"), settings)
    assert "Model: <b>vidllm-squeezetime</b>" in card and str(weights_dir()) not in card
    assert "it names an action" in card and "made world only" in card
    assert "those who trained it" not in card


def test_a_recipe_brings_its_weights_and_stands_in_the_menus(tmp_path: Path) -> None:
    page = serving(tmp_path / "files", "--recipe", "lita")
    with page as url, urllib.request.urlopen(f"{url.rstrip('/')}/config") as told:
        parts = [one["props"] for one in json.loads(told.read())["components"]]
    shown = {one.get("elem_id"): one.get("value") for one in parts}
    assert (shown["recipe"], shown["compressor"], shown["keep"]) == ("lita", "lita", 0.125)
    assert any("Model: <b>vidllm-lita</b>" in str(one.get("value")) for one in parts)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "{home}/model", "--revision", "v1.0"], "revision names a version of a model"),
        (["--model", "{home}/model", "--device-map", "here"], "device 'here' cannot be used"),
        (["--adapter", "{home}/model"], "--adapter: no adapters in"),
        (["--recipe", "vtg-llm"], "recipe 'vtg-llm' tells time by the absolute code"),
        (["--recipe", "litta"], "no recipe 'litta': did you mean lita"),
        (["--device-map", "auto"], "device_map is for models of transformers"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert demo_command.main([word.format(home=home) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err.splitlines()[-1]


def test_a_call_as_a_program_names_what_was_loaded() -> None:
    call = Call("v.mp4", question="when?", adapter="tuned", device_map="auto", revision="v1.0")
    made = "from_pretrained(revision='v1.0', adapter='tuned', device_map='auto')"
    assert made in call.python()
    assert Call.from_dict(call.as_dict()) == call
