"""What must hold for every registered compressor and for chains, and what each method promises."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from authors.aim import merge

from vidllm.compressors import STAGES, build, describe, find, get, names
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens, apply_all

GOLDENS = Path(__file__).parents[1] / "goldens"
GRIDS = [(1, 1, 1), (1, 4, 4), (5, 1, 1), (7, 3, 5), (8, 4, 4), (3, 2, 7)]
KEEPS = [0.9, 0.5, 0.25, 0.125, 0.03]
METHODS = [name for name in names() if name != "none"]
#: Methods whose tokens are new and not means of those that they stand for.
MAKERS = [name for name in METHODS if find(name).makes_tokens]
CHAINS = [
    "temporal-pool,uniform",
    "temporal-pool,frame-sample",
    "aim,frame-sample",
    "spatial-pool,temporal-pool,random",
    "random,aim",
    "random,spatial-pool",
    "random,temporal-pool",
    "uniform,frame-sample",
    "random:keep=0.95,aim:weighting=size",
    "spatial-pool,aim",
]


#: A question of two words, for the methods that read one; the others pass it by.
QUERY = torch.randn(2, 6, generator=torch.Generator().manual_seed(9))


def clip(grid: tuple[int, int, int], width: int = 6, seed: int = 0) -> VideoTokens:
    """Random tokens with all the signals that a model may give."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*grid, width, generator=generator)
    count = grid[0] * grid[1] * grid[2]
    tokens = VideoTokens.from_grid(features, [2 * t + 1.0 for t in range(grid[0])], 2.0 * grid[0])
    return tokens.with_signals(
        cls_attention=torch.rand(count, generator=generator),
        vision_keys=torch.randn(count, 4, generator=generator),
        decoder_attention=torch.rand(count, generator=generator),
        decoder_text_attention=torch.rand(count, 3, generator=generator),
        decoder_keys=torch.randn(count, 8, generator=generator),
        decoder_importance=torch.rand(count, generator=generator),
        prefill_survivors=torch.randint(0, 3, (count,), generator=generator).float(),
    )


def check(before: VideoTokens, after: VideoTokens, makes_tokens: bool = False) -> None:
    """Order, spans, sizes and provenance of a compressed clip."""
    assert (after.position.diff() > 0).all(), "not in time order"
    assert torch.equal(after.frame, before.frame[after.position])
    assert torch.equal(after.cell, before.cell[after.position])
    live = after.source >= 0
    carriers = after.source[live]
    assert torch.equal(torch.bincount(carriers, minlength=len(after)).float(), after.size)
    if makes_tokens:  # new tokens need not carry the one whose place they take
        low, high = before.span.amin(), before.span.amax()
        assert ((after.span >= low) & (after.span <= high)).all()
        assert (after.span[:, 0] <= after.span[:, 1]).all()
        return
    assert torch.equal(after.source[after.position], torch.arange(len(after)))
    span = torch.full((len(after), 2), torch.inf, dtype=torch.float64)
    span[:, 1] = -torch.inf
    span[:, 0].scatter_reduce_(0, carriers, before.span[live, 0], "amin")
    span[:, 1].scatter_reduce_(0, carriers, before.span[live, 1], "amax")
    assert torch.equal(after.span, span), "a span is not the hull of its sources"


