"""The benchmark `stage` as a task and as people run it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from run_tiny import done, order, rows_of, tiny_options
from tiny import save_tiny

from vidllm.ask.video_llm import VideoLLM
from vidllm.cli.main import main
from vidllm.eval.report.stage_results import show
from vidllm.eval.scores.metrics import normal, summarise
from vidllm.eval.tasks import Item, Response, get_task
from vidllm.eval.tasks.baselines import FIT_SCENES, fit
from vidllm.eval.tasks.stage import Stage, reply_of
from vidllm.stage.annotations import tidy
from vidllm.stage.files import Sample, world_mark, write_stage
from vidllm.stage.questions import QA_KINDS
from vidllm.stage.scenes import SPLITS, USUAL
from vidllm.timecode import AbsoluteTime, RelativeTime, TextTime, TimeCode
from vidllm.video import load_video

SEED = 137  # the first clips of this benchmark seed are short


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Sample]:
    return write_stage(data, "test", SEED, 2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def items_of(samples: Sequence[Sample]) -> list[Item]:
    return Stage().items(samples[0].path.parent, "test")


def truthful(item: Item, code: TimeCode) -> Response:
    """The truth, with times as a code writes them."""
    duration = float(item.duration or 0)
    times = [code.encode(t, duration) for span in item.truth["spans"] for t in span]
    raw = item.truth["answer"].format(*times)
    spans = tuple((f.span.start, f.span.end) for f in code.find(raw, duration))
    return Response(code.readable(raw, duration), raw, spans, duration=duration)


@pytest.mark.parametrize(
    "code", [RelativeTime(100), RelativeTime(400), TextTime(), AbsoluteTime()], ids=repr
)
def test_true_answers_score_full_marks_in_every_time_code(
    samples: list[Sample], code: TimeCode
) -> None:
    task, items = Stage(), items_of(samples)
    said = [truthful(item, code) for item in items]
    scores = task.scores(items, said)
    assert scores["mIoU"] is not None and scores["mIoU"] > 0.9  # a hundred tokens round times
    assert scores["R1@0.7"] == scores["qa_accuracy"] == scores["caption_f1"] == 1
    assert scores["highlights_mIoU"] is not None and scores["highlights_mIoU"] > 0.9
    assert scores["parse_failures"] == 0
    assert scores["why_accuracy"] in (None, 1)
    found = task.detail(items, said, seed=0)
    shared = {name for name in found if name in scores}
    assert {"mIoU", "R1@0.5", "qa_accuracy", "caption_f1", "why_mIoU"} <= shared
    for name in shared:
        assert found[name] == (None if scores[name] is None else round(scores[name], 4))
    grounded = [task.value(i, r) for i, r in zip(items, said, strict=True) if i.kind == "ground"]
    assert np.mean(grounded) == scores["mIoU"]
    assert all(task.value(*pair) > 0.7 for pair in zip(items, said, strict=True))


def test_no_answer_is_wrong_and_stays_in_the_denominator(samples: list[Sample]) -> None:
    task, items = Stage(), items_of(samples)
    said = [truthful(item, TextTime()) for item in items]
    said[0] = Response(error="a broken video")
    half = task.scores(items, said)
    whole = task.scores(items, [truthful(item, TextTime()) for item in items])
    assert items[0].kind == "ground"
    count = sum(item.kind == "ground" for item in items)
    assert half["mIoU"] == pytest.approx(whole["mIoU"] * (count - 1) / count, abs=0.02)  # type: ignore[operator]
    assert half["parse_failures"] > 0  # type: ignore[operator]
    assert task.value(items[0], said[0]) == 0
    nothing = [Response("") for _ in items]
    assert {value for name, value in task.scores(items, nothing).items() if name[0] != "p"} == {0}
    counts = [pair for pair in zip(items, nothing, strict=True) if pair[0].kind == "count"]
    assert all(task.read(*pair) == "" for pair in counts)  # wrong, but no failure to parse


def test_a_caption_takes_its_spans_from_the_response() -> None:
    truth = {"answer": "from {} to {} a spins . from {} to {} b .", "spans": [[0, 10], [20, 30]]}
    item = Item("q", "v", "v", "?", truth, kind="caption", duration=100.0)
    # Of a model with 50 time tokens: the second event has no words, the third has.
    raw = "from <t0> to <t5> a spins . from <t6> to <t7> from <t10> to <t15> b ."
    spans = ((0.0, 10.2), (12.2, 14.3), (20.4, 30.6))
    reply = reply_of(item, Response(raw, raw, spans))
    assert reply.spans == ((0.0, 10.2), (20.4, 30.6))
    assert [normal(said) for said in reply.said] == ["a spins", "b"]
    assert Stage().value(item, Response(raw, raw, spans)) == 1.0


def test_the_task_is_what_the_benchmark_is(samples: list[Sample]) -> None:
    task, items = get_task("stage"), items_of(samples)
    assert set(task.splits) == set(SPLITS) and task.splits[0] == "test"
    assert [item.id for item in items] == [
        f"{s.vid}-{k}" for s in samples for k in range(len(s.questions))
    ]
    asked = [q for s in samples for q in s.questions]
    assert [item.prompt for item in items] == [tidy(q.text) for q in asked]
    by_length = summarise([reply_of(item, truthful(item, TextTime())) for item in items], QA_KINDS)[
        "mIoU_by_length"
    ]
    lengths = [item.groups["length"] for item in items if item.kind == "ground"]
    assert {name: row["n"] for name, row in by_length.items() if row["n"]} == {
        name: lengths.count(name) for name in lengths
    }


def test_a_sweep_asks_what_a_plain_run_asks(
    samples: list[Sample], data: Path, tiny: Path, tmp_path: Path
) -> None:
    asked = order(
        "stage", data, tmp_path, "temporal-pool,spatial-pool+uniform", "0.5,0.25", limit=1,
        max_new_tokens=8,
    )  # fmt: skip
    results = done(asked, tiny_options(tiny, seed=SEED)).results["results"]
    assert list(results) == [
        "none@1", "temporal-pool@0.5", "temporal-pool@0.25", "spatial-pool+uniform@0.5",
        "spatial-pool+uniform@0.25",
    ]  # fmt: skip
    full = results["none@1"]["costs"]["tokens_kept"]
    assert [one["costs"]["tokens_kept"] for one in results.values()] == [
        full, full / 2, full / 4, full / 2, full / 4,
    ]  # fmt: skip
    # The uncompressed rows are what the model says by itself.
    llm = VideoLLM.from_pretrained(tiny, keep=1.0, device="cpu")
    clip = load_video(samples[0].path, frames=4)
    plain = llm.ask(clip, [tidy(q.text) for q in samples[0].questions], max_new_tokens=8)
    rows = [r for r in rows_of(tmp_path / "answers.jsonl") if r["setting"] == "none@1"]
    assert [row["raw"] for row in rows] == [answer.raw for answer in plain]
    # With a larger limit the same folder goes on, and nothing is asked again.
    before = (tmp_path / "rows-0.jsonl").read_bytes()
    asked = order(
        "stage", data, tmp_path, "temporal-pool,spatial-pool+uniform", "0.5,0.25", limit=2,
        max_new_tokens=8,
    )  # fmt: skip
    more = done(asked, tiny_options(tiny, seed=SEED)).results
    assert more["answers"] == 5 * sum(len(s.questions) for s in samples)
    assert (tmp_path / "rows-0.jsonl").read_bytes().startswith(before)


def test_the_command_makes_files_without_a_model(
    data: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seed", str(SEED), "--limit", "2", "--data", str(data), "--json"]
    assert main(["eval", "stage", "--make-only", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clips"] == 2
    assert told["questions"] == sum(len(s.questions) for s in samples)
    assert told["folder"] == str(samples[0].path.parent)
    assert all((Path(told["folder"]) / name).is_file() for name in told["annotations"])
    assert len(told["annotations"]) == 5


def test_the_command_scores_a_model_on_files(
    data: Path,
    samples: list[Sample],
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--model", str(tiny), "--seed", str(SEED), "--limit", "2", "--data", str(data)]
    common += ["--device", "cpu", "--max-new-tokens", "4"]
    out = tmp_path / "out"
    # Few scenes to fit on; they are kept beside the benchmark.
    mark = [USUAL, FIT_SCENES, world_mark("train", 0)]
    learnt = json.dumps({"mark": mark, **asdict(fit(60))})
    (data / "baselines.json").write_text(learnt, encoding="utf-8")
    assert main(["eval", "stage", *common, "--keep", "1", "--json", "--out", str(out)]) == 0
    scores = json.loads(capsys.readouterr().out)
    wanted = {
        "n", "clips", "split", "seed", "model", "compressor", "keep", "frames", "mIoU", "R1@0.3",
        "R1@0.5", "R1@0.7", "mIoU_ci95", "mIoU_by_length", "qa_accuracy", "qa_by_kind",
        "parse_failures", "why_mIoU", "why_accuracy", "highlights_mIoU", "caption_f1",
        "tokens_full", "tokens_kept", "seconds", "baselines", "results", "versions", "commit",
    }  # fmt: skip
    assert wanted <= set(scores)
    assert scores["n"] == sum(len(s.questions) for s in samples)
    assert (scores["clips"], scores["compressor"], scores["keep"]) == (2, "none", 1.0)
    assert scores["tokens_kept"] == scores["tokens_full"] > 0
    assert list(scores["seconds"]) == ["decode", "encode", "compress", "prefill", "generate"]
    assert set(scores["baselines"]) == {
        "whole_video", "random_span", "constant_span", "question_only",
    }  # fmt: skip
    assert len(rows_of(out / "answers.jsonl")) == scores["n"]
    show(scores)
    assert "whole" in capsys.readouterr().out
    assert main(["eval", "stage", *common, "--compressor", "uniform,random", "--keep", "0.5"]) == 0
    said = capsys.readouterr().out
    table = said[said.index("| compressor") :].splitlines()
    assert table[0].startswith("| compressor | keep 50 % · ")
    assert [line.split(" |")[0] for line in table[3:5]] == ["| uniform", "| random"]
    assert table[-1] == ("A cell: mIoU (share of the uncompressed mIoU) · R1@0.5 · QA accuracy.")
