"""A run that is done takes further settings in: what it has stays, what is new alone is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from run_tiny import done, final, order, rows_of, tiny_options, write_charades
from tiny import save_tiny

from vidllm.errors import InputError
from vidllm.eval.report.load import load_run
from vidllm.eval.run.compare_runs import compare
from vidllm.eval.run.records import RunFolder
from vidllm.eval.run.results import rescore

VIDEOS, ITEMS = 3, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_charades(tmp_path_factory.mktemp("data"), VIDEOS)


@pytest.fixture(scope="module")
def plain(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished uncompressed run."""
    out = tmp_path_factory.mktemp("out") / "run"
    done(order("charades", data, out, "none", None), tiny_options(model))
    return out


@pytest.fixture
def out(plain: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(plain, tmp_path / "run"))


def labels(out: Path) -> list[str]:
    return [setting["label"] for setting in RunFolder(out).config()["settings"]]


def test_a_further_compressor_alone_is_paid_for(
    model: Path, data: Path, out: Path, tmp_path: Path
) -> None:
    before = {name: (out / name).read_bytes() for name in ("rows-0.jsonl", "answers.jsonl")}
    found = done(order("charades", data, out, "uniform"), tiny_options(model))
    assert labels(out) == ["none@1", "uniform@0.5"] == list(found.results["results"])
    for name, kept in before.items():
        assert (out / name).read_bytes().startswith(kept)
    added = rows_of(out / "rows-0.jsonl")[ITEMS:]
    assert [row["setting"] for row in added] == ["uniform@0.5"] * ITEMS
    done(order("charades", data, tmp_path / "once", "uniform"), tiny_options(model))
    assert final(out) == final(tmp_path / "once")
    results = rescore(RunFolder(out))
    assert results["finished"] and results["expected"] == 2 * ITEMS
    assert len(load_run(out).config["settings"]) == 2
    assert compare(f"{out}:none@1", f"{out}:uniform@0.5")


def test_finished_settings_need_not_be_named_again(model: Path, data: Path, out: Path) -> None:
    done(order("charades", data, out, "uniform"), tiny_options(model))
    whole = (out / "rows-0.jsonl").read_bytes()
    found = done(order("charades", data, out, "random", "0.25", full=False), tiny_options(model))
    assert list(found.results["results"]) == ["none@1", "uniform@0.5", "random@0.25"]
    assert (out / "rows-0.jsonl").read_bytes().startswith(whole)
    again = (out / "rows-0.jsonl").read_bytes()
    done(order("charades", data, out, "none", None), tiny_options(model))  # nothing is left to ask
    assert (out / "rows-0.jsonl").read_bytes() == again and len(labels(out)) == 3


def test_an_unfinished_setting_has_to_be_named(model: Path, data: Path, out: Path) -> None:
    done(order("charades", data, out, "uniform"), tiny_options(model))
    journal = out / "rows-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    kept = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InputError, match="too, which is not finished"):
        done(order("charades", data, out, "random"), tiny_options(model))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == kept
    done(order("charades", data, out, "uniform,random"), tiny_options(model))
    assert len(rows_of(journal)) == 3 * ITEMS and len(labels(out)) == 3


def test_limit_and_settings_grow_together_where_all_are_named(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done(order("charades", data, out, "uniform", limit=1), tiny_options(model))
    with pytest.raises(InputError, match="too, which has no answers behind"):
        done(order("charades", data, out, "random", limit=2), tiny_options(model))
    done(order("charades", data, out, "uniform,random", limit=2), tiny_options(model))
    done(order("charades", data, tmp_path / "once", "uniform,random", limit=2), tiny_options(model))
    assert final(out) == final(tmp_path / "once")


def test_a_run_without_its_journal_keeps_its_answers(model: Path, data: Path, out: Path) -> None:
    answers = (out / "answers.jsonl").read_bytes()
    (out / "rows-0.jsonl").unlink()
    done(order("charades", data, out, "uniform"), tiny_options(model))
    assert (out / "answers.jsonl").read_bytes().startswith(answers)
    assert len(rows_of(out / "rows-0.jsonl")) == 2 * ITEMS


def test_the_uncompressed_run_comes_first_whenever_it_was_made(
    model: Path, data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    out = tmp_path / "run"
    done(order("charades", data, out, "uniform", full=False), tiny_options(model))
    done(order("charades", data, out, "uniform"), tiny_options(model))
    assert labels(out) == ["none@1", "uniform@0.5"]
    done(order("charades", data, tmp_path / "once", "uniform"), tiny_options(model))
    assert final(out) == final(tmp_path / "once")