@pytest.mark.parametrize("spec", METHODS + CHAINS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_method_meets_every_budget_and_keeps_its_books(
    spec: str, grid: tuple[int, int, int]
) -> None:
    tokens = clip(grid)
    total = len(tokens)
    for keep in KEEPS:
        if "keep=0.95" in spec and keep * total > 0.9 * total - 1:
            continue  # the fixed first share leaves less than this
        after = build(spec, keep=keep)(tokens, query=QUERY)
        assert len(after) == max(1, int(keep * total + 0.5))
        check(tokens, after, spec in MAKERS)
    for budget in range(1, max(1, int(0.9 * total)), 1 + total // 12):
        after = build(spec)(tokens, query=QUERY, budget=budget)
        assert len(after) == budget == len(build(spec, budget=budget)(tokens, query=QUERY))
        check(tokens, after, spec in MAKERS)


@pytest.mark.parametrize("spec", ["none", *METHODS, "temporal-pool,uniform", "aim,random"])
def test_keeping_everything_returns_the_same_tokens(spec: str) -> None:
    tokens = clip((4, 2, 3))
    assert build(spec)(tokens, query=QUERY) is tokens
    assert build(spec)(tokens, query=QUERY, budget=24) is tokens
    assert build(spec)(tokens, query=QUERY, budget=1000) is tokens


@pytest.mark.parametrize("spec", METHODS + CHAINS)
def test_the_same_clip_gives_the_same_result(spec: str) -> None:
    one, two = (build(spec, keep=0.2)(clip((8, 4, 4)), query=QUERY) for _ in range(2))
    assert torch.equal(one.features, two.features) and torch.equal(one.source, two.source)


@pytest.mark.parametrize("spec", [n for n in METHODS if n not in MAKERS] + CHAINS)
def test_features_come_from_the_sources_that_are_named(spec: str) -> None:
    tokens = clip((8, 4, 4))
    after = build(spec, keep=0.3)(tokens, query=QUERY)
    for slot in range(len(after)):
        members = tokens.features[after.source == slot]
        low, high = members.amin(0) - 1e-5, members.amax(0) + 1e-5
        assert ((after.features[slot] >= low) & (after.features[slot] <= high)).all()


@pytest.mark.parametrize("spec", [n for n in METHODS if not find(n).uses_features] + CHAINS[:2])
def test_a_plan_without_features_serves_a_batch(spec: str) -> None:
    clips = [clip((6, 2, 3), seed=seed) for seed in range(3)]
    method = build(spec, keep=0.3)
    blank = VideoTokens.blank((6, 2, 3), [2 * t + 1.0 for t in range(6)], 12.0)
    planned, rounds = method.run(blank)
    batch = apply_all(torch.stack([tokens.features for tokens in clips]), rounds)
    for row, tokens in zip(batch, clips, strict=True):
        alone = method(tokens)
        assert torch.equal(row, alone.features) and torch.equal(planned.span, alone.span)


def test_constant_features_are_stable_and_nan_is_refused() -> None:
    flat = clip((4, 3, 3)).with_features(torch.zeros(36, 6))
    bad = clip((4, 3, 3)).with_features(torch.full((36, 6), float("nan")))
    for name in METHODS:
        after = get(name, keep=0.3)(flat, query=QUERY)
        assert len(after) == 11 and bool(torch.isfinite(after.features).all())
        assert name in MAKERS or bool((after.features == 0).all())
        if find(name).uses_features:
            with pytest.raises(InputError, match="NaN"):
                get(name, keep=0.3)(bad, query=QUERY)


def test_temporal_pool_means_consecutive_frames_of_a_slot() -> None:
    tokens = clip((8, 2, 2))
    grid = tokens.features.view(2, 4, 4, 6)
    by_share, by_window = get("temporal-pool", keep=0.25), get("temporal-pool", k=4)
    for after in (by_share(tokens), by_window(tokens)):
        assert torch.allclose(after.features.view(2, 4, 6), grid.mean(1), atol=1e-6)
        assert after.frame.tolist() == [1] * 4 + [5] * 4
        assert after.span[0].tolist() == [0.0, 8.0] and after.span[-1].tolist() == [8.0, 16.0]


def test_temporal_pool_when_frames_do_not_divide() -> None:
    tokens = clip((7, 1, 2))
    window = get("temporal-pool", k=3)(tokens)
    assert window.size.tolist() == [3, 3, 3, 3, 1, 1]
    equal = get("temporal-pool", budget=6)(tokens)
    assert sorted(equal.size.tolist()) == [2, 2, 2, 2, 3, 3]
    uneven = get("temporal-pool", budget=5)(tokens)
    per_slot = torch.bincount(uneven.cell[:, 1])
    assert per_slot.tolist() == [3, 2]
    assert len(get("temporal-pool", budget=1)(tokens)) == 1


def test_temporal_pool_works_behind_another_method() -> None:
    tokens = clip((8, 2, 2))
    after = build("frame-sample:stride=2,temporal-pool:k=2")(tokens)
    grid = tokens.features.view(8, 4, 6)
    expected = torch.stack([(grid[0] + grid[2]) / 2, (grid[4] + grid[6]) / 2])
    assert torch.allclose(after.features.view(2, 4, 6), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"keep": 0.25}, {"window": 2}])
