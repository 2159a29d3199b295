"""`VideoLLM` and `vidllm eval` with vLLM as the engine, beside the same with transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_engine import CLOSE, ROUNDED, Pair, behind_the_last, save
from transformers import AutoConfig

from vidllm import Answer, VideoLLM
from vidllm.errors import InputError
from vidllm.models.families.processing import Processing
from vidllm.models.serving.vllm_engine import VllmEngine
from vidllm.progress import Stopped, StopSignal
from vidllm.video import VideoClip

QUESTIONS = ["what is there to see?", "when does it end?", "which one? A or B"]
CHOICES = [None, None, ("A", "B")]


def _clip() -> VideoClip:
    """Frames whose seconds are not evenly apart, more rows and columns than pairs of them."""
    frames = np.random.default_rng(5).integers(0, 256, (8, 112, 140, 3), dtype=np.uint8)
    seconds = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 4.25, 4.75])
    return VideoClip(
        frames=frames, seconds=seconds, fps=2.0, duration=5.0, indices=np.arange(8), path="made"
    )


@pytest.fixture(scope="module")
def both(pair: Pair) -> tuple[VideoLLM, VideoLLM]:
    """A model under transformers, and the same in the engine that the tests share."""
    dtype = "bfloat16" if pair.rounded else "float32"
    plain = VideoLLM.from_pretrained(pair.folder, device="cpu", dtype=dtype)
    if plain.engine.kind == "qwen2_5_vl":
        behind_the_last(plain.model.model)
    with torch.device("meta"):
        empty = type(plain.model)(AutoConfig.from_pretrained(pair.folder))
    beside = Processing.beside(str(pair.folder), plain.engine.kind, {})
    empty = empty.to(plain.model.dtype)
    return plain, VideoLLM.of(VllmEngine(empty, beside, pair.engine.llm, "hash"))


def _edges(answer: Answer) -> list[tuple[float, float]]:
    return [(span.start, span.end) for span in answer.spans]


@pytest.mark.parametrize("method", ["none", "aim:keep=0.3", "evs:budget=20", "dycoke,uniform"])
def test_the_same_answers_receipts_and_letters(
    pair: Pair, both: tuple[VideoLLM, VideoLLM], method: str
) -> None:
    """Where bfloat16 rounds, answers may part at a near tie: the letters' chances are held."""
    clip = _clip()
    asked: dict[str, Any] = {"choices": CHOICES, "max_new_tokens": 8, "compressor": method}
    asked |= {"keep": 0.4} if "," in method else {}
    plain, served = (llm.ask(clip, QUESTIONS, **asked) for llm in both)
    for one, other in zip(plain, served, strict=True):
        if not pair.rounded:
            assert one.raw == other.raw
            assert _edges(one) == _edges(other)
            scores = [span.score for span in other.spans]
            assert [span.score for span in one.spans] == pytest.approx(scores, abs=CLOSE)
        mine, theirs = one.receipt, other.receipt
        for name in ("frames", "tokens_full", "tokens_kept", "kv_full_mb", "kv_kept_mb"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.flops == pytest.approx(theirs.flops)
        assert set(theirs.shared_by.values()) == {len(QUESTIONS)}
    near = ROUNDED / 2 if pair.rounded else CLOSE
    assert served[2].letters == pytest.approx(plain[2].letters, abs=near)
    assert served[0].letters is None and served[0].kept is None


def test_what_it_cannot_serve_is_refused_and_it_goes_on(both: tuple[VideoLLM, VideoLLM]) -> None:
    llm, clip = both[1], _clip()
    for method, reason in (
        ("semvid:keep=0.5", "reads the question"),
        ("fastv:keep=0.5", "decoder"),
    ):
        with pytest.raises(InputError, match=reason):
            llm.ask(clip, "when?", compressor=method)
    with pytest.raises(InputError, match="before it answers"):
        llm.preview(clip, compressor="aim:keep=0.5")
    with pytest.raises(InputError, match="refuses"):
        llm.ask(clip, "?" * 2000, max_new_tokens=2)
    signal = StopSignal()
    signal.stop()
    with pytest.raises(Stopped):
        llm.ask(clip, "when?", listener=signal)
    assert llm.ask(clip, "when?", compressor="aim:keep=0.5", max_new_tokens=4).raw
    assert not llm.engine.llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "other"}, "transformers or vllm"),
        ({"engine_options": {"max_model_len": 64}}, "engine='vllm'"),
        ({"engine": "vllm", "attn": "eager"}, "attn is for models"),
        ({"engine": "vllm", "engine_options": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    folder = save("qwen3_vl", tmp_path)
    with pytest.raises(InputError, match=reason):
        VideoLLM.from_pretrained(folder, **options)


def _evaluated(folder: Path, model: Path, out: str, *engine: str) -> list[dict[str, Any]]:
    """What `vidllm eval stage` wrote down of a model's answers."""
    command = [sys.executable, "-m", "vidllm.cli", "eval", "stage", "--model", str(model)]
    command += ["--limit", "2", "--frames", "8", "--max-new-tokens", "6", "--dtype", "float32"]
    command += ["--compressor", "evs", "--keep", "0.5", "--jobs", "1", "--no-baselines"]
    command += ["--data", str(folder / "data"), "--out", str(folder / out)]
    done = subprocess.run(
        [*command, *engine],
        env={k: v for k, v in os.environ.items() if k != "VIDLLM_COMPRESSOR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder / out / "answers.jsonl").read_text().splitlines()
    return [{**json.loads(line), "kept": None} for line in lines]


def test_a_benchmark_gets_the_same_answers(tmp_path: Path) -> None:
    """The command line as people run it, with vLLM in processes of its own."""
    model = save("qwen3_vl", tmp_path / "model")
    options = json.dumps({"enforce_eager": True, "max_model_len": 2048})
    engine = ("--engine", "vllm", "--engine-options", options)
    served = _evaluated(tmp_path, model, "vllm", *engine)
    assert served == _evaluated(tmp_path, model, "transformers")
    assert {row["setting"] for row in served} == {"none@1", "evs@0.5"}
    told = json.loads((tmp_path / "vllm" / "run.json").read_text())
    assert (told["engine"], told["device"]) == ("vllm", "cpu") and told["weights"]
