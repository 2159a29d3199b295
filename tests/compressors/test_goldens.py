"""The classes that run, on the golden vectors' own inputs; `docs/goldens.md` lists which is where.

What a class does otherwise than its authors on purpose, and what ties it to their function then,
stands beside the test.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from authors import fastvid, flashvid, mustdrop, vidcom2
from goldens import golden
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from vidllm.compressors import PyramidDrop, build, get
from vidllm.compressors.aim_prune import importance_rows
from vidllm.compressors.base import InTower
from vidllm.compressors.vtg_llm import SlotSampler, VtgLlm
from vidllm.models.hooks.pruning import Pruner, VideoRun
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape


def clip(features: Tensor, rows: int = 1, **signals: Tensor) -> VideoTokens:
    """A clip from (T, n, D) with signals (T, n, ...), a frame a second."""
    frames, cells, width = features.shape
    grid = features.reshape(frames, rows, cells // rows, width)
    tokens = VideoTokens.from_grid(grid, [float(t) for t in range(frames)], float(frames))
    return tokens.with_signals(**{name: plane.flatten(0, 1) for name, plane in signals.items()})


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_tower(name: str, tokens: VideoTokens, front: int, budget: int) -> VideoTokens:
    """What a method makes of a one-layer tower's patches behind `front` tokens of each frame."""
    frames = tokens.grid[0]
    method = cast(InTower, build(f"{name}:faithful=true"))
    shape = TowerShape(1, front, frames, len(tokens) // frames)
    (step,) = method.tower_steps(shape, budget)
    for selection in step.decide(tokens):
        tokens = tokens.apply(selection)
    return tokens


# Merging in a tower


def test_aim_with_an_odd_frame_clamps_as_the_authors() -> None:
    data = golden("aim_merge_odd7_clamp")
    after = build("aim:faithful=true", budget=4)(clip(data["x"]))
    assert torch.allclose(after.features[None], data["out"], atol=1e-5)


def test_tome_without_a_class_token() -> None:
    data = golden("tome_even_nocls")
    first = build("tome:faithful=true", budget=22)(clip(data["x"], vision_keys=data["metric"]))
    assert torch.allclose(first.features.view(2, 11, 12), data["merged"], atol=1e-5)
    assert torch.equal(first.size.view(2, 11, 1), data["size"])
    again = first.with_signals(vision_keys=data["metric2"].flatten(0, 1))
    second = build("tome:faithful=true", budget=18)(again)
    assert torch.allclose(second.features.view(2, 9, 12), data["merged2"], atol=1e-5)
    assert torch.equal(second.size.view(2, 9, 1), data["size2"])


def test_tome_behind_a_class_token() -> None:
    data = golden("tome_odd_cls")
    tokens = clip(data["x"][:, 1:], vision_keys=data["metric"][:, 1:])
    first = in_tower("tome", tokens, 1, 20)
    assert torch.allclose(first.features.view(2, 10, 12), data["merged"][:, 1:], atol=1e-5)
    assert torch.equal(first.size.view(2, 10, 1), data["size"][:, 1:])
    again = first.with_signals(vision_keys=data["metric2"][:, 1:].flatten(0, 1))
    second = in_tower("tome", again, 1, 16)
    assert torch.allclose(second.features.view(2, 8, 12), data["merged2"][:, 1:], atol=1e-5)
    assert torch.equal(second.size.view(2, 8, 1), data["size2"][:, 1:])


@pytest.mark.parametrize(
    ("case", "front"), [("tempme_merge_cls1", 1), ("tempme_merge_cls2_even", 2)]
)
def test_tempme_inside_a_frame(case: str, front: int) -> None:
    data = golden(case)
    size = data.get("size_in", torch.ones_like(data["x"][..., :1]))
    left = data["out"].shape[1] - front
    for row, (x, keys) in enumerate(zip(data["x"], data["metric"], strict=True)):
        tokens = clip(x[None, front:], vision_keys=keys[None, front:])
        tokens = replace(tokens, size=size[row, front:, 0])
        after = in_tower("tempme", tokens, front, left)
        assert torch.allclose(after.features, data["out"][row, front:], atol=1e-5)
        assert torch.equal(after.size, data["size_out"][row, front:, 0])


def test_visionzip_beside_a_class_token() -> None:
    data = golden("visionzip_cls_4x49")
    score = data["cls_attention_heads"].sum(1)[:, 1:]
    tokens = clip(
        data["hidden"][:, 1:], 7, cls_attention=score, vision_keys=data["key_mean"][:, 1:]
    )
    method = build("visionzip:faithful=true", budget=4 * 14)
    vars(method)["dominant"] = 9 / 14
    after = method(tokens)
    assert torch.allclose(after.features.view(4, 14, 16), data["tokens"][:, 1:], atol=1e-5)


# Merging over time


@pytest.mark.parametrize(
    ("case", "rows", "variant"),
    [("fastvid_ov_16x49", 7, "llava"), ("fastvid_qwen25_16x6x6", 6, "qwen")],
)
def test_fastvid(case: str, rows: int, variant: str) -> None:
    """The class takes a frame's mean for its feature, as the Qwen golden does.

    The other golden's frames have features of their own: its function is asked with the means.
    """
    data = golden(case)
    share, c, tau = (float(data[k]) for k in ("retention_ratio", "DySeg_c", "DySeg_tau"))
    x, attention, count = data["features"], data["frame_attention"], len(data["video_tokens"])
    ignore = float(data["DySeg_ignore"]) if variant == "qwen" else None
    options: dict[str, Any] = {"variant": variant, "c": int(c), "tau": tau, "ignore": ignore or 0.0}
    method = get("fastvid", budget=count, faithful=True, **options)
    after = method(clip(x, rows, cls_attention=attention))
    index, wanted = data["video_kept_idx"], data["video_tokens"]
    if variant == "llava":
        assert not torch.allclose(x.mean(1), data["frame_global_features"])
        index, wanted = fastvid.merge(x, x.mean(1), attention, share, int(c), tau)
    assert torch.equal(after.position, index)
    assert torch.allclose(after.features, wanted, atol=1e-5)


def test_flashvid_keeps_the_authors_picks() -> None:
    """Its count is exact, so that of the golden's 265 tokens it can give just the 192 picks."""
    data = golden("flashvid_16x49")
    options = {"threshold": float(data["segment_threshold"]), "segments": 4}
    tokens = clip(data["features"], 7, cls_attention=data["attention"])
    picks = get("flashvid", alpha=1.0, budget=16 * int(data["num_adts"]), **options)(tokens)
    assert set(picks.position.tolist()) <= set(data["kept_idx"].tolist())
    place = {int(i): n for n, i in enumerate(data["kept_idx"].tolist())}
    rows = data["tokens"][[place[i] for i in picks.position.tolist()]]
    assert torch.allclose(picks.features, rows, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 4])  # in others a pick comes twice, or densities tie