def test_spatial_pool_of_a_quarter_is_two_by_two(options: dict[str, float]) -> None:
    tokens = clip((3, 4, 6))
    after = get("spatial-pool", **options)(tokens)
    picture = tokens.features.view(3, 4, 6, 6).permute(0, 3, 1, 2)
    expected = torch.nn.functional.avg_pool2d(picture, 2).permute(0, 2, 3, 1).reshape(18, 6)
    assert torch.allclose(after.features, expected, atol=1e-6)
    assert after.cell[:3].tolist() == [[0, 0], [0, 2], [0, 4]]


def test_spatial_pool_regions_are_rectangles_of_nearly_equal_size() -> None:
    tokens = clip((1, 5, 7))
    for budget in range(1, 36):
        after = get("spatial-pool", budget=budget)(tokens)
        for slot in range(budget):
            cells = tokens.cell[after.source == slot]
            sides = cells.amax(0) - cells.amin(0) + 1
            assert int(sides.prod()) == cells.shape[0]


def test_spatial_pool_shares_the_budget_between_frames() -> None:
    assert get("spatial-pool", budget=11)(clip((4, 3, 3))).per_frame().tolist() == [3, 3, 3, 2]
    few = get("spatial-pool", budget=2)(clip((5, 3, 3)))
    assert few.size.tolist() == [18, 27] and few.span.tolist() == [[0.0, 4.0], [4.0, 10.0]]


def test_frame_sample_keeps_whole_frames_and_a_part_of_the_last() -> None:
    tokens = clip((8, 2, 2))
    assert get("frame-sample", keep=0.5)(tokens).per_frame().tolist() == [0, 4] * 4
    part = get("frame-sample", budget=10)(tokens).per_frame()
    assert part[part > 0].tolist() == [4, 4, 2]
    assert get("frame-sample", stride=3)(tokens).frame.unique().tolist() == [0, 3, 6]


def test_storm_options_multiply() -> None:
    tokens = clip((32, 4, 4))
    spec = "temporal-pool:k=4,spatial-pool:window=2,frame-sample:stride=2"
    assert build(spec)(tokens).keep == pytest.approx(1 / 32)


@pytest.mark.parametrize("case", ["aim_merge_small", "aim_merge_odd7_clamp"])
def test_aim_merge_is_the_authors(case: str) -> None:
    data = {key: torch.from_numpy(value) for key, value in np.load(GOLDENS / f"{case}.npz").items()}
    result = merge(data["x"], data["metric"], int(data["r"]))
    assert torch.allclose(result, data["out"], atol=1e-5)


def test_aim_two_rounds_are_the_authors_in_the_function_and_in_the_method() -> None:
    data = {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / "aim_merge_iter2.npz").items()}
    first = merge(data["x"], data["x"], 98)
    assert torch.allclose(first, data["round1"], atol=1e-5)
    assert torch.allclose(merge(first, first, 49), data["round2"], atol=1e-5)
    tokens = VideoTokens.from_grid(data["x"].view(2, 14, 14, 16), [0.0, 1.0], 2.0)
    after = get("aim", keep=0.25)(tokens)
    assert torch.allclose(after.features.view(2, 49, 16), data["round2"], atol=1e-5)


def test_aim_faithful_keeps_the_authors_order_and_the_default_restores_it() -> None:
    data = {k: torch.from_numpy(v) for k, v in np.load(GOLDENS / "aim_merge_small.npz").items()}
    tokens = VideoTokens.from_grid(data["x"].view(2, 2, 4, 4), [0.0, 1.0], 2.0)
    faithful = get("aim", budget=12, faithful=True)(tokens)
    assert torch.allclose(
        faithful.features.view(2, 6, 4), merge(data["x"], data["x"], 2), atol=1e-5
    )
    default = get("aim", budget=12)(tokens)
    order = faithful.position.argsort()
    assert not torch.equal(order, torch.arange(12))
    assert torch.equal(default.features, faithful.features[order])
    check(tokens, default)


def test_aim_with_fewer_tokens_than_frames_merges_neighbours() -> None:
    tokens = clip((6, 2, 2))
    after = get("aim", budget=3)(tokens)
    assert after.span.tolist() == [[0.0, 4.0], [4.0, 8.0], [8.0, 12.0]]
    assert after.size.tolist() == [8, 8, 8]


def test_random_draws_by_seed_and_leaves_the_global_state_alone() -> None:
    tokens = clip((8, 4, 4))
    state = torch.get_rng_state()
    draws = [get("random", keep=0.1, seed=seed)(tokens).position.tolist() for seed in (0, 1)]
    assert draws[0] != draws[1] and torch.equal(state, torch.get_rng_state())


