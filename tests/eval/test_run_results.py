"""What a run came to: intervals of the headline itself, paired tests, tables, two runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidllm.cli.main import main
from vidllm.errors import InputError
from vidllm.eval.report.sweep import is_sweep, markdown
from vidllm.eval.run.answer_costs import costs_of, mean_costs, seconds_spent, sum_costs
from vidllm.eval.run.compare_runs import compare, named
from vidllm.eval.run.headline import Part, by_group, matching
from vidllm.eval.run.journal import Prediction, key_of
from vidllm.eval.run.records import RunFolder
from vidllm.eval.run.results import finish, outcome_of, rescore, summarise, table
from vidllm.eval.run.runner import scored
from vidllm.eval.scores.statistics import bootstrap
from vidllm.eval.tasks import Item, Response, get_task
from vidllm.models.answer import Receipt

LABELS = ("none@1", "aim@0.5", "aim@0.25", "aim+uniform@0.25")


def items(count: int = 12) -> list[Item]:
    """Grounding queries about four videos, two of each category."""
    return [
        Item(
            f"q{k}", f"v{k % 4}", f"v{k % 4}", "when?", [0.0, 10.0],
            kind="ab"[k % 2], groups={"length": ("short", "long")[k % 4 // 2]},
        )
        for k in range(count)
    ]  # fmt: skip


def folder_of(
    path: Path, ends: Sequence[Sequence[float | None]], labels: Sequence[str] = LABELS
) -> RunFolder:
    """A finished run whose answers say 0 to `ends[setting][item]`; None failed."""
    task, asked, rows = get_task("charades"), items(len(ends[0])), {}
    settings = []
    for label, said_ends in zip(labels, ends, strict=False):
        name, _, keep = label.rpartition("@")
        settings.append({"label": label, "compressor": name, "keep": float(keep), "tokens": None})
        for number, (item, end) in enumerate(zip(asked, said_ends, strict=True)):
            response = Response(f"from 0.0 to {end} seconds", duration=30.0)
            if end is None:
                response = Response(error="no video")
            cost: dict[str, Any] = {
                "frames": 8, "tokens_full": 64, "tokens_kept": 64 * float(keep), "kv_full_mb": 2.0,
                "kv_kept_mb": 2 * float(keep), "flops": {"vision": 1e9}, "peak_mb": None,
                "seconds": {"decode": 0.3, "prefill": 0.1}, "shared_by": 3,
            }  # fmt: skip
            said = Prediction(response, cost={} if end is None else cost)
            row = scored(task, label, item, number, said)
            rows[key_of(row)] = row
    config = {
        "format": 1, "task": "charades", "family": "grounding", "split": "test", "options": {},
        "model": "tiny", "seed": 0, "limit": None, "items": len(asked), "settings": settings,
        "prompts": "p",
    }  # fmt: skip
    folder = RunFolder(path)
    folder.check()
    folder.begin(config, lambda limit: "p")
    finish(task, folder, folder.config(), rows)
    return folder


def results_of(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads((folder.path / "results.json").read_text(encoding="utf-8")))


ENDS = [
    [10.0, 10.0, 10.0, 8.0, 10.0, 10.0, 6.0, 10.0, 10.0, 10.0, 10.0, 5.0],
    [10.0, 9.0, 10.0, 8.0, 10.0, 9.0, 6.0, 9.0, 10.0, 9.0, 10.0, 4.0],
    [2.0, 9.0, 1.0, 8.0, 3.0, 2.0, 6.0, 9.0, 1.0, 2.0, 3.0, 4.0],
    [None, 9.0, 1.0, 8.0, 3.0, 2.0, 6.0, 9.0, 1.0, 2.0, 3.0, 4.0],
]


def test_the_headline_has_the_interval_of_its_own_mean(tmp_path: Path) -> None:
    results = results_of(folder_of(tmp_path, ENDS))
    assert (results["headline"], results["headline_of"]) == ("mIoU", "all answers")
    full = results["results"]["none@1"]
    values = [end / 10 for end in ENDS[0] if end is not None]
    assert full["headline"]["value"] == pytest.approx(np.mean(values))
    asked = bootstrap(values, [f"v{k % 4}" for k in range(12)], seed=0)
    assert (full["headline"]["low"], full["headline"]["high"]) == (asked.low, asked.high)
    assert full["headline"]["videos"] == 4
    assert full["relative"] is None
    assert full["by_group"]["length"]["short"]["n"] == 6
    assert full["by_group"]["length"]["short"]["value"] == pytest.approx(
        np.mean([v for k, v in enumerate(values) if k % 4 < 2])
    )
    last = results["results"]["aim+uniform@0.25"]
    assert (last["failed"], last["parse_failures"]) == (1, 0)
    assert last["failed_videos"] == {"no video": ["v0"]}
    assert last["headline"]["value"] == pytest.approx(sum(e / 10 for e in ENDS[3] if e) / 12)


def test_every_setting_is_told_relative_to_the_uncompressed_run(tmp_path: Path) -> None:
    results = results_of(folder_of(tmp_path, ENDS))["results"]
    near, far = results["aim@0.5"]["relative"], results["aim@0.25"]["relative"]
    means = [np.mean(ends) for ends in ENDS[:3]]  # type: ignore[arg-type]
    assert near["share"] == pytest.approx(means[1] / means[0])
    assert far["difference"] == pytest.approx((means[2] - means[0]) / 10)
    assert far["low"] < far["difference"] < far["high"] < 0
    assert far["p"] < 0.01
    assert near["mcnemar"] == {
        "right": "value ≥ 0.5", "first_only": 1, "second_only": 0, "p": 1.0,
    }  # fmt: skip
    assert (far["n"], far["videos"]) == (12, 4)


def test_scores_again_are_the_same_scores_also_of_an_unfinished_run(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ENDS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert rescore(folder)["finished"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    lines = (tmp_path / "answers.jsonl").read_bytes().splitlines(keepends=True)
    for path in tmp_path.iterdir():
        if path.name != "run.json":
            path.unlink()
    (tmp_path / "rows-0.jsonl").write_bytes(b"".join(lines[:17]) + lines[17][:9])
    half = rescore(folder)
    assert (half["finished"], half["answers"], half["expected"]) == (False, 17, 48)
    assert half["results"]["aim@0.5"]["answers"] == 5
    assert half["results"]["aim@0.5"]["relative"]["n"] == 5  # what both have
    assert not (tmp_path / "results.json").exists()
    (tmp_path / "rows-0.jsonl").unlink()
    with pytest.raises(InputError, match="no answers yet"):
        rescore(folder)


def test_a_headline_may_be_a_mean_over_groups_or_videos() -> None:
    asked = items(8)
    values = {item.id: float(k) / 8 for k, item in enumerate(asked)}
    flat = [values[item.id] for item in asked]
    kinds = [np.mean([v for i, v in zip(asked, flat, strict=True) if i.kind == k]) for k in "ab"]
    assert next(iter(matching(asked, values, float(np.mean(flat))))) == "all answers"
    assert list(matching(asked, values, float(kinds[1]))) == ["kind b", "means of videos, kind b"]
    assert matching(asked, values, 0.123) == {} == matching(asked, values, None)
    uneven = asked[:7]  # now means of videos are another number
    some = {item.id: values[item.id] for item in uneven}
    by_video = [np.mean([some[i.id] for i in uneven if i.vid == f"v{k}"]) for k in range(4)]
    part = matching(uneven, some, float(np.mean(by_video)))["means of videos"]
    videos = {item.id: item.vid for item in uneven}
    interval = part.interval(some, videos, 0)
    assert interval == bootstrap([float(v) for v in by_video], [f"v{k}" for k in range(4)], seed=0)
    worse = {name: value / 2 for name, value in some.items()}
    told = part.versus(some, worse, videos, 0)
    assert told["difference"] == pytest.approx(-np.mean(by_video) / 2)
    groups = by_group(uneven, some, Part("kind a", ("q0", "q2")), 0)
    assert groups["length"]["short"]["n"] == groups["length"]["long"]["n"] == 1


def test_a_task_may_say_itself_what_its_headline_is_the_mean_of(tmp_path: Path) -> None:
    task, rows = get_task("msrvtt"), []
    from vidllm.eval.run.vectors import write_vector

    for number, (kind, vid) in enumerate((k, v) for k in ("text", "video") for v in "abc"):
        item = Item(f"{kind}-{vid}", vid, vid, "x", vid, kind=kind)
        vector = np.eye(3)["abc".index(vid)] if (kind, vid) != ("text", "c") else np.eye(3)[0]
        said = Prediction(Response(raw=write_vector(vector), duration=1.0))
        rows.append(scored(task, "none@1", item, number, said))
    outcome = outcome_of(task, "none@1", rows)
    assert list(outcome.parts) == ["samples"]
    assert outcome.scores["R@1"] == pytest.approx(2 / 3)
    interval = outcome.parts["samples"].interval(outcome.values, outcome.videos, 0)
    assert (interval.value, interval.clusters) == (pytest.approx(2 / 3), 3)


def test_costs_are_shared_by_those_who_were_asked_together() -> None:
    def receipt(prefill: float, kept: int = 16) -> Receipt:
        seconds = {"decode": 0.4, "encode": 0.001, "prefill": prefill, "generate": 2 * prefill}
        return Receipt(8, 64, kept, 2.0, 0.5, seconds, flops={"vision": 1e9, "prefill": 1e6})

    together = costs_of([receipt(0.2), receipt(0.2)], encode=0.6)
    assert together[0]["shared_by"] == 2 and "own" not in together[0]
    assert together[0]["seconds"]["encode"] == 0.6  # as it was when the clip was encoded
    assert sum_costs(together)["seconds"]["prefill"] == pytest.approx(0.2)
    apart = costs_of([receipt(0.2), receipt(0.3)])
    assert apart[0]["own"] == ["prefill", "generate"]
    assert seconds_spent(apart[1]) == {
        "decode": 0.2, "encode": 0.0005, "prefill": 0.3, "generate": 0.6,
    }  # fmt: skip
    sums = sum_costs([*apart, {}])
    assert (sums["answers"], sums["seconds"]["decode"]) == (2, 0.4)
    assert sums["seconds"]["prefill"] == pytest.approx(0.5)
    assert sums["flops"]["vision"] == 2e9
    means = mean_costs([*apart, {}])
    assert list(means["seconds"]) == ["decode", "encode", "prefill", "generate"]
    assert (means["tokens_kept"], means["peak_mb"]) == (16, None)
    assert means["total_seconds"] == pytest.approx((0.4 + 0.001) / 2 + 0.25 + 0.5)
    assert means["total_seconds"] * sums["answers"] == pytest.approx(sums["total_seconds"])
    older = [{k: v for k, v in cost.items() if k != "spent"} for cost in apart]  # of format 1
    assert mean_costs(older)["total_seconds"] == pytest.approx(means["total_seconds"])
    assert mean_costs([])["total_seconds"] is None


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, ENDS)
    results = results_of(folder)
    lines = markdown(results).splitlines()
    assert lines[0] == "| compressor | keep 50 % · 32 tokens | keep 25 % · 16 tokens |"
    assert lines[2].startswith("| none · 64 tokens | 0.908 | |")
    assert lines[3] == "| aim | 0.867 (95 %) | 0.417 (46 %) |"
    assert lines[4] == "| aim+uniform | – | 0.400 (44 %) |"
    assert {line.count("|") for line in lines[:5]} == {4}
    assert is_sweep(results) and not is_sweep({"results": {"none@1": results["results"]["none@1"]}})
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [row["setting"] for row in rows] == list(LABELS)
    assert rows[1]["tokens_kept"] == "32.0"
    assert float(rows[3]["share"]) == pytest.approx(0.4 / 0.908333, abs=1e-3)
    assert rows[0]["share"] == rows[0]["peak_mb"] == ""
    assert table(results) == (tmp_path / "results.csv").read_text()
    assert main(["eval", "score", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "aim+uniform@0.25" in said.out
    assert "0.908" in said.out and "95.4 %" in said.out
    assert said.err.splitlines() == [
        "failed: 1 of 48 answers, which count as wrong",
        "  v0: no video",
    ]
    assert main(["eval", "score", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["aim@0.5"]["failed"] == 0


def test_two_runs_are_compared_question_by_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = folder_of(tmp_path / "a:b", ENDS[:2]).path
    second = folder_of(tmp_path / "c", ENDS[1:3]).path
    rows = compare(str(first), str(second))
    assert [row["setting"] for row in rows] == ["none@1", "aim@0.5"]
    assert rows[0]["difference"] == pytest.approx((sum(ENDS[1]) - sum(ENDS[0])) / 120)  # type: ignore[arg-type]
    (one,) = compare(f"{first}:none@1", f"{first}:aim@0.5")
    assert one["difference"] == rows[0]["difference"]
    assert one["p"] == rows[0]["p"] <= 1
    assert compare(str(first), f"{second}:aim@0.5")[0]["setting"] == "aim@0.5"
    assert named(f"{first}:aim:x=1@0.5")[1] == "aim:x=1@0.5"
    assert main(["eval", "compare", f"{first}:none@1", f"{second}:aim@0.5"]) == 0
    assert "none@1 → aim@0.5" in capsys.readouterr().out
    other = folder_of(tmp_path / "d", [ENDS[0][:8]]).path
    for a, b, says in (
        (first, first, "itself"),
        (first, other, "differ in 4 answers"),
        (f"{first}:aim@0.1", second, "has no setting 'aim@0.1'"),
        (tmp_path, first, "run.json"),
    ):
        with pytest.raises(InputError, match=says):
            compare(str(a), str(b))


def test_summaries_of_some_settings_alone() -> None:
    task, config = get_task("charades"), {"seed": 0, "items": 1}
    one = {"label": "aim@0.5", "compressor": "aim", "keep": 0.5, "tokens": None}
    row = scored(task, "aim@0.5", items(1)[0], 0, Prediction(Response("0 - 5", duration=9.0)))
    found = summarise(task, {**config, "settings": [one]}, {key_of(row): row})
    assert found["results"]["aim@0.5"]["relative"] is None  # nothing to be relative to
    assert found["finished"]
