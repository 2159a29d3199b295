"""Files of a run's folder with wrong facts are refused where they are opened, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_data import grounding_items, make_run, write_clips

from vidllm.errors import InputError, WorkError
from vidllm.eval.report.load import load_run
from vidllm.eval.report.report_command import write_report
from vidllm.eval.run.records import RunFolder
from vidllm.eval.run.results import rescore

LABELS = ("none@1", "uniform@0.5")
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not finished: its journal counts."""
    return make_run(tmp_path_factory.mktemp("part") / "run", settings=LABELS, only=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return make_run(tmp_path_factory.mktemp("whole") / "run", settings=LABELS, maps=False)


def put(name: str, value: Any) -> Change:
    return lambda row: row.update({name: value})


def drop(name: str) -> Change:
    return lambda row: row.pop(name)


ROWS: list[tuple[Change, str]] = [
    *((drop(name), name) for name in ("id", "number", "prompt", "spans", "value", "error")),
    (put("number", -1), "number is -1"),
    (put("number", 1.0), "number is 1.0"),
    (put("number", True), "number is True"),
    (put("number", 3), "number 3 is that of 'v1-0', not 'v0-1'"),
    (put("setting", "uniform@0.25"), "uniform@0.25"),
    (put("setting", 5), "setting is 5"),
    (put("id", "another"), "number 1 is that of 'v0-1', not 'another'"),
    (put("prompt", "Why?"), "prompt is not that"),
    (put("truth", [0.0, 9.0]), "truth is not that"),
    (put("spans", [[0.0]]), "spans[0] has 1 items"),
    (put("spans", [["0", "1"]]), "spans[0][0] is '0'"),
    (put("spans", {"a": 1}), "spans is an object"),
    (put("text", None), "text is None"),
    (put("value", 1.5), "value is 1.5"),
    (put("value", "0.5"), "value is '0.5'"),
    (put("value", float("nan")), "NaN"),
    (put("duration", -3.0), "duration is -3.0"),
    (put("duration", float("inf")), "Infinity"),
    (put("frames", 2.5), "frames is 2.5"),
    (put("attempt", "x"), "attempt is 'x'"),
    (put("choices", "ABC"), "choices is 'ABC'"),
    (put("groups", {"span": 3}), "groups.span is 3"),
    (put("letters", {"A": "x"}), "letters.A is 'x'"),
    (put("kept", {"grid": [1 << 40] * 3}), "kept.seconds is missing"),
    (put("cost", {"shared_by": 0}), "cost.shared_by is 0"),
    (put("cost", {"seconds": {"decode": "x"}}), "cost.seconds.decode is 'x'"),
    (put("cost", []), "cost is a list"),
]


@pytest.mark.parametrize(("change", "said"), ROWS, ids=[said for _, said in ROWS])
def test_a_row_with_wrong_facts_is_refused(
    change: Change, said: str, part: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(part, folder)
    file = folder / "rows-0.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    at = next(k for k, row in enumerate(rows) if row["number"] == 1 and row["setting"] != LABELS[0])
    change(rows[at])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as error:
        rescore(RunFolder(folder))
    line = str(error.value)
    assert said in line and "delete" in line
    assert f"line {at + 1} of {file}" in line or str(folder) in line
    assert "\n" not in line
    if "not that" not in said and ", not" not in said:  # the report looks at single rows
        with pytest.raises(InputError, match=f"line {at + 1} "):
            load_run(folder)


def test_a_row_that_stands_twice_or_is_of_no_question_is_refused(
    part: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(part, folder.path)
    items = grounding_items()
    assert folder.rows(items) == folder.rows()
    with pytest.raises(InputError, match="the benchmark has no such question"):
        folder.rows(items[:1])
    other = [replace(item, truth=[0.0, 3.0]) for item in items]
    with pytest.raises(InputError, match="its truth is not that of the question"):
        folder.rows(other)
    line = (folder.path / "rows-0.jsonl").read_text().splitlines(keepends=True)[0]
    (folder.path / "rows-1.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"line 1 of .*rows-1.jsonl .* is answered twice"):
        folder.rows(items)


CONFIGS: list[tuple[Change, str]] = [
    *((drop(name), name) for name in ("format", "task", "settings", "items", "seed")),
    (put("seed", "0"), "seed"),
    (put("seed", -1), "seed is -1"),
    (put("items", -4), "items is -4"),
    (put("items", 10**30), "items is 1000"),
    (put("format", 2), "another version of vidllm"),
    (put("format", "1"), "format is '1'"),
    (put("task", 3), "task"),
    (put("task", "charade"), "charade"),
    (put("settings", []), "settings has 0 items"),
    (put("settings", ["none@1"]), "settings[0] is 'none@1'"),
    (put("limit", 2.5), "limit is 2.5"),
    (put("options", {"no": 1}), "options that charades has not"),
    (put("videos", "here"), "videos is 'here'"),
    (lambda made: made["settings"][1].update(keep=0.25), "uniform@0.5 has the parts of"),
    (lambda made: made["settings"][1].update(keep=7), "settings[1].keep is 7"),
    (lambda made: made["settings"].append(made["settings"][1]), "uniform@0.5 stands twice"),
]


@pytest.mark.parametrize(("change", "said"), CONFIGS, ids=[said for _, said in CONFIGS])
def test_a_configuration_with_wrong_facts_is_refused(
    change: Change, said: str, part: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(part, folder)
    made = json.loads((folder / "run.json").read_text())
    change(made)
    (folder / "run.json").write_text(json.dumps(made))
    for work in (lambda: rescore(RunFolder(folder)), lambda: load_run(folder)):
        with pytest.raises(InputError) as error:
            work()
        assert said in str(error.value) and "\n" not in str(error.value)


RESULTS: list[tuple[Change, str]] = [
    (put("finished", 1), "finished is 1"),
    (drop("answers"), "answers is missing"),
    (put("results", []), "results is a list"),
    (lambda made: made["results"]["none@1"]["headline"].update(value="x"), "headline.value"),
    (lambda made: made["results"]["none@1"]["scores"].update(a=[]), "scores.a is a list"),
    (lambda made: made["results"]["none@1"]["sums"].update(answers=-1), "sums.answers is -1"),
    (lambda made: made["results"]["none@1"].update(failed_videos=[]), "failed_videos is"),
    (lambda made: made["results"]["none@1"].update(label="aim@0.5"), "aim@0.5"),
    (lambda made: made["results"].pop("none@1"), "those of uniform@0.5, not of none@1"),
]


@pytest.mark.parametrize(("change", "said"), RESULTS, ids=[said for _, said in RESULTS])
def test_results_with_wrong_facts_are_refused(
    change: Change, said: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    made = json.loads((folder / "results.json").read_text())
    change(made)
    (folder / "results.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"results\.json is damaged") as error:
        load_run(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_control_characters_of_names_reach_no_file_of_the_report(tmp_path: Path) -> None:
    name = "a\x1b]0;x\x07\u202eb\udcff"
    items = [replace(item, video=name) for item in grounding_items(1, 2)]
    videos = write_clips(tmp_path / "videos", ["other"])
    run = make_run(tmp_path / "run", items=items, settings=LABELS, videos=videos)
    for file in write_report([run], tmp_path / "out"):
        if file.suffix == ".png":
            continue
        text = file.read_text(encoding="utf-8")
        assert not set(name) - set("abx]0;") & set(text), file.name
    assert r"a\x1b]0;x\x07\u202eb\udcff" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_report_is_written_as_a_whole(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = {file.name: file.read_bytes() for file in write_report([whole], out, worst=0)}
    (out / "report.md").unlink()
    (out / "report.md").mkdir()
    (out / "report.csv").write_text("of before")
    with pytest.raises(WorkError, match=r"cannot be written: report\.md is a folder there"):
        write_report([whole], out, worst=0)
    assert (out / "report.csv").read_text() == "of before"
    assert not list(out.glob(".*.part"))
    assert (out / "report.html").read_bytes() == first["report.html"]
