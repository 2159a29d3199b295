"""What README and the pages claim is what registries, settings and measured files say."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from run_tiny import done, order, tiny_options, write_charades
from test_layout import shell_lines
from tiny import save_tiny

from vidllm import InputError, VideoLLM
from vidllm.cli.main import main
from vidllm.compressors import describe, names
from vidllm.encoders import temporal
from vidllm.eval.tasks import get_task, task_names
from vidllm.models.families.served import FAMILIES
from vidllm.models.native.footage import UNKNOWN
from vidllm.models.shipped import default_model
from vidllm.recipes import list_recipes
from vidllm.stage.training.settings import plan_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = (ROOT / "docs" / "shipped-model.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = ROOT / "docs" / "results" / "stage-compressors.csv"
CONFIG = json.loads((default_model() / "config.json").read_text(encoding="utf-8"))
NUMBERS = {"six": 6, "thirteen": 13, "twelve": 12, "fourteen": 14}


def met(compressor: str, keep: float) -> bool:
    """Whether a reduction was in the training mixture of the shipped model."""
    spec = compressor if compressor == "none" else f"{compressor}:keep={keep:g}"
    return spec in dict(plan_of(CONFIG["vision"]).mixture)


def paragraphs(path: Path) -> list[str]:
    return re.split(r"\n\s*\n|\n(?=- )", path.read_text(encoding="utf-8"))


def test_the_readme_counts_what_there_is() -> None:
    real = [t for t in map(get_task, task_names()) if not hasattr(t, "prepare")]
    sources = {task.home for task in real}
    assert f"{len(real)} benchmarks over {len(sources)} data sets" in README
    (word,) = re.findall(r"and (\w+) that are made here", README)
    assert len(task_names()) - len(real) == NUMBERS[word]
    (word,) = re.findall(r"(\w+) temporal encoders behind one", README)
    assert NUMBERS[word] == len(temporal.describe())
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"and {len(names())} methods" in " ".join(changes.split())
    assert f"{len(real)} benchmarks over {len(sources)} data sets" in changes
    for family, _, _ in FAMILIES.values():
        assert family.replace("InternVL", "InternVL 3") in README


def test_the_readme_names_every_method_once_and_those_without_weights() -> None:
    rows = re.findall(r"^\| (?:vision tower|before|between|KV)[^|]*\| (.*) \|$", README, re.M)
    listed = re.findall(r"`([a-z0-9-]+)`", " ".join(rows))
    assert set(listed) == set(names())
    (line,) = [p for p in paragraphs(ROOT / "README.md") if "have parameters, and no trained" in p]
    told = set(re.findall(r"`([a-z0-9-]+)`", line))
    assert told == {entry["name"] for entry in describe() if entry["trained"]}


def test_the_table_of_the_shipped_model_is_the_measured_one() -> None:
    with TABLE.open(encoding="utf-8") as file:
        rows = {(r["compressor"], float(r["keep"])): r for r in csv.DictReader(file)}
    assert {bool(int(r["met_in_training"])) == met(*key) for key, r in rows.items()} == {True}
    shown = re.findall(r"^\| ([a-z0-9-]+) \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", SHIPPED, re.M)
    shown = [row for row in shown if (row[0], 0.5) in rows]
    assert {row[0] for row in shown} == {name for name, _ in rows} - {"none"}
    for name, trained, *cells in shown:
        for keep, cell in zip((0.5, 0.25, 0.125), cells, strict=True):
            row = rows[name, keep]
            figures = [float(row[k]) for k in ("mIoU", "R1@0.5", "qa_accuracy")]
            share = round(100 * float(row["share"]))
            wanted = f"{figures[0]:.3f} ({share} %) · {figures[1]:.3f} · {figures[2]:.3f}"
            assert cell.strip() == wanted, (name, keep)
            assert (f"{100 * keep:g} %" in trained) == met(name, keep), (name, keep)


def test_speed_against_real_time_is_said_of_the_model_that_was_measured() -> None:
    for path in PAGES:
        for text in paragraphs(path):
            if "times real time" in text and "|" not in text:
                assert "small model" in text or "shipped" in text, f"{path.name}: {text}"
    page = (ROOT / "docs" / "long-video.md").read_text(encoding="utf-8")
    assert "first model of 3.9 M parameters" in page


@pytest.mark.parametrize("name", ["README.md", "docs/eval.md"])
def test_it_is_said_that_no_published_score_was_reproduced(name: str) -> None:
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split()).lower()
    assert re.search(r"no published score has been reproduced", text)


def test_flash_kernels_are_said_not_to_have_run() -> None:
    for path in PAGES:
        if path.name == "models.md":  # made from the tests' results, with a note of its own
            continue
        for text in paragraphs(path):
            if "flash_attention" in text:
                assert "have not been run" in text, f"{path.name}: {text}"


def test_no_page_scores_the_shipped_model_on_real_footage() -> None:
    real = {n for n in task_names() if not hasattr(get_task(n), "prepare")}
    for line in [*shell_lines("vidllm"), *shell_lines("accelerate")]:
        words = shlex.split(line)
        if "eval" in words and words[words.index("eval") + 1] in real:
            assert "--model" in words, line


def test_real_footage_is_refused_for_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_charades(tmp_path / "data", videos=1)
    for named in ([], ["--model", "vidllm-stage"]):
        words = ["eval", "charades", "--data", str(data), *named, "--recipe", "storm"]
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.out == "" and len(said.err.splitlines()) == 1
        assert "made world" in said.err and "--model" in said.err and "--anyway" in said.err
    words = ["eval", "charades", "--data", str(data), "--anyway", "--max-new-tokens", "2"]
    assert main([*words, "--frames", "4", "--no-full", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["finished"] and said.err.count(UNKNOWN) == 1
    other = save_tiny(tmp_path / "tiny")
    assert done(order("charades", data, None), tiny_options(other)).results["finished"]


def test_a_recipe_is_refused_without_its_temporal_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_one = save_tiny(tmp_path / "with")
    assert VideoLLM.from_pretrained(with_one, recipe="storm").compressor.name == "temporal-pool"
    config = json.loads((with_one / "config.json").read_text(encoding="utf-8"))
    without = save_tiny(tmp_path / "without", temporal="identity")
    assert config["temporal"]
    behind = [recipe.name for recipe in list_recipes() if recipe.temporal]
    assert behind == ["storm", "storm-sampling", "storm-spatial"]
    for name in behind:
        with pytest.raises(InputError, match=f"recipe '{name}' reduces behind a temporal encoder"):
            VideoLLM.from_pretrained(without, recipe=name)
    assert VideoLLM.from_pretrained(without, recipe="aim-merge").compressor.name == "aim"
    own = VideoLLM.from_pretrained(without, recipe="storm", compressor="aim", keep=0.5)
    assert own.compressor.name == "aim"  # nothing of the recipe is left
    data = write_charades(tmp_path / "data", videos=1)
    words = ["eval", "charades", "--data", str(data), "--model", str(without)]
    assert main([*words, "--recipe", "storm", "--frames", "4"]) == 2
    assert "--compressor temporal-pool --keep 0.25" in capsys.readouterr().err
    assert main(["cost", "--model", "qwen2.5-vl-7b", "--recipe", "storm"]) == 2
    assert "qwen2.5-vl-7b has none" in capsys.readouterr().err


def test_a_hub_model_has_no_temporal_encoder(tmp_path: Path) -> None:
    from hub_tiny import save_hub

    folder = save_hub(tmp_path / "hub", "qwen2_5_vl")
    with pytest.raises(InputError, match="reduces behind a temporal encoder"):
        VideoLLM.from_pretrained(folder, recipe="storm")
