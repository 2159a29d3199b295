"""`vidllm bench systems`: arms are trained and asked in a folder; table, claims, page and plot."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Run
from tiny import save_tiny

from vidllm import InputError
from vidllm.cli.main import main
from vidllm.cli.options import CommonOptions
from vidllm.compressors import build
from vidllm.encoders.temporal import temporal_names
from vidllm.errors.writing import csv_text
from vidllm.eval.bench.systems.arms import ARMS, START, Budget, chosen, encoder_arms
from vidllm.eval.bench.systems.claims import (
    CLAIMS,
    FAILED,
    HELD,
    UNCLEAR,
    UNTOLD,
    verdicts,
)
from vidllm.eval.bench.systems.entries import Exam
from vidllm.eval.bench.systems.finished import check_size
from vidllm.eval.bench.systems.page import command_of, systems_page, systems_plot
from vidllm.eval.bench.systems.running import Measurement
from vidllm.eval.bench.systems.table import Asked, systems_rows
from vidllm.recipes import get_recipe
from vidllm.recipes.courses.variant import as_trained

WORDS = (HELD, FAILED, UNCLEAR, UNTOLD)
SEED = 137  # the first clips of this benchmark seed are short


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, cli: Run) -> Path:
    """A folder in which the start and two arms were trained and asked by the command."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("systems")
    save_tiny(place / "start", vision="vit")
    done = cli(*words(place), "--page", place / "systems.md", "--plot", place / "systems.png")
    assert done.returncode == 0, done.stderr
    return place


def words(place: Path, *more: object) -> list[object]:
    return [
        "bench", "systems", "--model", place / "start", "--size", "tiny", "--arms",
        "storm,storm-without", "--steps", 2, "--batch", 1, "--clips", 2, "--threads", 1,
        "--workers", 0, "--seed", SEED, "--limit", 1, "--keep", "0.5", "--data", place / "data",
        "--device", "cpu", "--max-new-tokens", 3, "--jobs", 1, "--out", place / "out", *more,
    ]  # fmt: skip


