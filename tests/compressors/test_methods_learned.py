"""Methods that make new tokens, trained or not: LITA, VTG-LLM, TimeSuite, MrT5, FlexTok."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from authors.lita import MODES, slow_fast
from authors.mrt5 import ShareController, delete
from authors.timesuite import load_tape
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vidllm.compressors import build, get
from vidllm.compressors import vtg_llm as vtg
from vidllm.compressors.flextok import FlexTok, nested_dropout, prefix_length, windows
from vidllm.compressors.lita import slow_frames
from vidllm.compressors.mrt5 import Learned, Mrt5, gate
from vidllm.compressors.timesuite import Tape, TimeSuite, average_init, resample, shuffle
from vidllm.compressors.vtg_llm import VtgLlm, sequence_time, slots, time_table
from vidllm.errors import InputError
from vidllm.tokens import Keep, Mix, VideoTokens

GOLDENS = Path(__file__).parents[1] / "goldens"
TRAINED = ["vtg-llm", "timesuite", "mrt5", "flextok"]
SPECS = [*TRAINED, "lita", "lita:faithful=true", "timesuite:group=3:clips=5"]
SPECS += ["vtg-llm:slots=5:faithful=true", "flextok:registers=6:faithful=true"]
SPECS += ["vtg-llm:sampler=cross-attention:slots=7", "vtg-llm:sampler=codebook:slots=7"]


def golden(name: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / f"{name}.npz").items()}


def clip(grid: tuple[int, int, int], width: int = 6) -> VideoTokens:
    features = torch.randn(*grid, width, generator=torch.Generator().manual_seed(0))
    return VideoTokens.from_grid(features, [2 * t + 1.0 for t in range(grid[0])], 2.0 * grid[0])


@pytest.mark.parametrize("spec", SPECS)
def test_every_budget_is_met_and_the_books_are_kept(spec: str) -> None:
    draw = torch.rand(72, generator=torch.Generator().manual_seed(1))
    thinned = clip((6, 3, 4)).apply(Keep(torch.nonzero(draw < 0.6).flatten()))
    for before in (clip((1, 3, 3)), clip((5, 1, 1)), clip((7, 2, 3)), thinned):
        method = build(spec)
        for budget in {1, 2, len(before) // 4 + 1, len(before) // 2, len(before) - 1}:
            after = method(before, budget=budget)
            assert len(after) == budget
            assert after.features.shape == (budget, 6) and after.features.isfinite().all()
            assert torch.equal(after.source[after.position], torch.arange(budget))
            assert (after.size >= 1).all() and after.size.sum() == (after.source >= 0).sum()
            places = torch.searchsorted(before.position, after.position)
            assert torch.equal(after.cell, before.cell[places])
            assert (after.span[:, 0] <= before.span[places, 0]).all()
            assert (after.span[:, 1] >= before.span[places, 1]).all()
            assert getattr(method, "faithful", False) or (after.position.diff() > 0).all()


@pytest.mark.parametrize("spec", SPECS)
def test_ties_number_types_one_token_and_draws(spec: str) -> None:
    state = torch.get_rng_state()
    tokens, one = clip((5, 2, 2)), clip((1, 1, 1))
    for value in (0.0, 3.0):
        after = build(spec)(tokens.with_features(torch.full((20, 6), value)), budget=7)
        assert after.features.isfinite().all()
        if "cross" not in spec:  # its values are projected
            assert torch.allclose(after.features, torch.tensor(value), atol=1e-5)
    assert build(spec)(one, budget=1) is one
    assert build(spec)(tokens.to(dtype=torch.bfloat16), 5).features.dtype == torch.bfloat16
    first, second = (build(spec)(tokens, budget=9) for _ in range(2))
    assert torch.equal(first.features, second.features) and torch.equal(first.size, second.size)
    assert torch.equal(state, torch.get_rng_state())


def test_lita_is_the_authors_in_the_function_and_in_the_method() -> None:
    data = golden("lita_slowfast_temporal_spatial_pool")
    assert slow_frames(10, 4).tolist() == data["selected"].tolist()
    assert torch.allclose(slow_fast(data["feat"]), data["out"], atol=1e-5)
    for row, expected in zip(data["feat"], data["out"], strict=True):
        tokens = VideoTokens.from_grid(row.view(10, 16, 16, 4), list(range(10)), 10.0)
        after = get("lita", faithful=True)(tokens, budget=266)
        assert torch.allclose(after.features, expected, atol=1e-5)
        timed = get("lita")(tokens, budget=266)
        assert torch.equal(timed.features, after.features[after.position.argsort()])
        assert timed.per_frame().tolist() == [65, 1, 1, 65, 1, 1, 65, 1, 1, 65]


def test_lita_has_five_modes() -> None:
    x = clip((3, 4, 4)).features.view(1, 3, 16, 6)
    assert [slow_fast(x, mode).shape[1] for mode in MODES] == [3, 16, 19, 16, 19]
    assert torch.allclose(slow_fast(x, "temporal"), x.mean(2), atol=1e-6)
    assert torch.allclose(slow_fast(x, "temporal_spatial")[:, 3:], x.mean(1), atol=1e-6)
    pool = slow_fast(x, "spatial_pool")
    assert torch.allclose(pool[0, 0], x[0, 0, [0, 1, 4, 5]].mean(0), atol=1e-6)
    assert torch.equal(pool[0, 4:8], pool[0, 8:12])  # frames 0, 1, 1 and 2 of 3
    assert slow_fast(x[:, :, :15], "spatial_pool", grid=(3, 5)).shape[1] == 4 * 2 * 3
    for mode, message in (("slow", "mode"), ("spatial_pool", "grid")):
        with pytest.raises(InputError, match=message):
            slow_fast(x[:, :, :15], mode)


def test_lita_divides_a_budget_in_the_papers_proportion() -> None:
    tokens = clip((6, 4, 4))
    few = get("lita", faithful=True)(tokens, budget=11)  # 3 fast and 8 slow of 6 and 16
    assert torch.allclose(few.features[:3], tokens.features.view(3, 32, 6).mean(1), atol=1e-6)
    assert torch.bincount(few.frame[3:], minlength=6).tolist() == [2, 0, 2, 2, 0, 2]
    more = get("lita", faithful=True)(tokens, budget=30)  # all six frames, by fours
    assert torch.allclose(more.features[:6], tokens.features.view(6, 16, 6).mean(1), atol=1e-6)
    assert more.per_frame().tolist() == [5] * 6
    # The slow tokens carry a frame, but for the place of the fast one.
    assert (more.source.view(6, 16) == torch.arange(6)[:, None]).sum(1).tolist() == [1] * 6


def test_vtg_slots_and_embeddings_are_the_authors() -> None:
    small = golden("vtgllm_slot_small")
    assert torch.allclose(slots(small["x"], small["slots"]), small["out"], atol=1e-5)
    data = golden("vtgllm_sequence_time")
    names = ("qformer_out", "frame_emb", "time_emb", "absolute_timestamps")
    mixed = slots(sequence_time(**{name: data[name] for name in names}), data["slots"])
    out = F.linear(mixed, data["proj_w"], data["proj_b"])
    assert torch.allclose(out, data["inputs_llama"], atol=1e-5)
    with pytest.raises(InputError, match="0 to 63"):
        late = data["absolute_timestamps"] + 1
        sequence_time(data["qformer_out"], data["frame_emb"], data["time_emb"], late)


def test_vtg_seconds_that_training_never_met(tmp_path: Path) -> None:
    table = torch.zeros(8, 1)
    table[1], table[4] = 10.0, 40.0
    filled = [10, 10, 20, 30, 40, 40, 40, 40]
    shipped = [10, 10, 30, 20, 40, -36.8, -49.6, -24]  # in place, from the last row on
    assert time_table(table).flatten().tolist() == pytest.approx(filled)
    assert time_table(table, faithful=True).flatten().tolist() == pytest.approx(shipped, abs=1e-5)
    assert torch.equal(time_table(torch.zeros(3, 2)), torch.zeros(3, 2))
    ends = torch.tensor([[8.0], [0.0], [0.0], [6.0]])  # every row between two: only the weights
    assert time_table(ends, faithful=True).flatten().tolist() == pytest.approx(
        [8, 20 / 3, 22 / 3, 6]
    )
    late = torch.tensor([[0.0], [0.0], [6.0], [0.0]])  # row 0 is still empty for row 1
    assert time_table(late, faithful=True).flatten().tolist() == pytest.approx([6, 3, 6, -2])
    assert torch.equal(time_table(torch.zeros(3, 2), faithful=True), torch.zeros(3, 2))
    assert vtg.frame_rows(torch.arange(4.0)[:, None], 6).flatten().tolist() == [0, 0, 1, 2, 2, 3]
    tokens, path = clip((4, 2, 3)), str(tmp_path / "weights.safetensors")
    module = VtgLlm().ready(tokens)
    module.get_parameter("time").data[:8] = table
    save_file(module.state_dict(), path)
    now = VtgLlm(weights=path, interpolate=True).ready(tokens).get_parameter("time").detach()
    assert now[:8, 0].tolist() == pytest.approx(filled) and float(now[-1, 0]) == 40


def test_vtg_runs_take_over_where_there_are_too_few_slots() -> None:
    tokens, method = clip((8, 2, 2)), VtgLlm(slots=4, faithful=True)
    after = method(tokens, budget=8)
    halves = slots(tokens.features.view(2, 16, 6), method.ready(tokens).get_parameter("slots"))
    assert torch.allclose(after.features, halves.flatten(0, 1), atol=1e-5)
    timed = VtgLlm(slots=4)(tokens, budget=8)
    assert torch.equal(timed.features, after.features[after.position.argsort()])


def test_vtg_tokens_know_their_second_and_frame() -> None:
    tokens, method = clip((4, 2, 2)), VtgLlm(slots=4)
    module = method.ready(tokens)
    module.get_parameter("time").data[3] = 50.0  # the second frame, at 3 seconds
    module.get_parameter("slots").data.abs_()
    assert set(method(tokens, budget=4).frame.tolist()) == {1}
    module.get_parameter("frame").data[72:] = 90.0  # the last quarter of 96 rows
    assert set(method(tokens, budget=4).frame.tolist()) == {3}
    late = VideoTokens.from_grid(torch.ones(2, 1, 2, 6), [9000.0, 9002.0], 9003.0)
    assert len(VtgLlm()(late, budget=2)) == 2
    with pytest.raises(InputError, match="8191"):
        VtgLlm(faithful=True)(late, budget=2)


def test_vtg_alternatives() -> None:
    x = torch.randn(2, 5, 4, requires_grad=True)
    codes = torch.stack([x[0, 3], x[0, 1]]).detach().requires_grad_()
    out, nearest, loss = vtg.codebook(x[:1], codes)
    assert nearest.tolist() == [[3, 1]] and float(loss.detach()) == pytest.approx(0, abs=1e-9)
    out.sum().backward()
    assert torch.equal(codes.grad, torch.ones(2, 4)) and float(x.grad.sum()) == 8
    attend = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    mixed, weights = vtg.cross_attention(x, codes, attend)
    assert torch.allclose(weights.sum(1), torch.ones(2, 2))
    assert torch.allclose(mixed[1:], vtg.cross_attention(x[1:], codes, attend)[0], atol=1e-6)


def test_timesuite_shuffle_starts_as_the_mean_of_four() -> None:
    data = golden("timesuite_good_init")
    weight = average_init(data["proj_w"])
    assert torch.allclose(weight, data["merge_w"])
    out = shuffle(data["x"], weight, data["proj_b"])
    assert torch.allclose(out, data["out"], atol=1e-5)
    assert torch.allclose(out, data["avg_then_proj"], atol=1e-5)


def test_tape_is_the_authors() -> None:
    data = golden("timesuite_tape_clips8")
    tape = Tape(16, 10, int(data["clip_num"]), int(data["merge_len"]))
    assert not tape(data["x"]).any()  # its last layer starts at zero
    load_tape(tape, {k: v for k, v in data.items() if k.startswith("sd/")})
    assert torch.allclose(tape(data["x"]), data["out"], atol=1e-5)


@pytest.mark.parametrize(("clips", "group"), [(1, 1), (2, 3), (5, 4), (8, 2)])
def test_tape_takes_any_length_and_any_number_of_clips(clips: int, group: int) -> None:
    tape = Tape(8, 3, clips, group)
    torch.nn.init.ones_(tape.leave.weight)
    for length in (1, 2, 5, 16 * group, 16 * group + 1, 63):
        out = tape(torch.ones(1, length, 8))
        assert out.shape == (1, -(-length // group), 3) and out.isfinite().all()


def test_timesuite_untrained_is_the_mean_of_neighbours() -> None:
    tokens = clip((6, 2, 4))
    quarter = get("timesuite", keep=0.25)(tokens)
    assert torch.allclose(quarter.features, tokens.features.view(12, 4, 6).mean(1), atol=1e-5)
    odd = get("timesuite", budget=7)(tokens)  # runs of 6 or 7 tokens
    for slot in range(7):
        mine = tokens.features[odd.source == slot]
        assert torch.allclose(odd.features[slot], mine.mean(0), atol=1e-5)
    bounds = torch.tensor([0, 4, 5, 7, 15])
    rows = resample(torch.arange(15.0)[:, None], bounds[:-1], bounds[1:])
    assert rows.view(4, 4).tolist() == [
        [0, 1, 2, 3],
        [4, 4, 4, 4],
        [5, 5, 6, 6],
        [7.5, 9.5, 11.5, 13.5],
    ]


def test_timesuite_trained_is_shuffle_and_tape() -> None:
    tokens, method = clip((8, 2, 4)), TimeSuite(clips=2)
    module = method.ready(tokens)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    x = module.clip(tokens.features[None])  # type: ignore[operator]
    expected = shuffle(x, module.merge.weight, module.merge.bias) + module.tape(x)  # type: ignore
    assert torch.allclose(method(tokens, budget=16).features, expected[0], atol=1e-4)


def test_mrt5_deletes_softly_and_hard() -> None:
    gates = gate(torch.tensor([[5.0, -5.0, 0.0], [-9.0, -8.0, -8.0]]))
    assert gates[0].tolist() == pytest.approx([-0.0669285, -9.9330715, -5.0])
    x = torch.arange(6.0).view(2, 3, 1)
    kept, index = delete(x, gates)
    assert index.tolist() == [[0, 2], [1, -1]] and kept[..., 0].tolist() == [[0, 2], [4, 0]]


def test_mrt5_keeps_the_best_gates_and_trains_through_the_bias() -> None:
    tokens, method = clip((4, 2, 3)), Mrt5()
    bias = method.bias(tokens)
    assert ((bias > -10) & (bias < 0)).all()
    best = bias.detach().argsort(descending=True, stable=True)[:5].sort().values
    assert torch.equal(method(tokens, budget=5).features, tokens.features[best])
    bias.mean().backward()
    assert all(p.grad is not None for p in method.ready(tokens).parameters())
    noisy = Mrt5(noise=True)
    assert torch.equal(noisy.bias(tokens), bias)
    noisy.ready(tokens).train()
    assert not torch.equal(noisy.bias(tokens), bias)


def test_mrt5_controller_brings_the_share_to_the_target() -> None:
    controller, kept = ShareController(keep=0.5, k_i=0.01), 1.0
    for _ in range(2000):
        kept = 1.0 - min(1.0, 0.8 * controller.step(kept))
    assert kept == pytest.approx(0.5, abs=0.01)
    assert ShareController(0.5).step(0.1) == 0.0
    assert ShareController(0.5).step(0.9) == pytest.approx(0.1 * 0.5 * 0.4 + 1e-5 * 0.4)


def test_flextok_registers_see_halves_and_quarters() -> None:
    start, end = windows(7, 8)
    assert start.tolist() == [0, 0, 4, 0, 4, 2, 6] and end.tolist() == [8, 4, 8, 2, 6, 4, 8]
    tokens = clip((8, 1, 2))
    after = FlexTok(faithful=True)(tokens, budget=6)
    for row, first, last in zip(after.features, *windows(6, 16), strict=True):
        assert torch.allclose(row, tokens.features[first:last].mean(0), atol=0.1)
    assert after.span[0].tolist() == [0.0, 16.0] and after.span[2].tolist() == [8.0, 16.0]


def test_any_prefix_of_flextok_is_what_a_smaller_budget_gives() -> None:
    tokens = clip((6, 2, 3))
    method = FlexTok(faithful=True, registers=10)
    most = method(tokens, budget=30)
    for budget in (1, 2, 5, 12, 29):
        fewer = method(tokens, budget=budget)
        assert torch.allclose(fewer.features, most.features[:budget], atol=1e-6)
        timed = FlexTok(registers=10)(tokens, budget=budget)
        assert torch.equal(timed.features, fewer.features[fewer.position.argsort()])


def test_flextok_trains_with_nested_dropout() -> None:
    x, mask = torch.randn(2, 5, 3), torch.ones(3)
    dropped = nested_dropout(x, mask, 2)
    assert torch.equal(dropped[:, :2], x[:, :2]) and (dropped[:, 2:] == 1).all()
    draw = torch.Generator().manual_seed(0)
    assert {prefix_length(5, generator=draw) for _ in range(99)} == {1, 2, 3, 4, 5}
    assert {prefix_length(6, True, draw) for _ in range(99)} == {1, 2, 4, 6}
    tokens, method = clip((6, 2, 3)), FlexTok(faithful=True)
    module, whole = method.ready(tokens), method(tokens, budget=9)
    module.train()
    mask = module.get_parameter("mask")
    for _ in range(5):
        part = method(tokens, budget=9).features
        lost = (part == mask).all(1)
        assert (lost.int().diff() >= 0).all() and not lost[0]
        assert torch.equal(part[~lost], whole.features[~lost])


@pytest.mark.parametrize("name", TRAINED)
def test_trained_weights_are_loaded_and_wrong_ones_refused(name: str, tmp_path: Path) -> None:
    tokens, path = clip((4, 2, 3)), str(tmp_path / "weights.safetensors")
    first, other = get(name), get(name, seed=1)
    assert isinstance(first, Learned) and isinstance(other, Learned)
    save_file(other.ready(tokens).state_dict(), path)
    expected = other(tokens, budget=7)
    first.load(path)
    for method in (first, get(name, weights=path), get(name, module=other.module)):
        assert torch.equal(method(tokens, budget=7).features, expected.features)
    with pytest.raises(InputError, match=r"width 6 .* of 8"):
        first(clip((4, 2, 3), width=8), budget=7)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="another method"):
        first.load(path)
    with pytest.raises(InputError, match="no safetensors"):
        first.load(str(tmp_path))
    with pytest.raises(InputError, match="torch module"):
        get(name, module="x")


@pytest.mark.parametrize("name", ["vtg-llm", "timesuite", "flextok"])
def test_new_tokens_carry_gradients_to_weights_and_features(name: str) -> None:
    tokens = clip((4, 2, 3))
    features = tokens.features.clone().requires_grad_()
    method = get(name)
    assert isinstance(method, Learned)
    with torch.inference_mode():
        method(tokens, budget=5)  # the module is made here and can be trained all the same
    plan = method.plan(tokens.with_features(features), 5)
    assert isinstance(plan, Mix)
    (plan.features * torch.arange(6.0)).sum().backward()
    assert features.grad is not None and bool(features.grad.any())
    grads = (p.grad for p in method.ready(tokens).parameters())
    assert any(grad is not None and bool(grad.any()) for grad in grads)


@pytest.mark.parametrize(
    ("spec", "without", "parts"),
    [
        ("vtg-llm:slots=9", "timed", ("frame", "time")),
        ("timesuite", "tape", ("tape",)),
    ],
)
def test_an_ablation_is_the_method_with_nothing_in_that_part(
    spec: str, without: str, parts: tuple[str, ...]
) -> None:
    tokens = clip((6, 2, 4))
    whole, less = build(spec, keep=0.25), build(f"{spec}:{without}=false", keep=0.25)
    assert isinstance(whole, Learned) and isinstance(less, Learned)
    module = whole.ready(tokens)
    less.module = module
    for value in module.parameters():
        torch.nn.init.normal_(value)
    assert not torch.equal(whole(tokens).features, less(tokens).features)
    for name, value in module.named_parameters():
        if name.split(".")[0] in parts:
            torch.nn.init.zeros_(value)
    assert torch.equal(whole(tokens).features, less(tokens).features)


def test_wrong_options_are_refused() -> None:
    wrong = ["lita:pool=0", "vtg-llm:slots=0", "vtg-llm:sampler=x", "timesuite:group=0"]
    for spec in [*wrong, "flextok:registers=0"]:
        with pytest.raises(InputError, match=r"at least 1|must be"):
            build(spec)
