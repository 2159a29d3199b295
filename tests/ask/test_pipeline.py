"""From a real file to an answer: what the model is told, ranges, several questions, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hub_tiny import save_hub
from tiny import generation, save_tiny, write_video

from vidllm import InputError, Span, VideoLLM, WorkError, load_video
from vidllm.compressors import build
from vidllm.eval.run.answer_costs import CLIP_STAGES, costs_of, mean_costs, split, sum_costs
from vidllm.longvideo.build import native_engine
from vidllm.models.answer import Receipt

TIMES = [0.0, 0.033, 0.1, 0.5, 0.55, 1.2, 2.0, 2.04, 2.9, 3.5, 3.6, 4.4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> VideoLLM:
    return VideoLLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "vfr.mp4", TIMES)


def test_ask_gives_text_spans_and_a_receipt(llm: VideoLLM, video: Path) -> None:
    answer = llm.ask(video, "when does the red star spin?", max_new_tokens=6)
    assert isinstance(answer.text, str) and answer.receipt.frames == len(TIMES)
    assert answer.receipt.tokens_full == 4 * len(TIMES) == answer.receipt.tokens_kept
    assert list(answer.receipt.seconds) == ["decode", "encode", "compress", "prefill", "generate"]
    json.dumps(answer.as_dict())


def test_seconds_told_are_the_containers_to_the_millisecond(llm: VideoLLM, video: Path) -> None:
    clip = load_video(video, frames=len(TIMES))
    tokens, duration = native_engine(llm).tokens(clip)
    assert np.allclose(clip.seconds, TIMES, atol=1e-3)
    middle = (np.asarray(TIMES[1:]) + np.asarray(TIMES[:-1])) / 2
    told = tokens.span[:: len(tokens) // len(TIMES)].numpy()
    assert np.allclose(told[1:, 0], middle, atol=1e-3)
    assert np.allclose(told[:-1, 1], middle, atol=1e-3)
    assert told[0, 0] == 0 and told[-1, 1] == pytest.approx(duration) == clip.duration


def test_questions_together_equal_questions_alone(llm: VideoLLM, video: Path) -> None:
    questions = ["what happens first?", "when does the red star spin?", "describe the video"]
    together = llm.ask(video, questions, max_new_tokens=8)
    alone = [llm.ask(video, q, max_new_tokens=8) for q in questions]
    assert [a.raw for a in together] == [a.raw for a in alone]


def test_keep_one_is_the_plain_model(folder: Path, llm: VideoLLM, video: Path) -> None:
    question = "what happens last?"
    plain = llm.ask(video, question, max_new_tokens=8)
    for options in ({"keep": 1.0}, {"compressors": "aim", "keep": 1.0}, {"compressors": "none"}):
        same = VideoLLM.from_pretrained(folder, **options).ask(video, question, max_new_tokens=8)
        assert same.raw == plain.raw
        assert same.receipt.tokens_kept == plain.receipt.tokens_kept


@pytest.mark.parametrize("spec", ["temporal-pool", "aim,uniform", "random:seed=3"])
def test_the_receipt_counts_what_is_kept(folder: Path, video: Path, spec: str) -> None:
    llm = VideoLLM.from_pretrained(folder, compressor=spec, keep=0.25)
    receipt = llm.ask(video, "what happens first?", max_new_tokens=2).receipt
    assert receipt.tokens_kept == receipt.tokens_full // 4 == 12
    assert receipt.kv_kept_mb == pytest.approx(receipt.kv_full_mb / 4)
    assert "tokens 48 → 12 (25 %)" in str(receipt)


def test_a_range_is_told_as_its_own_time_line(llm: VideoLLM, video: Path) -> None:
    clip = load_video(video, frames=8, start=1.0, end=3.0)
    tokens, length = native_engine(llm).tokens(clip)
    assert length == pytest.approx(2.0)
    assert float(tokens.span.max()) == pytest.approx(2.0)
    first = llm.config.time_token_start
    reply = [first, first + llm.config.time_tokens - 1]
    answer = llm.engine.decode(generation(reply), "when?", clip)
    assert answer.spans == (Span(1.0, 3.0),)
    assert answer.text == "1.0 s 3.0 s"


def test_unknown_words_are_named(llm: VideoLLM, video: Path) -> None:
    answer = llm.ask(video, "When does the RED zebra spin?", max_new_tokens=2)
    assert answer.notes == ("the model does not know: zebra",)


def test_ground_fails_without_a_time_instead_of_guessing(llm: VideoLLM, video: Path) -> None:
    answer = llm.ground_answer(video, "the red star spins", max_new_tokens=1)
    assert answer.failed and answer.spans == ()
    assert "the answer names no time" in answer.notes
    assert llm.ground(video, "the red star spins", max_new_tokens=1) == []


def test_instances_and_chains_are_compressors_too(folder: Path, video: Path) -> None:
    chain = build("temporal-pool:k=2,uniform:budget=5")
    llm = VideoLLM.from_pretrained(folder, compressor=chain)
    assert llm.ask(video, "what happens?", max_new_tokens=1).receipt.tokens_kept == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compressors": "tempral-pool", "keep": 0.5}, "temporal-pool"),
        ({"compressors": "aim"}, "keep"),
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"recipe": "strom"}, "storm"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "float99"}, "float32"),
    ],
)
def test_wrong_options_are_refused(folder: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        VideoLLM.from_pretrained(folder, **options)


def test_wrong_questions_are_refused(llm: VideoLLM, video: Path) -> None:
    for question in ("", "   ", [], "say <|end|>"):
        with pytest.raises(InputError):
            llm.ask(video, question)
    with pytest.raises(InputError, match="load_video"):
        llm.ask(load_video(video), "what?", frames=3)


def test_a_foreign_model_and_broken_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="bert"):
        VideoLLM.from_pretrained(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WorkError, match="cannot be loaded"):
        VideoLLM.from_pretrained(broken)


@pytest.mark.parametrize("spec", ["temporal-pool:keep=0.5", "fastv:keep=0.5"])
def test_the_shares_of_questions_asked_together_add_up_to_the_call(
    llm: VideoLLM, video: Path, spec: str
) -> None:
    questions = ["what happens first?", "when does the red star spin?", "describe the video"]
    answers = llm.ask(video, questions, max_new_tokens=4, compressor=spec)
    receipts = [answer.receipt for answer in answers]
    anew = spec.startswith("fastv")  # it reads the question
    call = dict(receipts[0].seconds)
    for stage in ("compress", "prefill", "generate") if anew else ():
        call[stage] = sum(receipt.seconds[stage] for receipt in receipts)
    for stage, spent in call.items():
        shares = [receipt.own_seconds[stage] for receipt in receipts]
        assert sum(shares) == pytest.approx(spent, rel=1e-9)
        shared = not (anew and stage in ("compress", "prefill", "generate"))
        assert receipts[0].shared_by[stage] == (3 if shared else 1)
    costs = costs_of(receipts)
    assert sum_costs(costs)["total_seconds"] == pytest.approx(sum(call.values()), rel=1e-3)
    assert 3 * mean_costs(costs)["total_seconds"] == pytest.approx(sum(call.values()), rel=1e-3)
    assert "3 questions share decode, encode" in str(receipts[0])
    told = receipts[0].as_dict()
    assert told["shared_by"]["encode"] == 3
    assert told["own_seconds"]["encode"] == pytest.approx(told["seconds"]["encode"] / 3, abs=1e-4)
    alone = llm.ask(video, questions[0], max_new_tokens=2).receipt
    assert alone.own_seconds == alone.seconds and "share" not in str(alone)


def test_what_was_asked_one_by_one_pays_once_for_the_clip() -> None:
    def alone(generate: float) -> Receipt:
        seconds = {"decode": 0.3, "encode": 0.6, "generate": generate}
        return Receipt(8, 64, 64, 2.0, 2.0, seconds)

    costs = [*(costs_of([alone(g)])[0] for g in (0.1, 0.2, 0.3)), {}]
    assert sum_costs(split(costs, CLIP_STAGES))["seconds"] == pytest.approx(
        {"decode": 0.3, "encode": 0.6, "generate": 0.6}
    )
    assert split(costs, CLIP_STAGES)[-1] == {}


@pytest.mark.parametrize("spec", ["temporal-pool:keep=0.5", "fastv:keep=0.5"])
def test_a_hub_models_shares_add_up_too(
    tmp_path_factory: pytest.TempPathFactory, video: Path, spec: str
) -> None:
    model = VideoLLM.from_pretrained(save_hub(tmp_path_factory.mktemp("hub"), "qwen2_5_vl"))
    answers = model.ask(
        video, ["who?", "what?", "when?"], frames=4, max_new_tokens=2, compressor=spec
    )
    receipts = [answer.receipt for answer in answers]
    for stage in ("compress", "prefill"):  # one pass over the video, unless the question is read
        alone = spec.startswith("fastv")
        assert {r.shared_by.get(stage, 1) for r in receipts} == {1 if alone else 3}
        assert alone or len({r.seconds[stage] for r in receipts}) == 1
    assert {r.shared_by.get("generate", 1) for r in receipts} == {1}
    spent = {**receipts[0].seconds, "generate": sum(r.seconds["generate"] for r in receipts)}
    for stage in ("compress", "prefill") if spec.startswith("fastv") else ():
        spent[stage] = sum(r.seconds[stage] for r in receipts)
    total = sum_costs(costs_of(receipts))["total_seconds"]
    assert total == pytest.approx(sum(spent.values()), rel=1e-3)
