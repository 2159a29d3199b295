"""What --compressor and --keep mean as lists, and wrong words on the command line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from vidllm.cli.options import CommonOptions, common_options, tell
from vidllm.compressors import Chain
from vidllm.errors import InputError
from vidllm.eval.run.run_settings import Setting, no_own, wanted

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Refused = Callable[..., str]


def labels(*given: str | None, **more: object) -> list[str]:
    return [s.label for s in wanted(*given, **more).settings(no_own)]  # type: ignore[arg-type]


def test_every_compressor_is_run_at_every_share_and_the_uncompressed_run_comes_first() -> None:
    assert labels("uniform,random:seed=3", "1,0.5,0.25") == [
        "none@1", "uniform@0.5", "uniform@0.25", "random:seed=3@0.5", "random:seed=3@0.25",
    ]  # fmt: skip
    assert labels("spatial-pool+uniform", "0.125") == ["none@1", "spatial-pool+uniform@0.125"]
    assert labels("per-scene:scenes=2(aim+uniform),random", "0.5") == [
        "none@1", "per-scene:scenes=2(aim+uniform)@0.5", "random@0.5",
    ]  # fmt: skip
    assert labels("uniform", "0.5", full=False) == ["uniform@0.5"]
    assert labels("uniform", "1,0.5", full=False) == ["none@1", "uniform@0.5"]
    assert labels(None, None) == labels(None, "1") == labels("none", None) == ["none@1"]


def test_a_label_says_how_its_compressor_is_built() -> None:
    chain = wanted("spatial-pool+uniform", "0.25").settings()[1]
    assert isinstance(chain.method, Chain)
    assert (chain.method.name, chain.method.keep) == ("spatial-pool,uniform", 0.25)
    assert chain.as_dict() == {
        "label": "spatial-pool+uniform@0.25", "compressor": "spatial-pool+uniform",
        "keep": 0.25, "tokens": None,
    }  # fmt: skip
    fixed = wanted("temporal-pool:keep=0.25+frame-sample", "0.125").settings()[1]
    assert fixed.label == "temporal-pool:keep=0.25+frame-sample@0.125"
    own = wanted("temporal-pool:k=4", None).settings()[1]
    assert own.label == "temporal-pool:k=4@1"
    assert not own.is_full


def test_a_recipe_adds_its_compressor_and_tokens_stand_for_a_share() -> None:
    assert labels(None, None, recipe="storm") == ["none@1", "temporal-pool@0.25"]
    assert labels("uniform", "0.5", recipe="storm") == [
        "none@1", "uniform@0.5", "temporal-pool@0.5",
    ]  # fmt: skip
    assert labels(None, None, recipe="plain") == ["none@1"]
    counted = wanted("uniform,aim+uniform", None, tokens=512).settings()
    assert [s.label for s in counted] == [
        "none@1", "uniform:budget=512@1", "(aim+uniform):budget=512@1",
    ]  # fmt: skip
    assert all(s.method is not None and s.method.budget == 512 for s in counted[1:])
    assert [float(s.label.rpartition("@")[2]) for s in counted] == [1, 1, 1]


def test_without_a_name_it_is_the_models_own_compressor() -> None:
    asked: list[float | None] = []

    def own(keep: float | None) -> Setting:
        asked.append(keep)
        return Setting("temporal-pool", 0.25 if keep is None else keep)

    settings = wanted(None, "1,0.5").settings(own)
    assert [s.label for s in settings] == ["none@1", "temporal-pool@0.5"]
    assert [s.label for s in wanted(None, None).settings(own)] == ["none@1", "temporal-pool@0.25"]
    assert asked == [0.5, None]
    with pytest.raises(InputError, match="name one"):
        wanted(None, "0.5").settings(no_own)


@pytest.mark.parametrize(
    ("compressor", "keep", "says"),
    [
        ("randm", "0.5", "random"),
        ("random,", "0.5", "empty"),
        ("random", "half", "--keep"),
        ("random", "0", "--keep"),
        ("random", "1.5", "at most 1"),
        ("random", "nan", "above 0"),
        ("random,random", "0.5", "twice"),
        ("random", "0.5,0.50", "twice"),
        ("random", None, "how much"),
        ("aim+", "0.5", "empty"),
        ("randm", "1", "random"),
    ],
)
def test_wrong_lists_are_refused(compressor: str, keep: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        wanted(compressor, keep)


def test_lists_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InputError, match="leave out --keep"):
        wanted("uniform", "0.5", tokens=64)
    with pytest.raises(InputError, match="asked for twice"):
        wanted("temporal-pool", "0.25", recipe="storm")
    with pytest.raises(InputError, match="no recipe 'strom'"):
        wanted(None, None, recipe="strom")


def test_a_command_may_put_its_own_option_in_the_place_of_a_shared_one() -> None:
    app = typer.Typer()

    @app.command()
    @common_options
    def show(
        options: CommonOptions,
        keep: Annotated[str | None, typer.Option("--keep", help="Shares.")] = None,
    ) -> None:
        tell(f"{keep} {options.keep} {options.seed}")

    done = CliRunner().invoke(app, ["--keep", "0.5,0.25", "--seed", "3"])
    assert done.stdout.strip() == "0.5,0.25 None 3", done.output
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert shown.count("--keep ") == 1
    assert "Shares." in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stage", "--split", "tset"], "test-unseen"),
        (["stage", "--seed", "-1"], "--seed"),
        (["stage", "--limit", "0"], "--limit"),
        (["stage", "--start", "2"], "--start"),
        (["stage", "--frames", "auto", "--tokens", "9"], "--frames auto"),
        (["stage", "--keep", "2"], "--keep"),
        (["stage", "--compressor", "random"], "how much"),
        (["stage", "--model", "no/such/folder"], "no such model folder"),
        (["stage", "--out", "file"], "--out file is a file"),
        (["charades"], "--data is missing"),
        (["charades", "--data", "nowhere"], "--data nowhere is no folder"),
        (["charades", "--data", "."], "charades_sta_test.txt"),
        (["charades", "--data", "hub"], "--videos"),
        (["charades", "--data", ".", "--videos", "nowhere"], "--videos nowhere is no folder"),
        (["stge"], "stge"),
        (["score", "."], "run.json"),
        (["compare", ".:none@1", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vidllm.cli.main import main

    (tmp_path / "file").write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code = main(["eval", *arguments])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert line.startswith("vidllm: ")
    assert says in line


def test_benchmarks_are_listed_without_loading_torch() -> None:
    import sys

    code = """
import sys
from vidllm.eval.run.eval_command import tasks
found = tasks()
assert {"stage", "charades", "videomme"} <= {task["name"] for task in found}
assert all(task["kind"] and task["summary"] for task in found)
print(*sorted({"torch", "transformers", "av", "pandas", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
