"""`vidllm report`: reading folders of runs, tables, what stands side by side, and the command."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Run
from report_data import SETTINGS, answer, grounding_items, make_run, write_clips

from vidllm.errors import InputError, WorkError
from vidllm.eval.report.load import entry_of, find_folders, load_run
from vidllm.eval.report.outcome import name_of
from vidllm.eval.report.report_command import write_report
from vidllm.eval.report.study import flat, sections, shown
from vidllm.eval.report.tables import markdown, score_tables, table, write_csv
from vidllm.eval.tasks.base import Response


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of charades, the same at 64 frames, one of videomme, and an unfinished one."""
    home = tmp_path_factory.mktemp("runs")
    videos = write_clips(home / "videos", ["v0", "v1"])
    broken = {(s, f"v3-{k}"): Response(error="v3.mp4 is empty") for s in SETTINGS for k in range(3)}
    make_run(home / "plain", videos=videos, said=broken)
    make_run(home / "more", videos=videos, frames=64)
    make_run(home / "choice", "videomme", videos=videos)
    make_run(home / "part", videos=videos, only=5)
    return home


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


def test_a_run_is_read_as_its_results_say(runs: Path) -> None:
    run, said = load_run(runs / "plain"), results(runs / "plain")
    assert run.finished and run.answers == 60 and not run.notes
    assert (run.task, run.family, run.headline) == ("charades", "grounding", "mIoU")
    assert [o.label for o in run.outcomes] == list(SETTINGS)
    for outcome in run.outcomes:
        one = said["results"][outcome.label]
        assert outcome.score == one["headline"]["value"] == one["scores"]["mIoU"]
        assert (outcome.low, outcome.high) == (one["headline"]["low"], one["headline"]["high"])
        assert outcome.tokens_kept == one["costs"]["tokens_kept"]
        spent = one["sums"]["total_seconds"] / one["sums"]["answers"]
        assert outcome.total_seconds == pytest.approx(spent, rel=1e-5)
        assert outcome.failed == {"v3.mp4 is empty": ["v3"]} and outcome.failed_videos == 1
        assert set(outcome.groups["span"]) == {"short", "long"}
    assert run.outcomes[0].relative == 1.0
    assert run.outcomes[1].relative == said["results"]["aim@0.5"]["relative"]["share"]
    assert run.counted == frozenset(item.id for item in grounding_items())


def test_maps_stay_in_the_file_until_they_are_asked_for(runs: Path) -> None:
    run = load_run(runs / "plain")
    row = run.rows["aim@0.25"]["v1-2"]
    entry = entry_of(row)
    assert (entry["setting"], entry["id"]) == ("aim@0.25", "v1-2")
    assert entry["kept"]["grid"] == [6, 4, 6] and entry["text"] == row.response.text


def test_an_unfinished_run_says_how_many_answers_are_there(runs: Path) -> None:
    run = load_run(runs / "part")
    assert not run.finished and (run.answers, run.expected) == (25, 60)
    assert run.notes[0].startswith("This run is not finished: 25 of 60 answers are there")
    whole = make_run(runs.parent / "five", items=grounding_items()[:5])
    assert [o.score for o in run.outcomes] == [o.score for o in load_run(whole).outcomes]


def test_half_a_line_at_the_end_of_a_journal_is_left_out(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(runs / "part", folder)
    file = folder / "rows-0.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - 30])
    run = load_run(folder)
    assert run.answers == 24
    assert "The settings do not have the same questions yet." in run.notes
    one = json.loads(data.splitlines()[0])  # asked again: the later try counts
    again = {**one, "attempt": 1, "value": 0.125}
    file.write_bytes(data + json.dumps(again).encode() + b"\n")
    assert load_run(folder).rows[one["setting"]][one["id"]].value == 0.125


def test_results_of_a_smaller_run_in_the_same_folder_do_not_count(
    runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(runs / "plain", folder)
    config = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**config, "items": 24, "prompts": "1" * 64}))
    run = load_run(folder)
    assert not run.finished and (run.answers, run.expected) == (60, 120)


