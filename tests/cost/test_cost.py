"""`vidllm cost`: predicted FLOPs against counted ones, and against published arithmetic."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hf_tiny import FAMILIES, IMAGE, MORE, VIDEO, Video, hf_inputs, hf_model
from tiny import hub_model, tiny_model
from torch import Tensor

from vidllm.cli.main import main
from vidllm.compressors import build
from vidllm.compressors.base import Scorer
from vidllm.encoders.temporal import get_temporal
from vidllm.encoders.vision import build_vision
from vidllm.errors import InputError
from vidllm.models.cost.family_shapes import transformer
from vidllm.models.cost.flops import QWEN2_7B, Decoder, counted, kv_bytes_per_token
from vidllm.models.cost.papers import aim, storm
from vidllm.models.cost.prediction import Plan, cost_of, even_plan, limit, plan_of, timed
from vidllm.models.cost.presets import PRESETS, STORM_MS
from vidllm.models.cost.shapes import from_config, shape_of, temporal_flops
from vidllm.models.native.generation import Prompt, answer_prompt
from vidllm.models.native.model import NativeVideoLLM
from vidllm.progress import Stopwatch
from vidllm.tokens import VideoTokens


def near(value: float) -> Any:
    return pytest.approx(value, rel=0.03)


@dataclass
class Late(Scorer):
    """Leaves between layers and reads nothing of the model, so that it costs nothing itself."""

    name = "late"
    stage = "prefill"

    def points(self, depth: int) -> list[tuple[int, float]]:
        return [(depth // 2, (1 + self.keep) / 2), (depth - 1, self.keep)]

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        return torch.arange(float(len(tokens)))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_decoder_against_the_counter(kind: str) -> None:
    config = transformers.AutoConfig.for_model(
        kind,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=90,
    )
    llm = transformers.AutoModelForCausalLM.from_config(config).eval()
    shape = Decoder.of(config)
    ids = torch.arange(60)[None]
    for logits in (1, 60):
        seen = counted(lambda n=logits: llm(input_ids=ids, logits_to_keep=n))
        assert shape.prefill(60, logits=logits) == near(seen)
    cache = transformers.DynamicCache(config=config)
    with torch.no_grad():
        llm(input_ids=ids, past_key_values=cache)

    def answer() -> None:
        for token in range(5):
            llm(input_ids=torch.tensor([[token]]), past_key_values=cache)

    assert shape.decode(60, 5) == near(counted(answer))
    assert shape.kv_bytes(7, 4) == 7 * kv_bytes_per_token(config, 4)


def test_decoder_counts_each_layer_and_halves_causal_pairs() -> None:
    d = Decoder(2, 8, 16, 2, 1, 4, 10)
    pairs = 2 * 4 * 5 * 5 * 8
    assert d.prefill(5) - d.prefill(5, causal=True) == pairs / 2
    assert d.prefill([5, 5]) == d.prefill(5)
    assert d.prefill([5, 3], logits=0) == (d.prefill(5, logits=0) + d.prefill(3, logits=0)) / 2
    assert d.decode([4, 2], 0) == 0 and d.decode([4, 2], 3) == d.decode([3, 3], 3)
    for wrong in ([5], [5, -1], [1, 2, 3]):
        with pytest.raises(InputError, match="one count a layer, 2"):
            d.prefill(wrong)
    with pytest.raises(InputError, match="cost of a mamba decoder is not known"):
        Decoder.of(transformers.MambaConfig())


TOWERS: dict[str, dict[str, Any]] = {
    "siglip": {"type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
    "siglip-2d": {"type": "siglip_vision_model", "image_size": 32, "vision_use_head": False},
    "clip": {"type": "clip_vision_model", "image_size": 32, "patch_size": 8},
    "dinov2": {"type": "dinov2", "image_size": 28, "patch_size": 7, "mlp_ratio": 3},
    "dinov2-gated": {"type": "dinov2", "image_size": 28, "patch_size": 7, "use_swiglu_ffn": True},
    "registers": {"type": "dinov2_with_registers", "image_size": 28, "patch_size": 7},
    "siglip2": {"type": "siglip2_vision_model", "num_patches": 16, "patch_size": 8},
}


@pytest.mark.parametrize("name", TOWERS)
def test_vision_transformers_against_the_counter(name: str) -> None:
    more = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    if "dinov2" not in TOWERS[name]["type"]:
        more["intermediate_size"] = 56
    tower = build_vision({**TOWERS[name], **more}).eval()
    frames = torch.rand(3, 3, tower.image_size, tower.image_size)
    assert transformer(tower.model.config).flops(3) == near(counted(lambda: tower(frames)))


def test_a_tower_cut_short_and_the_conv_tower_against_the_counter() -> None:
    for model in (hub_model("clip", downsample=2), tiny_model()[0], _cut_short()):
        size = model.vision.image_size
        frames = torch.rand(5, 3, size, size)
        shape = from_config(model.config, "m")
        assert shape.vision(5) == near(counted(lambda m=model, f=frames: m.project(f)))


def _cut_short() -> NativeVideoLLM:
    config = hub_model("siglip").config
    config.vision = {**config.vision, "num_hidden_layers": 6, "layer": -3}
    return NativeVideoLLM(config).eval()


TEMPORAL: tuple[dict[str, Any], ...] = (
    {"name": "ssd", "head_dim": 16},
    {"name": "ssd", "head_dim": 8, "groups": 2, "state": 12, "layers": 2, "chunk": 7},
    {"name": "ssd", "head_dim": 16, "scan": "slot", "bidirectional": False, "time": "embedding"},
    {"name": "ssd", "head_dim": 16, "chunk": 2, "expand": 1},  # more than 64 chunks
    {"name": "storm", "sizes": {"head_dim": 16, "state": 8}},
    {"name": "attention", "head_dim": 16},
    {"name": "storm", "ssm": "mamba"},
    {"name": "identity"},
)


@pytest.mark.parametrize("spec", TEMPORAL, ids=str)
@pytest.mark.parametrize(("frames", "cells"), [(1, 1), (20, 9)])
def test_temporal_encoders_against_the_counter(
    spec: dict[str, Any], frames: int, cells: int
) -> None:
    encoder = get_temporal(dim=32, **spec).eval()
    x, seconds = torch.randn(1, frames, cells, 32), torch.arange(float(frames))[None]
    seen = counted(lambda: encoder(x, seconds))
    assert temporal_flops(spec, 32, frames, cells) == near(seen)


def test_encoders_that_cannot_be_told_are_refused() -> None:
    for spec, said in (
        ({"name": "ssd", "head": 2}, "no option 'head'"),
        ({"name": "atention"}, "no temporal encoder 'atention'"),
        ({"name": "storm", "ssm": "lmu"}, "cannot be told before it runs"),
    ):
        with pytest.raises(InputError, match=said):
            temporal_flops(spec, 32, 2, 2)


@pytest.mark.parametrize("make", ["tiny", "clip"])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_a_whole_run_of_the_native_model_against_the_counter(make: str, keep: float) -> None:
    model = tiny_model()[0] if make == "tiny" else hub_model("clip")
    model.requires_grad_(False)  # the counter hooks on what has a gradient
    frames, size = 24, model.vision.image_size
    pixels, seconds = torch.rand(frames, 3, size, size), np.arange(float(frames))
    head, tail, answer = list(range(10, 14)), list(range(20, 26)), 7
    tokens = model.encode(pixels, seconds, float(frames))
    made: list[Any] = []

    def run() -> None:
        seen = model.encode(pixels, seconds, float(frames))
        prompt = Prompt(head, [tail], seen, float(frames))
        made.append(
            answer_prompt(
                model,
                prompt,
                *Late(keep).before_decoder(seen),
                Stopwatch(),
                max_new_tokens=answer,
                eos=-1,
            )
        )

    seen = counted(run)
    shape = from_config(model.config, "m")
    assert shape.grid(frames) == tokens.grid
    plan = plan_of(Late(keep), tokens.grid, shape.decoder.layers)
    assert plan.last == len(made[0].kept) and len(made[0].ids[0]) == answer
    cost = cost_of(shape, plan, frames, text=len(head) + len(tail), answer=answer)
    assert cost.total == near(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_hub_families_against_the_counter(family: str) -> None:
    model = hf_model(family)
    slots = 6
    inputs = hf_inputs(family, [["ab", Video(slots), 9]])
    seen = counted(lambda: model.model(**inputs))
    free = family in ("qwen2_5_vl", "qwen3_vl", "video_llama_3")
    shape = from_config(model.config, family, size=16 if free else None)
    if free:  # their tiny towers fold 4 x 4 patches of 4 pixels into 2 x 2 tokens
        assert shape.grid(slots * shape.per_slot) == (slots, 2, 2)
    ids = inputs["input_ids"]
    video = int((ids == (IMAGE if family in ("internvl", "smolvlm") else VIDEO)).sum())
    video -= family == "llava_onevision"  # the newline token is text here
    plan = even_plan(video, shape.decoder.layers)
    frames = slots * shape.per_slot
    cost = cost_of(shape, plan, frames, text=ids.shape[1] - video, answer=1)
    logits = 2 * shape.decoder.width * shape.decoder.vocab
    assert cost.decode == 0 and cost.total - logits == near(seen)


@pytest.mark.parametrize("family", MORE)
def test_experts_and_linear_attention_against_the_counter(family: str) -> None:
    """Towers as well; short convolutions are counted with their padding, so a little more."""
    model = copy.deepcopy(hf_model(family))
    model.set_experts_implementation("eager")  # the counter misses grouped products
    text, tokens = model.model.language_model, 128  # whole chunks
    seen = counted(lambda: text(inputs_embeds=torch.randn(1, tokens, 32), use_cache=False))
    assert seen == pytest.approx(Decoder.of(text.config).prefill(tokens, logits=0), rel=1e-3)
    video = hf_inputs(family, [[3, Video(4), 6]])
    told = {name: video[name] for name in ("pixel_values_videos", "video_grid_thw")}
    shape = from_config(model.config, family, size=16)
    assert shape.vision(8) == near(counted(lambda: model.model.get_video_features(**told)))


@pytest.mark.parametrize(
    "spec",
    [
        "aim",
        "temporal-pool,uniform",
        "temporal-pool:k=3,frame-sample",
        "spatial-pool:keep=0.5,dart",
        "aim:keep=0.6,fastv",
        "pyramiddrop",
        "aim-prune",
        "mustdrop-filter,mustdrop-cache",
        "dycoke-cache",
        "per-scene(divprune)",
    ],
)
def test_a_plan_is_what_a_run_leaves(spec: str) -> None:
    model = hub_model("clip")
    model.vision.model.set_attn_implementation("eager")
    method = build(spec, keep=0.3)
    grid = (7, model.grid_side, model.grid_side)
    tokens = model.encode(torch.rand(7, 3, 32, 32), np.arange(7.0), 7.0, wants=method.needs)
    prompt = Prompt([1, 2, 3], [[4, 5, 6, 7]], tokens, 7.0)
    left = method.before_decoder(tokens)
    made = answer_prompt(model, prompt, *left, Stopwatch(), max_new_tokens=3, eos=-1)
    plan = plan_of(method, grid, 2)
    assert plan.total == len(tokens)
    assert sum(plan.cached) / 2 == pytest.approx(made.cached)
    assert len(made.kept) == min(plan.last, plan.cached[-1])


def test_plans_refuse_what_only_the_video_decides() -> None:
    with pytest.raises(InputError, match="what its options leave depends on the video"):
        plan_of(build("mustdrop:threshold=0.9"), (4, 4, 4), 4)
    with pytest.raises(InputError, match="raise its own share or lower the chain's"):
        plan_of(build("temporal-pool:k=4,uniform", keep=0.5), (8, 2, 2), 4)
    inner = plan_of(build("holitom:inner=0.5", keep=0.25), (8, 4, 4), 28)
    assert inner.entering == 64 and inner.layers == (64,) * 18 + (32,) * 10
    assert plan_of(build("none"), (1, 1, 1), 3) == Plan(1, 1, (1, 1, 1), (1, 1, 1))


def test_aim_and_storm_come_out_as_published() -> None:
    found = {claim.what: claim for claim in aim().claims}
    assert found["prefill of all tokens, TFLOPs"].ours == pytest.approx(99.5, abs=0.05)
    assert found["prefill that is left, TFLOPs"].ours == pytest.approx(14.7, abs=0.05)
    assert found["prefill: times fewer FLOPs"].ours == pytest.approx(6.75, abs=0.01)
    assert found["prefill: times fewer FLOPs"].published == 6.8
    told = storm()
    assert [c.ours for c in told.claims if "fewer tokens" in c.what] == [4, 8]
    for claim in told.claims:
        if "end to end" in claim.what:
            assert claim.ours == pytest.approx(claim.published, rel=0.04)
    ends = [claim.ours for claim in told.claims if "limit" in claim.what]
    assert ends[0] == pytest.approx(4.273 / (1.020 + 0.163), abs=1e-3)
    assert all(abs(t - n - v - p) <= 0.03 * t for t, n, v, p in STORM_MS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_weigh_what_their_cards_say(name: str) -> None:
    preset, shape = PRESETS[name], shape_of(name)
    assert shape_of(preset.hub or name).decoder == shape.decoder
    d, tower = shape.decoder, shape.tower.__self__  # type: ignore[attr-defined]
    text = preset.config.get("text_config") or preset.config["text"]
    tables = 1 if text.get("tie_word_embeddings") else 2
    weights = d.layers * d.weights + tables * d.vocab * d.width
    mlp = (3 if tower.gated else 2) * tower.inner
    weights += tower.layers * tower.width * (4 * tower.width + mlp) + tower.patch * tower.width
    weights += sum(wide * out for _, wide, out in shape.projector)
    assert weights / 1e9 == pytest.approx(preset.parameters, rel=0.02)
    assert shape.notes[0].startswith(f"shape of {name}")
    if d.width == 3584:
        assert d == Decoder(**{**vars(QWEN2_7B), "vocab": d.vocab})


def test_fewer_tokens_cost_less_and_never_beat_the_limit() -> None:
    shape = shape_of("llava-onevision-7b")
    depth, costs = shape.decoder.layers, []
    for keep in (1.0, 0.5, 0.25, 0.05):
        costs.append(
            cost_of(shape, plan_of(build("uniform", keep=keep), shape.grid(16), depth), 16)
        )
    nothing = cost_of(shape, even_plan(0, depth), 16)
    totals = [c.total for c in costs]
    assert totals == sorted(totals, reverse=True)
    assert all(costs[0].total / t < limit(costs[0], nothing) for t in totals)
    assert costs[1].kv_bytes * 2 == costs[0].kv_bytes
    spent = timed({"vision": 1.0, "prefill": 3.0}, 0.5)
    assert spent == {"before": 4.0, "after": 2.5, "speed_up": 1.6, "limit": 4.0}
    assert timed({"llm": 1.0}, 0.25)["limit"] == float("inf")


def test_command_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = "cost --model llava-onevision-7b --frames 32 --keep 1,0.25 --recipe aim-merge --json"
    assert main([*words.split(), "--seconds", "decode=1,vision=1,prefill=2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["full"]["tokens_full"] == 6272 and told["grid"] == [32, 14, 14]
    assert [row["tokens_entering"] for row in told["rows"]] == [6272, 1568]
    assert told["rows"][1]["compressor"] == "aim" and told["rows"][0]["speed_up"] == 1
    assert told["rows"][1]["kv_bytes"] == 1568 * 2 * 28 * 4 * 128 * 2
    assert 1 < told["rows"][1]["speed_up"] < told["limit"]["flops"]
    assert told["limit"]["seconds"] == 2.0 and len(told["assumptions"]) > 5
    flops = told["rows"][1]["flops"]
    assert flops["total"] == pytest.approx(sum(v for k, v in flops.items() if k != "total"))


def test_command_shows_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost"]) == 0  # the shipped model, as it was trained
    shown = capsys.readouterr().out
    assert "mrt5" in shown and "Limit of the end-to-end speed-up" in shown
    assert main(["cost", "--paper", "aim"]) == 0
    assert "6.744" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model qwen2.5-vl-8b", "did you mean qwen2.5-vl-7b"),
        ("--model /nowhere/at-all", "no such model folder"),
        ("--keep 0", "--keep must be above 0"),
        ("--keep half", "--keep must be above 0 and at most 1, or a percentage"),
        ("--keep nan", "--keep must be above 0"),
        ("--compressor aim", "Give keep"),
        ("--compressor aimm --keep 0.5", "did you mean aim"),
        ("--recipe stormy", "did you mean storm"),
        ("--model qwen3-vl-8b --size 100", "multiple of 32 for this model: try 96"),
        ("--model smolvlm2-2.2b --size 448", "leave it out"),
        ("--seconds vision=1", "needs the stage prefill or llm"),
        ("--seconds prefill", "--seconds is a list"),
        ("--dtype int8", "--dtype must be one of"),
        ("--attention half", "--attention must be one of"),
        ("--paper vaswani", "--paper must be one of aim, storm"),
        ("--paper aim --keep 0.5", "--paper has its own settings"),
        ("--frames 0", "--frames"),
    ],
)
def test_wrong_options_are_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err and len(shown.err.strip().splitlines()) == 1