def test_flashvid_is_its_authors_function_where_that_one_is_exact(seed: int) -> None:
    x, attention = noise(8, 16, 6, seed=seed), noise(8, 16, seed=9).abs()
    options = {"alpha": 0.5, "segment_threshold": -2.0, "min_segment_num": 2}
    wanted, index = flashvid.compress(
        x, attention, 0.5, temporal_threshold=1.0, expansion=1.0, **cast(Any, options)
    )
    assert len(index.unique()) == len(index) == 64
    method = get("flashvid", alpha=0.5, similarity=1.0, threshold=-2.0, segments=2, faithful=True)
    after = method(clip(x, 4, cls_attention=attention), 64)
    assert torch.equal(after.position, index)
    assert torch.allclose(after.features, wanted, atol=1e-5)


def test_flashvid_inner_stage_is_fastv() -> None:
    data = golden("flashvid_inner_prune")
    start, count = int(data["start"]), int(data["length"])
    end = start + count
    score = data["attention_prev_layer"][0, :, -1, start:end].mean(0)
    tokens = clip(data["hidden"][:, start:end], decoder_attention=score[None])
    after = build("fastv", budget=math.ceil(count * float(data["llm_retention_ratio"])))(tokens)
    kept = data["keep_idx"][(data["keep_idx"] >= start) & (data["keep_idx"] < end)]
    assert torch.equal(after.position + start, kept)


def test_framefusion_merges_and_then_prunes() -> None:
    data = golden("framefusion_threshold")
    kind = data["patch_type"][0]
    video, cells = torch.nonzero(kind >= 0).flatten(), int(data["patch_num"])
    frames = len(video) // cells
    assert torch.equal(kind[video], torch.arange(cells).repeat(frames))
    tokens = clip(data["hidden"][0, video].view(frames, cells, -1), 3)
    left = len(data["prune_keep"]) - len(kind) + len(video)
    method = build("framefusion:similarity=0.9", budget=left)
    first = tokens.apply(method.plan(tokens, left))
    kept = torch.isin(data["merge_pos0"][0], video)
    assert torch.equal(video[first.position], data["merge_pos0"][0, kept])
    assert torch.allclose(first.features, data["merge_out0"][0, kept], atol=1e-5)
    # The golden's next layer changes the states, and its attention decides on the rest.
    second = first.with_features(data["next_in0"][0, kept])
    attention = data["prune_attention"][0].mean(0)[-1, kept]
    after = method(second.with_signals(decoder_attention=attention))
    stays = data["prune_pos"][0][torch.isin(data["prune_pos"][0], video)]
    assert torch.equal(video[after.position], stays)


