"""`vidllm bench models`: published shapes, shares that add up, memory counted exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vidllm import InputError
from vidllm.compressors import describe
from vidllm.eval.bench.model_cost import bench_models, models_table, training_free
from vidllm.eval.bench.model_shapes import build_subject
from vidllm.models.cost.flops import Decoder
from vidllm.models.cost.memory import Allocated
from vidllm.models.cost.presets import PRESETS


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen2.5-vl-3b", "llava-onevision-7b"])
def test_at_scale_one_a_model_has_its_published_size(name: str) -> None:
    model = build_subject(name, 1.0, torch.device("meta"), torch.bfloat16).model
    count = sum(p.numel() for p in model.parameters()) / 1e9
    assert count == pytest.approx(PRESETS[name].parameters, rel=0.005)
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "tokens"), [("qwen2.5-vl-7b", 2 * 256), ("llava-onevision-7b", 4 * 196)]
)
def test_rows_are_measured_against_the_model_alone(name: str, tokens: int) -> None:
    saved: list[int] = []
    rows = bench_models(
        [name],
        ["aim", "fastv"],
        frames=[200],
        keeps=[1.0, 0.25],
        scale=0.02,
        runs=1,
        new_tokens=3,
        save=lambda found: saved.append(len(found)),
    )
    assert [(r["compressor"], r["keep"]) for r in rows] == [
        ("none", None),
        ("aim", 1.0),
        ("aim", 0.25),
        ("fastv", 1.0),
        ("fastv", 0.25),
    ]
    assert saved == [1, 2, 3, 4, 5]
    plain, whole, aim, _, fastv = rows
    text = 100 + (2 if name.startswith("qwen") else 1)  # marks around the video, or a newline
    assert {r["tokens"] for r in rows} == {tokens}
    assert (plain["kept"], whole["kept"], aim["kept"]) == (tokens, tokens, tokens // 4)
    subject = build_subject(name, 0.02, torch.device("cpu"), torch.float32)
    shape = Decoder.of(subject.model.config.get_text_config())
    full = shape.prefill(tokens + text, causal=True, logits=0)
    assert plain["prefill_flops"] == whole["prefill_flops"] == full
    less = shape.prefill(tokens // 4 + text, causal=True, logits=0)
    assert aim["flops_ratio"] == pytest.approx(full / less)
    assert 1 < fastv["flops_ratio"] < aim["flops_ratio"]  # it cuts from the third layer on
    assert plain["speed_up"] == plain["flops_ratio"] == plain["peak_share"] == 1
    for row in rows:
        assert 0 < row["prefill_ms"] < row["ttft_ms"]
        assert row["decode_tps"] > 0 and row["peak_mb"] > 0
        assert row["speed_up"] == pytest.approx(plain["prefill_ms"] / row["prefill_ms"])
        assert row["of_ideal"] == pytest.approx(row["ideal_ms"] / row["prefill_ms"])
        assert row["quotient"] == pytest.approx(row["speed_up"] / row["flops_ratio"])
        assert row["device"].startswith("CPU") and row["dtype"] == "float32"
    assert aim["peak_share"] < 1
    assert models_table(rows).row_count == 5


def test_every_method_without_training_is_measured() -> None:
    free = {e["name"] for e in describe() if not e["trained"]} - {"none", "mustdrop-cache"}
    assert set(training_free()) == free | {"mustdrop-filter,mustdrop-cache"}
    assert training_free(["ai*", "aim"]) == ["aim", "aim-prune"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"models": ["qwen3-vl-8b"]}, "bench models has no 'qwen3-vl-8b': use llava-onevision-7b"),
        ({"methods": ["flextok"]}, "methods without training"),
        ({"methods": ["aimm"]}, "aimm"),
        ({"scale": 0.0}, "--scale must be above 0"),
        ({"keeps": [0.0]}, "above 0 and at most 1"),
        ({"new_tokens": 1}, "an answer has 2 tokens"),
        ({"frames": [0]}, "counts start at 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        bench_models(**options)
    assert "\n" not in str(caught.value)


def test_memory_is_the_most_that_lives_at_once() -> None:
    before = torch.zeros(1000)
    with Allocated() as memory:
        one = before + 1  # 4000 bytes
        view = one[:10]
        two = one * 2
        del two
        three = torch.zeros(500, dtype=torch.float64)  # 4000
        before.add_(1)
        one.mul_(2)
    assert memory.most == 8000 and memory.now == 8000
    del one, three
    assert memory.now == 4000  # the view holds it
    del view
    assert memory.now == 0