def test_uniform_is_spread_over_the_whole_sequence() -> None:
    assert get("uniform", budget=4)(clip((4, 2, 2))).position.tolist() == [0, 7, 9, 14]


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(1, 3, 3), (7, 4, 4), (12, 3, 5)])
def test_uniform_keeps_in_a_frame_the_cells_that_were_kept_least_often(
    shape: tuple[int, int, int], keep: float
) -> None:
    tokens = clip(shape)
    kept = get("uniform", keep=keep)(tokens)
    value = [(r * 0.7548776662466927 + c * 0.5698402909980532) % 1 for r, c in tokens.cell.tolist()]
    times = [0] * (shape[1] * shape[2])
    for frame in range(shape[0]):
        mine = kept.position[kept.frame == frame] % len(times)
        wanted = sorted(range(len(times)), key=lambda cell: (times[cell], value[cell]))[: len(mine)]
        assert mine.tolist() == sorted(wanted)
        for cell in wanted:
            times[cell] += 1


def test_none_refuses_to_shrink() -> None:
    with pytest.raises(InputError, match="keeps all 16 tokens"):
        get("none", keep=0.5)(clip((4, 2, 2)))


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("random,uniform", [128, 64]),
        ("random:keep=0.5,uniform,uniform", [128, 91, 64]),
    ],
)
def test_a_chain_divides_what_it_removes(spec: str, sizes: list[int]) -> None:
    _, rounds = build(spec, keep=0.25).run(clip((16, 4, 4)))
    assert [len(selection) for selection in rounds] == sizes


def test_a_chain_reckons_with_a_window_that_is_still_to_come() -> None:
    _, rounds = build("random,temporal-pool:k=2,uniform", keep=0.25).run(clip((16, 4, 4)))
    first, window, last = (len(selection) for selection in rounds)
    assert 150 < first < 200 and first / 2 <= window < first and last == 64


def test_a_chain_without_a_budget_does_what_its_items_say() -> None:
    assert len(build("random:keep=0.5,uniform:budget=7")(clip((4, 2, 2)))) == 7


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("temporal-pol", {}, "did you mean temporal-pool"),
        ("zzz", {}, "choose from aim"),
        ("aim:faithfull=true", {}, "did you mean faithful"),
        ("aim:faithful=maybe", {}, "true or false"),
        ("random:seed=x", {}, "whole number"),
        ("random:keep=x", {}, "must be a number"),
        ("random:seed", {}, "OPTION=VALUE"),
        ("aim,,uniform", {}, "empty name"),
        ("aim:weighting=sum", {}, "'mean' or 'size'"),
        ("uniform:keep=0", {}, "keep"),
        ("uniform", {"keep": 1.5}, "keep"),
        ("uniform", {"budget": 0}, "at least 1"),
        ("temporal-pool:k=4", {"keep": 0.5}, "already decides"),
        ("temporal-pool:k=0", {}, "at least 1"),
        ("frame-sample:stride=2", {"budget": 5}, "already decides"),
        ("uniform:keep=0.5", {"keep": 0.5}, "twice"),
        ("aim,temporal-pool:k=2", {"keep": 0.5}, "exact remainder"),
        ("aim,uniform", {"budget": 0}, "at least 1"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(spec, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_window_and_the_budget_of_a_call_do_not_mix() -> None:
    with pytest.raises(InputError, match="already decides"):
        get("temporal-pool", k=2)(clip((4, 2, 2)), budget=3)


def test_a_chain_whose_window_takes_too_much_is_refused() -> None:
    with pytest.raises(InputError, match="leaves 4 tokens, fewer than the 8"):
        build("temporal-pool:k=4,uniform", keep=0.5)(clip((4, 2, 2)))


def test_the_registry_lists_and_describes() -> None:
    assert names("*pool*") == ["spatial-pool", "temporal-pool"]
    assert {"none", "random", "uniform", "aim", "frame-sample"} <= set(names())
    for entry in describe():
        assert entry["summary"] and entry["stage"] in STAGES
        assert all(option["help"] for option in entry["options"].values())
    assert get("temporal_pool", k=2) == get("temporal-pool", k=2)


def test_options_of_a_spec_reach_the_fields() -> None:
    for faithful, seed in product((True, False), (3, 4)):
        chain = build(f"aim:faithful={faithful}, random:seed={seed}")
        assert [chain.items[0].faithful, chain.items[1].seed] == [faithful, seed]  # type: ignore