# Inside the decoder


def standing(data: dict[str, Tensor]) -> LlamaModel:
    """Four layers that pass states on as they are and attend with the golden's projections."""
    heads, width = int(data["heads"]), int(data["head_dim"])
    config = LlamaConfig(
        hidden_size=data["hidden"].shape[-1],
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width,
        vocab_size=9,
    )
    model = LlamaModel(config).eval()
    for number, layer in enumerate(cast(Any, model.layers)):
        layer.input_layernorm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
        if number:
            layer.self_attn.q_proj.weight.data = data[f"q_w{number - 1}"]
            layer.self_attn.k_proj.weight.data = data[f"k_w{number - 1}"]
    return model


class OneCut(PyramidDrop):
    """PyramidDrop with one of its cuts, before the layer `at`."""

    at = 1

    def points(self, depth: int) -> list[tuple[int, float]]:
        assert super().points(depth)[self.at - 1][0] == self.at
        return [(self.at, self.keep)]


@torch.inference_mode()
def test_pyramiddrop_in_a_decoder() -> None:
    """The golden counts positions anew behind each cut; ours stay, and so may its later choices.

    The cuts are therefore run one at a time, each on the golden's own input.
    """
    data = golden("pyramiddrop_3stage")
    start, whole = int(data["image_start"]), int(data["image_len"])
    hidden, there = data["hidden"], whole
    method = build("pyramiddrop", keep=0.125)
    assert [share for _, share in cast(Any, method).points(4)] == data["ratios"].tolist()
    for stage in range(3):
        model = standing(data)
        tokens = clip(hidden[:, start : start + there])
        kept = int(whole * float(data["ratios"][stage]))
        one = type("Cut", (OneCut,), {"at": stage + 1})(budget=kept)
        seen: list[Tensor] = []
        handle = cast(Any, model.layers)[-1].register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.append(out)
        )
        place = torch.arange(start, start + there)
        pruner = Pruner(
            cast(nn.ModuleList, model.layers),
            cast(nn.Module, model.norm),
            one,
            [VideoRun(0, tokens, place, kept)],
            torch.ones(1, hidden.shape[1], dtype=torch.bool),
        )
        with pruner.attached():
            model(inputs_embeds=hidden)
        handle.remove()
        assert torch.equal(pruner.runs[0].tokens.position + start, data[f"kept_in_stage{stage}"])
        assert torch.allclose(seen[0], data[f"out{stage}"], atol=1e-6)
        hidden, there = data[f"out{stage}"], kept


def test_aim_prune_importance_and_schedule() -> None:
    data = golden("aim_importance_a")
    logits = data["logits"]
    found = importance_rows(lambda a, b: logits[:, :, a:b], logits.shape[2], temperature=0.1)
    assert torch.allclose(found, data["importance"], atol=1e-6)
    theirs = golden("aim_schedule")["qwen2_28"].tolist()
    wanted = [(layer + 1, share) for layer, share in enumerate(theirs) if 0.125 <= share < 1]
    assert cast(Any, build("aim-prune", keep=0.125)).points(28) == wanted


def test_aim_prune_chooses_layer_by_layer() -> None:
    """Of the video tokens that are left; the last one stays here, where the authors drop it."""
    data = golden("aim_qwen2_prefill_decode")
    first, end = data["boundaries"][0, :2].tolist()
    tokens = clip(torch.zeros(1, end - first, 2))
    for layer in range(28):
        left = int(data["mask_after_layer"][layer, 0, first:end].sum())
        raw = data["raw_importance"][layer, 0, first:end][tokens.position]
        if left == 0:
            break
        tokens = build("aim-prune", budget=left)(tokens.with_signals(decoder_importance=raw))
        stays = torch.nonzero(data["mask_after_layer"][layer, 0, first:end]).flatten()
        assert torch.equal(tokens.position, stays)
    assert layer > 20


