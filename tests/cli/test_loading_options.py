"""`--revision`, `--device-map` and `--adapter`: which weights answer, and where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_tiny import save_home
from videos import write_video

from vidllm.cli.main import main
from vidllm.cli.options import CommonOptions


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, adapters of it that say how it is asked, and a video."""
    made = save_home(tmp_path_factory.mktemp("hub"))
    write_video(made / "v.mp4", 20, size=(64, 48))
    return made


def receipt(home: Path, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """Of an answer of three tokens."""
    asked = ["ask", home / "v.mp4", "when?", "--max-new-tokens", 3, "--json", *words]
    assert main([*map(str, asked)]) == 0
    return dict(json.loads(capsys.readouterr().out)["receipt"])


def test_a_model_is_spread_by_device_map(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = receipt(home, capsys, "--model", home / "model", "--device-map", "cpu", "--frames", 4)
    assert (found["frames"], found["method"]) == (4, "none")


def test_adapters_bring_their_model_and_how_it_is_asked(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["--model", home / "model"]):
        found = receipt(home, capsys, "--adapter", home / "tuned", "--device", "cpu", *words)
        assert (found["frames"], found["method"]) == (4, "uniform")
        assert found["tokens_kept"] * 2 == found["tokens_full"]
    assert CommonOptions(adapter=str(home / "tuned")).model_name() == str(home / "model")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "{home}/model", "--revision", "v1.0"], "revision names a version of a model"),
        (["--model", "{home}/model", "--device-map", "here"], "device 'here' cannot be used"),
        (["--model", "{home}/model", "--device-map", "cpu", "--device", "cpu"], "give one"),
        (["--device-map", "auto"], "device_map is for models of transformers"),
        (["--revision", "main"], "revision names a version of a model on the hub"),
        (["--adapter", "{home}/model"], "--adapter: no adapters in"),
        (["--adapter", "{home}/tuned", "--model", "vidllm-stage"], "are put into hub models"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    given = [word.format(home=home) for word in words]
    assert main(["ask", str(home / "v.mp4"), "when?", "--frames", "4", *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err.splitlines()[-1] and err.count("\n") == 1
