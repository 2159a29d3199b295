"""Scores on hand-made cases, baselines, resuming, and `vidllm eval stage` as people run it."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny import save_tiny

from vidllm.answer import Answer
from vidllm.cost import Receipt
from vidllm.errors import InputError
from vidllm.eval.baselines import Fit, baselines, fit, patterns
from vidllm.eval.metrics import (
    Reply,
    clustered_interval,
    event_f1,
    iou,
    merged,
    normal,
    sentences,
    set_iou,
    summarise,
)
from vidllm.eval.records import AnswerFile
from vidllm.eval.report import show
from vidllm.eval.stage import Run, evaluate
from vidllm.eval.sweep import COLUMNS, markdown, settings_of, sweep, write_csv
from vidllm.options import CommonOptions
from vidllm.pipeline import VideoLLM
from vidllm.stage.annotations import tidy
from vidllm.stage.files import Sample, write_stage
from vidllm.stage.questions import QA_KINDS
from vidllm.timecode import RelativeTime, Span
from vidllm.video import VideoClip

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Refused = Callable[..., str]
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


def made(
    kind: str,
    truth: str,
    text: str = "",
    *,
    spans: Sequence[tuple[float, float]] = (),
    true: Sequence[tuple[float, float]] = (),
    said: Sequence[str] | None = None,
    vid: str = "a",
) -> Reply:
    """A reply about a clip of 100 s."""
    after = tuple(said) if said is not None else ("",) * len(spans)
    return Reply(
        f"{vid}-0", vid, kind, "?", 100.0, truth, tuple(true), text, tuple(spans), after
    )  # fmt: skip


def ground(true: tuple[float, float], *spans: tuple[float, float], vid: str = "a") -> Reply:
    return made("ground", "from {} to {}", spans=spans, true=[true], vid=vid)


def test_iou_uses_the_true_union() -> None:
    assert iou((0, 10), (5, 15)) == pytest.approx(5 / 15)
    assert iou((0, 1), (9, 10)) == 0
    assert iou((3, 7), (3, 7)) == 1
    assert iou((5, 5), (0, 10)) == iou((5, 5), (5, 5)) == 0
    # Two of three seconds, and a second that nobody asked for: the hull would give 2 / 10.
    assert set_iou([(0, 2), (9, 10)], [(0, 3)]) == pytest.approx(2 / 4)
    assert set_iou([(0, 2), (1, 3)], [(0, 3)]) == 1
    assert set_iou([], [(0, 3)]) == 0
    assert merged([(4, 5), (3, 1), (2, 4)]) == [(1, 5)]


def test_recall_counts_from_its_threshold_on_and_takes_the_first_span() -> None:
    scores = summarise(
        [
            ground((0, 10), (0, 5)),  # exactly 0.5
            ground((0, 10), (0, 10)),
            ground((0, 10), (50, 60), (0, 10)),  # only the first span counts
            ground((0, 10)),  # no span: 0, and in the denominator
        ],
        QA_KINDS,
    )
    assert scores["mIoU"] == pytest.approx(1.5 / 4)
    assert (scores["R1@0.3"], scores["R1@0.5"], scores["R1@0.7"]) == (0.5, 0.5, 0.25)
    assert scores["parse_failures"] == 0.25
    assert scores["n"] == 4


def test_short_answers_are_compared_up_to_case_blanks_and_punctuation() -> None:
    assert normal("  The Red\tstar. ") == "the red star"
    said = [
        made("count", "2", "2"),
        made("which", "the red star", "The red  star!"),
        made("which", "the red star", "red star"),
        made("does", "spins", ""),
    ]
    scores = summarise(said, QA_KINDS)
    assert scores["qa_accuracy"] == 0.5
    assert scores["qa_by_kind"] == {"does": 0.0, "which": 0.5, "count": 1.0}
    assert scores["parse_failures"] is None
    assert scores["mIoU"] is None
    assert scores["mIoU_ci95"] is None


def test_why_needs_the_cause_and_half_of_the_span() -> None:
    truth = "from {} to {} because the red star spins"
    because = "because the red star spins ."

    def why(span: tuple[float, float], said: str) -> Reply:
        return made("why", truth, spans=[span], true=[(0, 10)], said=[said])

    answers = [
        why((0, 9), because),
        why((0, 4), because),
        why((0, 10), "because the blue star spins"),
        made("why", truth, because, true=[(0, 10)]),
    ]
    scores = summarise(answers, QA_KINDS)
    assert scores["why_accuracy"] == 0.25
    assert scores["why_mIoU"] == pytest.approx((0.9 + 0.4 + 1.0 + 0) / 4)


def test_captions_match_events_by_span_and_sentence() -> None:
    truth = "from {} to {} the star spins . from {} to {} the flag jumps ."
    true, right = [(0.0, 10.0), (20.0, 30.0)], sentences(truth)
    assert [normal(s) for s in right] == ["the star spins", "the flag jumps"]
    assert event_f1(true, ["the star spins.", "The flag jumps"], true, right) == 1
    assert event_f1(true[:1], ["the star spins"], true, right) == pytest.approx(2 / 3)
    assert event_f1(true, ["the flag jumps", "the star spins"], true, right) == 0
    twice = [(0.0, 10.0), (0.0, 9.0)]
    assert event_f1(twice, ["the star spins"] * 2, true, right) == 0.5  # one match, of 2 and 2
    assert event_f1([], [], true, right) == 0


def test_highlights_are_one_set_of_seconds() -> None:
    reply = made(
        "highlights", "from {} to {} , from {} to {}", spans=[(0, 10)], true=[(0, 10), (50, 60)]
    )
    assert summarise([reply], QA_KINDS)["highlights_mIoU"] == 0.5


def test_miou_is_told_by_length() -> None:
    replies = [ground((0, 5), (0, 5)), ground((0, 10)), ground((0, 40), (0, 20))]
    table = summarise(replies, QA_KINDS)["mIoU_by_length"]
    assert {name: (row["mIoU"], row["n"]) for name, row in table.items()} == {
        "4-10%": (1.0, 1),
        "10-20%": (0.0, 1),
        "20-40%": (0.5, 1),
    }
    assert "0-4%" in summarise([ground((0, 1), (0, 1))], QA_KINDS)["mIoU_by_length"]


def test_the_interval_draws_whole_videos() -> None:
    values, videos = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    assert clustered_interval(values, videos, 0) == [0.0, 1.0]  # two videos: nothing is certain
    rng = np.random.default_rng(0)
    many = rng.random(400).tolist()
    low, high = clustered_interval(many, [str(i // 2) for i in range(400)], 1) or [0, 0]
    assert low < np.mean(many) < high
    assert 0.03 < high - low < 0.08
    assert clustered_interval(many, [str(i) for i in range(400)], 2) == clustered_interval(
        many, [str(i) for i in range(400)], 2
    )


def test_question_patterns_leave_out_what_differs_from_clip_to_clip() -> None:
    assert patterns("does the red star spin?") == (
        "does the COLOUR NOUN spin",
        "does the COLOUR NOUN VERB",
    )
    assert patterns("what happens first?") == ("what happens first",) * 2
    assert (
        patterns("which colour does the flag change to?")[1]
        == "which colour does the NOUN change to"
    )


def test_baselines_score_answers_without_a_video(samples: list[Sample]) -> None:
    learnt = fit(120)
    assert 0 <= learnt.span[0] < learnt.span[1] <= 1
    assert learnt.guess("how many times does the pink crown jump?") in ("1", "2")
    assert learnt.guess("something that nobody ever asked") in learnt.answers.values()
    scores = baselines(samples, learnt, seed=1)
    shares = [
        (q.spans[0][1] - q.spans[0][0]) / s.duration
        for s in samples
        for q in s.questions
        if q.kind == "ground"
    ]
    assert scores["whole_video"]["mIoU"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert 0 < scores["random_span"]["mIoU"] < 0.4
    assert scores == baselines(samples, learnt, seed=1)
    known = {q.text: q.answer for s in samples for q in s.questions if q.kind in QA_KINDS}
    perfect = Fit((0.0, 1.0), {"": "", **{patterns(t)[0]: a for t, a in known.items()}})
    assert baselines(samples, perfect, 0)["question_only"]["qa_accuracy"] > 0.7


class Oracle:
    """In the place of a model: says the truth, with times in the 100 relative tokens."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = {str(s.path): s for s in samples}
        self.code = RelativeTime(100)
        self.asked = 0

    def ask(self, clip: VideoClip, questions: list[str]) -> list[Answer]:
        sample = self.samples[clip.path]
        truth = {tidy(q.text): q for q in sample.questions}
        self.asked += len(questions)
        return [self._say(truth[q].answer, truth[q].spans, sample.duration) for q in questions]

    def encode(
        self, clip: VideoClip, watch: object = None, compressors: object = ()
    ) -> tuple[None, float]:
        return None, clip.duration

    def answer(
        self, clip: VideoClip, tokens: None, duration: float, questions: list[str], compressor: Any
    ) -> list[Answer]:
        return self.ask(clip, questions)

    def _say(self, template: str, spans: Sequence[tuple[float, float]], duration: float) -> Answer:
        raw = template.format(*(self.code.encode(t, duration) for span in spans for t in span))
        found = [Span(s.start, s.end) for s, *_ in self.code.find(raw, duration)]
        receipt = Receipt(64, 1024, 256, 4.0, 1.0, {"decode": 0.2, "generate": 0.1})
        return Answer(self.code.readable(raw, duration), tuple(found), receipt, raw)