def test_mustdrop_filter_and_cache_in_a_decoder() -> None:
    """Tied to the authors' functions; those hold the golden in `test_methods_mustdrop`."""
    keys, count, both = torch.tensor([2, 9, 17]), 24, (0.04, 0.09)
    tokens = clip(torch.zeros(1, count, 2))
    marked = torch.zeros(count)
    marked[keys] = 1.0
    tokens = tokens.with_signals(key_tokens=marked)
    chosen: list[Tensor] = []
    lasted = torch.zeros(count)
    for cut in range(4):
        length = len(tokens) + 8
        attention = (3 * noise(1, 4, length, length, seed=cut)).softmax(-1)
        theirs = mustdrop.dual_filter(attention, 3, len(tokens), *both)
        names = torch.nonzero(tokens.signals["key-tokens"] > 0).flatten()
        kept = torch.cat([theirs, names]).unique()
        rows = attention[0, :, 3 + len(tokens) :, 3 : 3 + len(tokens)].mean(0).T
        method = get("mustdrop-filter", global_threshold=both[0], individual_threshold=both[1])
        after = method(tokens.with_signals(decoder_text_attention=rows), len(kept))
        assert torch.equal(after.position, tokens.position[kept])
        tail = torch.arange(3 + len(tokens), length)
        chosen.append(torch.cat([torch.arange(3), 3 + kept, tail]))
        tokens = after
        lasted[tokens.position] += 1
    assert 3 <= len(tokens) < count
    (index, *_) = [i for i in mustdrop.output_aware(chosen, (3, 7, 11, 15), 32) if i is not None]
    cached = clip(torch.zeros(1, count, 2), prefill_survivors=lasted[None])
    method = cast(Any, build("mustdrop-cache"))
    held = index[(index >= 3) & (index < 3 + count)] - 3
    assert torch.equal(method(cached, len(tokens)).position, held)
    holds = [count, count, count, *[5] * 29]
    assert method.first_layer(holds) == 2  # as `output_aware`: all but the one before the cut


# Choosing by features and words


@pytest.mark.parametrize("case", ["vidcom2_8x16", "vidcom2_llavavid_grid"])
def test_vidcom2_is_its_authors_function_where_that_one_lands_on_its_share(case: str) -> None:
    """The golden's own share gives a few tokens more than asked for, which the class takes back."""
    x = golden(case)["features"]
    n = 16 if case == "vidcom2_8x16" else 169
    found = 0
    for budget in range(len(x) // 8, len(x), 1 + len(x) // 100):
        index = vidcom2.select(x, n, budget / len(x))
        if len(index) == budget:
            after = build("vidcom2", budget=budget)(clip(x.view(-1, n, x.shape[1])))
            assert torch.equal(after.position, index)
            found += 1
    assert found


def test_semvid_gives_the_golden_tokens() -> None:
    data = golden("semvid_qwen3_default")
    tokens = clip(data["features"], 6)
    after = build("semvid", budget=len(data["kept_idx"]))(tokens, query=data["query"])
    assert torch.equal(after.position, data["kept_idx"])
    assert torch.equal(after.per_frame(), data["kept_per_frame"])


@torch.inference_mode()
def test_vtg_llm_mixes_into_the_golden_slots() -> None:
    small = golden("vtgllm_slot_small")
    for row, wanted in zip(small["x"], small["out"], strict=True):
        sampler = SlotSampler(8, 5)
        sampler.slots.data = small["slots"]
        method = VtgLlm(slots=5, faithful=True, module=sampler)
        assert torch.allclose(method(clip(row[None]), 5).features, wanted, atol=1e-5)
    data = golden("vtgllm_sequence_time")
    sampler = SlotSampler(8, 4, frames=5, seconds=64)
    sampler.slots.data, sampler.frame.data = data["slots"], data["frame_emb"]
    sampler.time.data = data["time_emb"]
    method = VtgLlm(slots=4, faithful=True, module=sampler)
    for x, seconds, wanted in zip(
        data["qformer_out"].view(2, 5, 3, 8), data["absolute_timestamps"], data["inputs_llama"],
        strict=True,
    ):  # fmt: skip
        tokens = clip(x)
        span = seconds.double().repeat_interleave(3)[:, None].expand(-1, 2).to(tokens.span)
        after = method(replace(tokens, span=span), 4)
        out = nn.functional.linear(after.features, data["proj_w"], data["proj_b"])
        assert torch.allclose(out, wanted, atol=1e-5)


@torch.inference_mode()
def test_timesuite_starts_as_the_mean_that_its_projection_was_trained_for() -> None:
    data = golden("timesuite_good_init")
    for x, wanted in zip(data["x"], data["out"], strict=True):
        after = build("timesuite", budget=2)(clip(x[None]))
        out = nn.functional.linear(after.features, data["proj_w"], data["proj_b"])
        assert torch.allclose(out, wanted, atol=1e-5)