def read_rows(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Setting and rows of a table."""
    head, _, body = file.read_text(encoding="utf-8").partition("\n")
    words = ("system", "recipe", "about", "compressor", "temporal")
    rows = [
        {k: v if k in words else (float(v) if v else None) for k, v in line.items()}
        for line in csv.DictReader(body.splitlines())
    ]
    return json.loads(head[2:]), rows


def measurement(place: Path, batch: int = 1) -> Measurement:
    """That of `words`."""
    budget = Budget(2, batch, 2, size="tiny", init=str(place / "start"))
    exam = Exam("test", 2, SEED, 1, (0.5,), place / "data", 3)
    return Measurement(place / "out", chosen("storm,storm-without"), budget, exam)


def test_every_arm_can_be_trained_and_asked() -> None:
    budget = Budget(steps=5)
    for arm in (*ARMS, *encoder_arms()):
        if arm.asked and not arm.asked.startswith("mustdrop-"):
            assert build(arm.asked.replace("+", ","), keep=0.25).name
        if arm.recipe:
            recipe = get_recipe(arm.recipe)
            made = as_trained(recipe, arm.settings(budget, Path("out"), Path("cells"), 0))
            assert made.steps == 5 and made.mixture and made.lr == arm.rate(budget)
    rates = {arm.name: arm.rate(budget) for arm in ARMS}
    assert rates["vtg-llm"] == budget.lr and rates["vtg-llm-relative"] == get_recipe("vtg-llm").lr
    assert [arm.name for arm in encoder_arms()] == [f"encoder-{n}" for n in temporal_names()]
    names = {arm.name for arm in ARMS}
    assert all({claim.better, claim.worse} <= names for claim in CLAIMS)
    assert [arm.name for arm in chosen("lita*")] == [START, "lita", "lita-text", "lita-uniform"]
    with pytest.raises(InputError, match="storm"):
        chosen("strom")


def test_arms_are_trained_asked_and_stand_in_one_table(home: Path) -> None:
    setting, rows = read_rows(home / "out" / "systems.csv")
    assert {(row["system"], row["keep"]) for row in rows} == {
        (name, keep) for name in (START, "storm", "storm-without") for keep in (1.0, 0.5)
    }
    full = rows[0]
    assert (full["system"], full["keep"], full["mIoU_share"]) in [(START, 1, 1), (START, 1, None)]
    assert setting["limit"] == 1 and setting["waiting"] == {}
    for row in rows:
        assert row["tokens_kept"] == row["tokens_full"] * row["keep"] and not row["failed"]
        assert (row["steps"] == 2) == (row["system"] != START)
        tested = row["mIoU_vs_start"] is not None
        assert tested == (row is not full)
    page = (home / "systems.md").read_text(encoding="utf-8")
    assert "## 50 % of the tokens" in page and "`storm-without`" in page
    assert "--steps 2 --batch 1 --clips 2" in page and str(home) not in page
    assert "vidllm bench systems --model start --size tiny --steps 2" in page
    assert "--version 2 --keep 0.5 --max-new-tokens 3\n" in page
    assert "Every system begins at the model `start` and is trained" in page
    assert "| `nasva` |" in page and "**not yet run**" in page
    assert (home / "systems.png").read_bytes()[:4] == b"\x89PNG"
    cells = [file.name for file in (home / "out" / "cells").glob("*.bin")]
    assert len(cells) == 1  # one tower, one number of frames


def test_the_same_command_goes_on_and_does_nothing_twice(home: Path, cli: Run) -> None:
    before = {file: file.stat().st_mtime_ns for file in (home / "out").rglob("*.safetensors")}
    done = cli(*words(home, "--json"))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 6
    assert "training" not in done.stderr and "asking" not in done.stderr
    assert before == {f: f.stat().st_mtime_ns for f in (home / "out").rglob("*.safetensors")}
    other = measurement(home, batch=2)
    with pytest.raises(InputError, match="was trained with batch 1, not 2"):
        other.run(CommonOptions(), train=True, threads=1, workers=0, jobs=1)


def test_a_training_under_another_mixture_is_refused(home: Path) -> None:
    work = measurement(home)
    (entry,) = [one for one in work.finished()[0] if one.label == "storm.0"]
    stamp = entry.model / "training.json"
    told = stamp.read_text(encoding="utf-8")
    assert json.loads(told)["mixture"] == [list(part) for part in get_recipe("storm").mixture]
    stamp.write_text(json.dumps({**json.loads(told), "mixture": [["none", 1.0]]}), encoding="utf-8")
    try:
        with pytest.raises(InputError, match=r"storm\.0 was trained under another mixture"):
            work.finished()
    finally:
        stamp.write_text(told, encoding="utf-8")


def test_a_folder_of_another_size_is_refused(home: Path) -> None:
    work = measurement(home)
    other = replace(work, budget=replace(work.budget, size="small"))
    with pytest.raises(InputError, match=r"storm\.0 was trained with size tiny, not small"):
        other.finished()


def test_tiny_trainings_are_not_added_to_the_committed_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Path(__file__).parents[2] / "eval" / "results" / "systems"
    check_size(kept, "small")  # stamps without a size are of that one
    before = sorted(kept.iterdir())
    words = ["bench", "systems", "--size", "tiny", "--arms", "pyra", "--kept", str(kept)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "was trained with size small, not tiny: give that --size, or another --kept" in said
    assert sorted(kept.iterdir()) == before and not list((tmp_path / "out").rglob("*.*"))


def test_the_start_may_have_been_asked_by_another_run(home: Path, tmp_path: Path) -> None:
    asked = home / "out" / "answers" / START
    work = replace(measurement(home), home=tmp_path, start_run=asked)
    done, waiting = work.finished()
    assert [entry.label for entry in done] == [START]
    assert [entry.label for entry in waiting] == ["storm.0", "storm-without.0"]
    assert work.answers(done[0]) == measurement(home).answers(done[0])
    other = replace(work, exam=replace(work.exam, seed=SEED + 1))
    with pytest.raises(InputError, match=f"is a run with seed {SEED}, not {SEED + 1}"):
        other.finished()


def test_claims_are_read_from_paired_answers_and_from_files(home: Path, tmp_path: Path) -> None:
    work = measurement(home)
    done, waiting = work.finished()
    asked = [Asked(entry, *found) for entry in done if (found := work.answers(entry))]
    assert not waiting and len(systems_rows(asked)) == 6
    told = verdicts(asked, None)
    assert {one.verdict for one in told} == {UNTOLD}  # nothing was asked at an eighth
    rows = [
        {"recipe": "dist", "arm": arm, "measure": "order", "value": value, "size": "tiny",
         "steps": 4}
        for arm, values in (("dist", (0.9, 0.8)), ("frozen", (0.5, 0.6))) for value in values
    ]  # fmt: skip
    for wanted, swap in ((HELD, 0.0), (FAILED, 0.5), (UNCLEAR, 0.25)):
        with (tmp_path / "claim-dist.csv").open("w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, rows[0])
            out.writeheader()
            out.writerows(
                {**r, "value": float(str(r["value"])) - swap * (r["arm"] == "dist")} for r in rows
            )
        found = next(one for one in verdicts(asked, tmp_path) if one.recipe == "dist")
        assert found.verdict == wanted and "2 seeds" in found.evidence and "tiny" in found.evidence
    wide = [{**row, "low": 0.4, "high": 1.0} for row in rows if row["value"] in (0.9, 0.5)]
    (tmp_path / "claim-dist.csv").write_text(csv_text(wide), encoding="utf-8")
    found = next(one for one in verdicts(asked, tmp_path) if one.recipe == "dist")
    assert found.verdict == UNCLEAR  # one seed each, and intervals over clips that meet
    assert "dist 0.9 (0.4–1, 1 seed) against frozen 0.5 (0.4–1, 1 seed)" in found.evidence


def test_comparable_is_judged_by_a_share_of_the_other(tmp_path: Path) -> None:
    for value, wanted in ((0.97, HELD), (0.94, UNCLEAR), (0.8, FAILED)):
        rows = [
            {"recipe": "squeezetime", "arm": arm, "measure": "accuracy", "value": middle,
             "low": middle - 0.01, "high": middle + 0.01}
            for arm, middle in (("squeezetime", value), ("framewise", 0.99))
        ]  # fmt: skip
        (tmp_path / "claim-squeezetime.csv").write_text(csv_text(rows), encoding="utf-8")
        (found,) = [one for one in verdicts([], tmp_path) if one.says == "at comparable accuracy"]
        assert found.verdict == wanted, value
        assert "against 95% of framewise 0.99" in found.evidence


def test_the_page_and_the_plot_are_made_of_the_table_alone(home: Path) -> None:
    setting, rows = read_rows(home / "out" / "systems.csv")
    again = systems_page(setting, rows, [], csv="out/systems.csv", plot="systems.png")
    page = (home / "systems.md").read_text(encoding="utf-8")
    assert again.split("## The claims")[0] == page.split("## The claims")[0]
    assert systems_plot(rows) == (home / "systems.png").read_bytes()


def test_the_committed_page_is_the_one_that_its_table_makes() -> None:
    docs = Path(__file__).parents[2] / "docs"
    setting, rows = read_rows(docs / "results" / "systems.csv")
    page = (docs / "systems.md").read_text(encoding="utf-8")
    made = systems_page(setting, rows, [], csv="results/systems.csv", plot="systems.png")
    claimed = [k for k in page.splitlines() if any(f"| **{word}** |" in k for word in WORDS)]
    assert len(claimed) == len(verdicts([], None))
    assert made.splitlines() == [line for line in page.splitlines() if line not in claimed]


def test_the_page_names_what_differs_from_the_defaults() -> None:
    setting, _ = read_rows(Path(__file__).parents[2] / "docs" / "results" / "systems.csv")
    usual = command_of(setting)
    told = setting["budget"] | {"keeps": [0.25, 0.125, 0.05], "max_new_tokens": None}
    assert command_of({**setting, "budget": told}) == usual
    assert not re.search("--(keep|model|size|max-new-tokens)", usual)
    other = told | {"init": "runs/my start", "keeps": [0.5, 0.1], "max_new_tokens": 7}
    words = shlex.split(command_of({**setting, "budget": other}))
    assert words[:5] == ["vidllm", "bench", "systems", "--model", "my start"]
    assert words[-4:] == ["--keep", "0.5,0.1", "--max-new-tokens", "7"]
    tiny = {**setting, "budget": told | {"size": "tiny"}}
    assert "--size tiny" in command_of(tiny)


def test_finished_arms_are_kept_in_small_files_and_not_run_again(
    home: Path, tmp_path: Path, cli: Run
) -> None:
    kept = tmp_path / "kept"
    work = replace(measurement(home), kept=kept)
    work.run(CommonOptions(), train=False, threads=1, workers=0, jobs=1)
    names = ["start.jsonl.gz", "storm-without.0.jsonl.gz", "storm.0.jsonl.gz"]
    assert [file.name for file in sorted(kept.iterdir())] == names
    assert all(str(home).encode() not in gzip.decompress(f.read_bytes()) for f in kept.iterdir())
    written = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    out = tmp_path / "empty"
    again = [word if word != home / "out" else out for word in words(home, "--kept", kept)]
    done = cli(*again, "--page", tmp_path / "systems.md")
    assert done.returncode == 0, done.stderr
    assert "training storm" not in done.stderr and "asking" not in done.stderr
    assert (out / "systems.csv").read_bytes() == (home / "out" / "systems.csv").read_bytes()
    assert written == {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    with pytest.raises(InputError, match="was trained with batch 1, not 2"):
        replace(work, home=out, budget=measurement(home, batch=2).budget).finished()
    with pytest.raises(InputError, match=r"start.jsonl.gz is a run with seed 137, not 138"):
        replace(work, home=out, exam=replace(work.exam, seed=SEED + 1)).finished()
    save_tiny(tmp_path / "other")
    with pytest.raises(InputError, match=r"start.jsonl.gz began with other weights"):
        other = Budget(2, 1, 2, size="tiny", init=str(tmp_path / "other"))
        replace(work, home=out, budget=other).finished()
    with pytest.raises(InputError, match=r"without.0.jsonl.gz was trained with size tiny, not sma"):
        replace(work, home=out, arms=chosen("lita"), budget=replace(work.budget, size="small"))
    more = replace(work, home=out, exam=replace(work.exam, limit=2))
    more.run(CommonOptions(), train=False, threads=1, workers=0, jobs=1)
    waiting = more.finished()[1]
    assert [entry.label for entry in waiting] == ["storm.0", "storm-without.0"]
    shares = replace(work, home=out, exam=replace(work.exam, keeps=(0.5, 0.25))).finished()[1]
    assert len(shares) == 3  # nobody was asked at a quarter
    for text in (b"{}", b'{"start": "", "config": [], "stamp": {}, "cpu_seconds": null}', b""):
        (kept / names[1]).write_bytes(gzip.compress(text))
        with pytest.raises(InputError, match=r"line 1 of .*storm-without.0.jsonl.gz"):
            work.finished()
    (kept / names[0]).write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"start.jsonl.gz is no finished arm: delete it"):
        work.finished()
    (kept / names[0]).write_bytes(gzip.compress(bytes(2**28 + 1), 1))
    with pytest.raises(InputError, match=r"start.jsonl.gz unpacks to more than 256 MiB: delete it"):
        work.finished()