class OracleRun(Run):
    """A run whose settings do not need a model."""

    def settings(self) -> dict[str, Any]:
        named = {"compressor": "none", "keep": 1.0, "frames": 64, "fps": None}
        return {"split": self.split, "seed": self.options.seed, "model": "oracle", **named}


def oracle_run(samples: list[Sample], data: Path, count: int = 2) -> tuple[Oracle, Run]:
    oracle = Oracle(samples)
    options = CommonOptions(seed=SEED, frames=4)
    return oracle, OracleRun(cast(VideoLLM, oracle), options, "test", samples[:count], data)


def test_true_answers_score_full_marks(
    samples: list[Sample], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = oracle_run(samples, data)
    result = evaluate(run)
    assert result["n"] == sum(len(s.questions) for s in samples)
    assert result["clips"] == 2
    assert result["mIoU"] > 0.9  # a hundred tokens round the times
    assert result["R1@0.7"] == result["qa_accuracy"] == result["caption_f1"] == 1
    assert result["highlights_mIoU"] > 0.9
    assert result["parse_failures"] == 0
    assert result["why_accuracy"] in (None, 1)
    assert (result["frames"], result["tokens_full"], result["tokens_kept"]) == (64, 1024, 256)
    assert result["seconds"] == {"decode": 0.2, "generate": 0.1}
    assert set(result["baselines"]) == {
        "whole_video", "random_span", "constant_span", "question_only",
    }  # fmt: skip
    assert (data / "baselines.json").is_file()
    assert evaluate(run) == result
    show(result)
    assert "whole" in capsys.readouterr().out


def test_a_stopped_run_goes_on_where_it_ended(
    samples: list[Sample], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "answers.jsonl"
    oracle, first = oracle_run(samples, data, count=1)
    evaluate(first, out=out, with_baselines=False)
    text = out.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1 + len(samples[0].questions)
    out.write_text(text[:-40], encoding="utf-8")  # killed in the middle of a line
    oracle, both = oracle_run(samples, data)
    result = evaluate(both, out=out, with_baselines=False)
    assert oracle.asked == 1 + len(samples[1].questions)
    assert result == evaluate(oracle_run(samples, data)[1], with_baselines=False)
    again, run = oracle_run(samples, data)
    assert evaluate(run, out=out, with_baselines=False) == result
    assert again.asked == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1 + result["n"]


def test_an_answer_file_of_another_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    AnswerFile(out, {"seed": 1, "keep": 1.0}).add([ground((0, 1), (0, 1))], {"frames": 2})
    kept = AnswerFile(out, {"seed": 1, "keep": 1.0})
    assert kept.replies["a-0"] == ground((0, 1), (0, 1))
    assert kept.costs["a-0"] == {"frames": 2}
    with pytest.raises(InputError, match=r"another run \(keep: 1.0, not 0.5\)"):
        AnswerFile(out, {"seed": 1, "keep": 0.5})
    whole = out.read_text(encoding="utf-8")
    out.write_text(whole.replace('"truth"', '"trith"'), encoding="utf-8")
    with pytest.raises(InputError, match="line 2 of"):
        AnswerFile(out, {"seed": 1, "keep": 1.0})
    out.write_text("hello\n", encoding="utf-8")
    with pytest.raises(InputError, match="no answer file"):
        AnswerFile(out, {})
    with pytest.raises(InputError, match="cannot be used"):
        AnswerFile(tmp_path, {})


def test_a_sweep_tells_settings_apart(
    samples: list[Sample], data: Path, tiny: Path, tmp_path: Path
) -> None:
    llm = VideoLLM.from_pretrained(tiny, keep=1.0)
    options = CommonOptions(seed=SEED, model=str(tiny))
    run = Run(llm, options, "test", samples[:1], data)
    settings = settings_of("temporal-pool,random,spatial-pool+uniform", "0.5,0.25")
    rows = sweep(run, settings)
    assert [(r["compressor"], r["keep"]) for r in rows[:3]] == [
        ("none", 1.0), ("temporal-pool", 0.5), ("temporal-pool", 0.25),
    ]  # fmt: skip
    full = rows[0]["tokens"]
    assert all(row["tokens"] == full * row["keep"] for row in rows)
    table = markdown(rows).splitlines()
    assert (
        table[0]
        == f"| compressor | keep 50 % · {full // 2} tokens | keep 25 % · {full // 4} tokens |"
    )
    assert [line.split(" |")[0] for line in table[2:6]] == [
        f"| none · {full} tokens", "| temporal-pool", "| random", "| spatial-pool+uniform",
    ]  # fmt: skip
    assert {line.count("|") for line in table[:6]} == {4}
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(COLUMNS)
    assert len(read) == 7
    # The uncompressed row is what a plain run says; one encoding serves all settings.
    clip = options.open(str(samples[0].path))
    texts = [tidy(q.text) for q in samples[0].questions[:3]]
    tokens, duration = llm.encode(clip)
    plain = [a.raw for a in llm.ask(clip, texts, max_new_tokens=8)]
    for _ in range(2):
        said = llm.answer(
            clip, tokens, duration, texts, compressor=settings[0].compressor, max_new_tokens=8
        )
        assert [a.raw for a in said] == plain


def test_a_sweep_scores_against_the_uncompressed_run(samples: list[Sample], data: Path) -> None:
    rows = sweep(oracle_run(samples, data)[1], settings_of("random", "0.5"))
    assert rows[1]["share"] == 1.0
    assert rows[1]["mIoU"] == rows[0]["mIoU"] > 0.9
    assert "(100 %)" in markdown(rows)


@pytest.mark.parametrize(
    ("names", "keeps", "says"),
    [
        ("randm", "0.5", "random"),
        ("random,", "0.5", "empty"),
        ("random", "half", "--keeps"),
        ("random", "1", "between 0 and 1"),
        ("random", "nan", "between 0 and 1"),
        ("random,random", "0.5", "twice"),
        ("random", "0.5,0.50", "twice"),
    ],
)
def test_a_wrong_sweep_is_refused(names: str, keeps: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        settings_of(names, keeps)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--split", "tset"], "test-unseen"),
        (["--seed", "-1"], "--seed"),
        (["--limit", "0"], "--limit"),
        (["--start", "2"], "--start"),
        (["--keeps", "0.5"], "--keep"),
        (["--sweep", "random", "--keep", "0.5"], "--sweep"),
        (["--sweep", "random", "--keeps", "2"], "--keeps"),
        (["--model", "no/such/folder"], "no such model folder"),
        (["--out", "."], "--out"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    cli: Cli, refused: Refused, tmp_path: Path, arguments: list[str], says: str
) -> None:
    assert says in refused(cli("eval", "stage", "--data", tmp_path, *arguments, cwd=tmp_path))


def test_an_unknown_task_is_refused_and_the_known_ones_are_listed(
    cli: Cli, refused: Refused
) -> None:
    assert "stge" in refused(cli("eval", "stge"))
    listed = json.loads(cli("list", "tasks", "--json").stdout)
    assert [task["name"] for task in listed["tasks"]] == ["stage"]


def test_the_command_makes_files_without_a_model(
    cli: Cli, data: Path, samples: list[Sample]
) -> None:
    result = cli(
        "eval", "stage", "--make-only", "--seed", SEED, "--limit", 2, "--data", data, "--json"
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["clips"] == 2
    assert told["folder"] == str(samples[0].path.parent)
    assert all((Path(told["folder"]) / name).is_file() for name in told["annotations"])
    assert len(told["annotations"]) == 5


def test_the_command_scores_a_model_on_files(
    cli: Cli, data: Path, samples: list[Sample], tiny: Path, tmp_path: Path
) -> None:
    common = ("--model", tiny, "--seed", SEED, "--limit", 2, "--data", data)
    out = tmp_path / "answers.jsonl"
    result = cli("eval", "stage", *common, "--keep", 1, "--json", "--out", out)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)
    wanted = {
        "n", "clips", "split", "seed", "model", "compressor", "keep", "frames", "mIoU", "R1@0.3",
        "R1@0.5", "R1@0.7", "mIoU_ci95", "mIoU_by_length", "qa_accuracy", "qa_by_kind",
        "parse_failures", "why_mIoU", "why_accuracy", "highlights_mIoU", "caption_f1",
        "tokens_full", "tokens_kept", "seconds", "baselines",
    }  # fmt: skip
    assert wanted <= set(scores)
    assert scores["n"] == sum(len(s.questions) for s in samples)
    assert scores["tokens_kept"] == scores["tokens_full"] > 0
    assert list(scores["seconds"]) == ["decode", "encode", "compress", "prefill", "generate"]
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1 + scores["n"]
    table = cli(
        "eval",
        "stage",
        *common,
        "--sweep",
        "uniform",
        "--keeps",
        "0.5",
        "--out",
        tmp_path / "a.csv",
    )
    assert table.returncode == 0, table.stderr
    assert table.stdout.startswith("| compressor | keep 50 %")
    assert "| uniform |" in table.stdout
    assert (tmp_path / "a.csv").is_file()