def test_without_answers_the_numbers_stand(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    folder.mkdir()
    for name in ("run.json", "results.json"):
        shutil.copy(runs / "plain" / name, folder)
    run = load_run(folder)
    assert run.outcomes == load_run(runs / "plain").outcomes and not run.rows
    assert "answers.jsonl is missing" in run.notes[0]
    page = write_report([folder], worst=4)[0].read_text(encoding="utf-8")
    assert "answers.jsonl is missing" in page and "What compression lost" not in page


def test_folders_are_found_below_the_given_ones_and_once(runs: Path) -> None:
    names = [folder.name for folder in find_folders([runs / "part", runs])]
    assert names == ["part", "choice", "more", "plain"]


def test_csv_holds_the_very_numbers_of_the_results(runs: Path) -> None:
    found = sections([load_run(runs / "plain"), load_run(runs / "choice")])
    rows = list(csv.DictReader(io.StringIO(write_csv(found))))
    assert len(rows) == 2 * len(SETTINGS)
    for row in rows:
        folder = "plain" if row["task"] == "charades" else "choice"
        one = results(runs / folder)["results"][row["setting"]]
        assert float(row["score"]) == one["headline"]["value"]
        assert float(row["tokens_kept"]) == one["costs"]["tokens_kept"]
        assert float(row["kv_kept_mb"]) == one["costs"]["kv_kept_mb"]
        assert float(row["flops.prefill"]) == one["costs"]["flops"]["prefill"]
        assert int(row["parse_failures"]) == one["parse_failures"]
        for name, value in one["scores"].items():
            assert row[f"score.{name}"] == ("" if value is None else str(value))
        if one["relative"] is not None:
            assert float(row["relative"]) == one["relative"]["share"]
            assert float(row["p"]) == one["relative"]["p"]


def test_markdown_has_the_same_numbers_and_the_best_in_bold(runs: Path) -> None:
    found = sections([load_run(runs / "plain")])
    text, said = markdown(found), results(runs / "plain")["results"]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(SETTINGS) and len({line.count("|") for line in rows}) == 1
    for outcome in found[0].parts[0].outcomes:
        line = next(row for row in rows if row.startswith(f"| {name_of(outcome)} |"))
        headline = said[outcome.label]["headline"]
        assert f"{headline['value']:.3f}" in line and f"[{headline['low']:.3f}" in line
    best = max(("aim@0.25", "uniform@0.25"), key=lambda k: said[k]["headline"]["value"])
    bold = [row for row in rows if "25 %" in row and re.search(r"\| \*\*0\.\d{3}\*\*", row)]
    assert len(bold) == 1 and bold[0].startswith(f"| {best.split('@')[0]} 25 %")
    assert "model some/model-7B" in text and "frames 6" in text


def test_comparable_settings_stand_side_by_side(runs: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", settings=("none@1", "evs@0.5"), commit="abc")
    first = make_run(tmp_path / "first", commit="def")
    (section,) = sections([load_run(first), load_run(other)])
    (part,) = section.parts
    assert part.name == "" and [o.label for o in part.outcomes] == [*SETTINGS, "evs@0.5"]
    heads, rows = table(part)
    assert [name_of(o) for o, _ in rows][:4] == [
        "uncompressed",
        "aim 50 %",
        "uniform 50 %",
        "evs 50 %",
    ]
    assert len(heads) == 9 and all(len(cells) == 9 for _, cells in rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 64}, "frames 64"),
        ({"model": "other/model"}, "model other/model"),
        ({"split": "val"}, "split val"),
        ({"weights": "fedcba9876543210"}, "weights fedcba9876543210"),
        ({"device": "cpu"}, "device cpu"),
        ({"limits": {"max_pixels": 9}}, "limits.max pixels 9"),
    ],
)
def test_other_configurations_never_share_a_table(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    one = make_run(tmp_path / "one", settings=("none@1",))
    two = make_run(tmp_path / "two", settings=("none@1",), **change)
    (section,) = sections([load_run(one), load_run(two)])
    assert len(section.parts) == 2 and section.parts[1].name == words
    assert section.parts[0].name and section.parts[0].slug != section.parts[1].slug
    assert markdown([section]).count("| setting |") == 2


def test_what_may_differ_is_said(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", settings=("none@1",))
    two = make_run(tmp_path / "two", settings=("none@1",), device_name="another GPU")
    wrong = {("none@1", item.id): Response(text="?") for item in grounding_items()}
    three = make_run(tmp_path / "three", settings=("none@1",), said=wrong)
    (part,) = sections([load_run(f) for f in (one, two, three)])[0].parts
    assert any("seconds were measured on a GPU; another GPU" in note for note in part.notes)
    assert any("none@1 was run twice with different scores" in note for note in part.notes)
    assert part.outcomes[0].score == load_run(one).outcomes[0].score


def test_official_scores_take_the_place_of_ours_where_they_differ(tmp_path: Path) -> None:
    items = grounding_items()
    said = {
        (s, item.id): Response(text="at 0.4 s, over by 1.1 s") if k % 2 else answer(item, s)
        for s in SETTINGS
        for k, item in enumerate(items)
    }
    run = load_run(make_run(tmp_path / "r", said=said))
    ours, theirs = (sections([run], official=o)[0].parts[0] for o in (False, True))
    full = ours.outcomes[0]
    assert full.official["mIoU"] not in (None, full.score)  # lmms-eval's parser reads other times
    assert theirs.outcomes[0].score == full.official["mIoU"] and theirs.outcomes[0].low is None
    aim = theirs.outcomes[1]
    assert aim.relative == pytest.approx((aim.score or 0) / (theirs.outcomes[0].score or 1))
    assert aim.p is None and any("own script" in note for note in theirs.notes)
    assert score_tables(ours)[0][0] == ""


def test_a_configuration_is_shown_flat_and_short() -> None:
    made = flat({"a": {"b": 1, "c": {}}, "d": [1, 2.5]})
    assert made == {"a.b": 1, "a.c": {}, "d": [1, 2.5]}
    assert [shown(v) for v in (None, True, 0.25, "a" * 64, [1, "x"], {})] == [
        *("–", "yes", "0.25", "a" * 8, "1, x", "–"),
    ]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("run.json", "[]", "it is no object"),
        ("run.json", '{"task": "charades"}', "field format is missing"),
        ("results.json", "nonsense", "results.json is damaged"),
        ("answers.jsonl", '{"setting": "none@1", "id": "x"\n', "answers.jsonl is damaged"),
        (
            "answers.jsonl",
            '{"setting": "none@1", "id": "x"}\n',
            "answers.jsonl is damaged: field number is missing",
        ),
        ("answers.jsonl", "[1]\n", "answers.jsonl is damaged: it is a list of 1, not an object"),
        ("answers.jsonl", "\n{\n", "answers.jsonl is damaged: it is no JSON"),
    ],
)
def test_a_damaged_file_is_named(
    runs: Path, tmp_path: Path, file: str, text: str, words: str
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(runs / "plain", folder)
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_results_of_another_version_are_refused(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(runs / "plain", folder)
    made = results(folder)
    del made["results"]["aim@0.5"]["sums"]
    (folder / "results.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"results\.json is damaged, or of another version"):
        load_run(folder)


def test_a_report_that_cannot_be_written_says_so(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot be written"):
        write_report([runs / "part"], tmp_path / "file" / "out", worst=0)


def test_the_command_refuses_bad_folders_in_one_line(
    cli: Run, refused: Callable[..., str], runs: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(runs / "plain", bad)
    with (bad / "answers.jsonl").open("a") as file:
        file.write("half a li")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "nowhere": "does not exist",
        tmp_path / "empty": "is empty: give the --out folder of a vidllm eval",
        runs / "videos": "holds no run.json",
        bad: "line 61 of ",
    }
    for folder, words in cases.items():
        line = refused(cli("report", folder))
        assert str(folder) in line and words in line


def test_the_command_writes_everything(cli: Run, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("report", runs / "plain", "--out", out, "--worst", "2", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["page"] == str(out / "report.html")
    assert {Path(file).name for file in said["files"]} == {file.name for file in out.iterdir()}
    names = {"report.html", "report.csv", "report.md", "charades-tokens.png", "charades-iou.png"}
    assert names <= {file.name for file in out.iterdir()}
    assert len(list(out.iterdir())) == len(said["files"])
