"""FlashVID and FrameFusion, which merge tokens along time; SemVID against its authors' vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from authors.flashvid import compress, expansion_of, inner_prune, tree_means
from authors.framefusion import merge, prune, required_sparsity
from authors.semvid import budget as frame_budget
from authors.semvid import select
from torch import Tensor

from vidllm.compressors import get
from vidllm.compressors.flashvid import (
    density_peaks,
    diverse,
    parents,
    segment_lengths,
)
from vidllm.compressors.framefusion import FrameFusion
from vidllm.compressors.semvid import SemVid, choose
from vidllm.compressors.shared.allocation import allocate, allocate_capped
from vidllm.errors import InputError
from vidllm.tokens import Keep, Merge, Mix, VideoTokens

GOLDENS = Path(__file__).parents[1] / "goldens"
METHODS = [
    ("flashvid", {}),
    ("flashvid", {"alpha": 0.0, "segments": 1, "threshold": -1.0, "similarity": 0.2}),
    ("flashvid", {"faithful": True, "similarity": 0.3, "threshold": 0.0, "segments": 2}),
    ("framefusion", {"similarity": 0.3}),
    ("framefusion", {"similarity": 0.3, "weighting": "size"}),
    ("framefusion", {"rest": "similarity"}),
]


def golden(name: str) -> dict[str, Tensor]:
    data = np.load(GOLDENS / f"{name}.npz")
    return {key: torch.from_numpy(v) for key, v in data.items() if v.dtype.kind != "U"}


def video(features: Tensor, seed: int = 0) -> VideoTokens:
    """(T, H, W, D) features with the attention that the methods read."""
    frames = features.shape[0]
    tokens = VideoTokens.from_grid(features, [float(t) for t in range(frames)], frames)
    draw = torch.Generator().manual_seed(seed)
    cls, decoder = torch.rand(2, len(tokens), generator=draw)
    return tokens.with_signals(cls_attention=cls, decoder_attention=decoder)


def clip(grid: tuple[int, int, int], seed: int = 0) -> VideoTokens:
    draw = torch.Generator().manual_seed(seed)
    still = torch.randn(1, *grid[1:], 6, generator=draw)
    return video(still + 0.7 * torch.randn(*grid, 6, generator=draw), seed)


def check(before: VideoTokens, after: VideoTokens, budget: int) -> None:
    assert len(after) == budget and bool((after.position.diff() > 0).all())
    live = after.source >= 0
    members = torch.bincount(after.source[live], minlength=budget)
    assert torch.equal(members.float(), after.size) and bool(torch.isfinite(after.features).all())
    assert torch.equal(after.source[after.position], torch.arange(budget))
    for slot in range(budget):
        span = before.span[after.source == slot]
        assert after.span[slot].tolist() == [float(span[:, 0].min()), float(span[:, 1].max())]


@pytest.mark.parametrize(("name", "options"), METHODS)
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 4), (5, 1, 1), (7, 3, 3), (3, 2, 5)])
def test_every_budget_is_met_and_the_books_are_kept(
    name: str, options: dict[str, float], grid: tuple[int, int, int]
) -> None:
    tokens = clip(grid)
    for budget in range(1, len(tokens) + 1, 1 + len(tokens) // 9):
        check(tokens, get(name, budget=budget, **options)(tokens), budget)


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_thinned_and_merged_clips_and_flat_features(name: str, options: dict[str, float]) -> None:
    whole = clip((6, 3, 3))
    method = get(name, **options)
    for earlier in ("random", "temporal-pool", "frame-sample"):
        tokens = get(earlier, budget=31)(whole)
        for budget in (1, 3, 7, 20, 30):
            check(whole, method(tokens, budget=budget), budget)
    for value in (0.0, 1.0):
        flat = video(torch.full((6, 3, 3, 6), value))
        flat = flat.with_signals(cls_attention=torch.zeros(54), decoder_attention=torch.zeros(54))
        for budget in (1, 6, 20, 53):
            check(flat, method(flat, budget=budget), budget)


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_half_precision_stays_and_gradients_pass(name: str, options: dict[str, float]) -> None:
    tokens = clip((4, 2, 3))
    assert get(name, keep=0.4, **options)(tokens.to(dtype=torch.bfloat16)).features.dtype == (
        torch.bfloat16
    )
    leaf = tokens.features.clone().requires_grad_()
    get(name, keep=0.4, **options)(tokens.with_features(leaf)).features.sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.any())


def test_flashvid_outer_stage_is_the_authors() -> None:
    data = golden("flashvid_16x49")
    names = ("retention_ratio", "alpha", "temporal_threshold", "segment_threshold", "expansion")
    options = {name: data[name].item() for name in names}
    least = int(data["min_segment_num"])
    before = data["features"].clone()
    tokens, kept_idx = compress(
        data["features"], data["attention"], min_segment_num=least, **options
    )
    assert torch.equal(kept_idx, data["kept_idx"])
    assert torch.allclose(tokens, data["tokens"], atol=1e-5)
    assert torch.equal(data["features"], before)
    lengths = segment_lengths(data["features"].mean(1), options["segment_threshold"], least)
    assert lengths == data["segment_lengths"].tolist()


def test_flashvid_inner_prune_is_the_authors() -> None:
    data = golden("flashvid_inner_prune")
    kept = inner_prune(data["attention_prev_layer"], int(data["start"]), int(data["length"]), 0.3)
    assert torch.equal(kept, data["keep_idx"])
    assert torch.equal(data["hidden"][:, kept], data["hidden_out"])
    assert expansion_of(28, 20, 0.3) == pytest.approx(1.25) == expansion_of(36, 28, 0.1)


def test_flashvid_cuts_where_frames_part_and_at_least_so_often() -> None:
    turns = torch.tensor([0.0, 0.1, 0.9, 1.0, 1.05]).double()
    means = torch.stack([turns.cos(), turns.sin()], dim=1)
    assert segment_lengths(means, 0.9, 1) == [2, 3]
    assert segment_lengths(means, 0.9, 3) in ([1, 1, 3], [2, 1, 2])
    assert segment_lengths(means, -2.0, 5) == [1, 1, 1, 1, 1]
    assert segment_lengths(means[:1], 0.9, 8) == [1]
    short = segment_lengths(means[:3], 0.9, 8)  # the authors' segments of no frames
    assert sum(short) == 3 and 0 in short


def test_flashvid_picks_what_is_far_and_never_twice() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, 0.0]]])
    even = torch.ones(1, 4)
    assert diverse(x, even, 3).tolist() == [[3, 0, 2]]
    assert diverse(x, torch.tensor([[0.0, 0.0, 5.0, 0.0]]), 1).tolist() == [[2]]
    same = torch.ones(1, 4, 2)
    assert diverse(same, even, 3).tolist() == [[0, 1, 2]]
    assert diverse(same, even, 3, again=True).tolist() == [[0, 0, 0]]


def test_flashvid_trees_are_means_and_the_authors_chains_grow() -> None:
    for length, grown in ((2, 1.0), (3, 1.5), (5, 2.5), (8, 4.0)):
        frames = [torch.tensor([[1.0, 0.0]])] * length
        up = parents(frames, [torch.zeros(1, dtype=torch.bool)] * length, 1, 0.8)
        assert [int(u) for u in up] == [-1] + [0] * (length - 1)
        assert tree_means(frames, up)[0].tolist() == [[1.0, 0.0]]
        assert tree_means(frames, up, direct=True)[0].tolist() == [[grown, 0.0]]


def test_flashvid_keeps_enough_survivors_and_leaves_picks_alone() -> None:
    draw = torch.Generator().manual_seed(3)
    still = torch.randn(5, 4, generator=draw)
    frames = [still + 0.01 * torch.randn(5, 4, generator=draw) for _ in range(4)]
    picked = [torch.tensor([True, False, False, False, False])] * 4
    for survivors in (1, 8, 13, 19, 20):
        up = parents(frames, picked, survivors, 0.8)
        assert sum(int((u < 0).sum()) for u in up) >= survivors
        assert all(int(u[0]) == -1 and not bool((u == 0).any()) for u in up)


def test_density_peaks_find_two_heaps() -> None:
    x = torch.tensor([[0.0, 0], [0.1, 0], [0, 0.2], [9, 9], [9.05, 9], [9, 9.3]])
    centres, label = density_peaks(x, 2)
    assert {int(c) // 3 for c in centres} == {0, 1}
    assert label[:3].unique().numel() == 1 and label[3:].unique().numel() == 1
    assert density_peaks(x, 2, part=False)[0].tolist() == [3, 4]  # nearest to each other: a tie


def test_flashvid_method_merges_along_time_into_means() -> None:
    draw = torch.Generator().manual_seed(0)
    still = torch.randn(1, 2, 3, 8, generator=draw)
    tokens = video(still + 0.05 * torch.randn(4, 2, 3, 8, generator=draw))
    options = {"budget": 12, "alpha": 0.5, "segments": 1}
    plan = get("flashvid", **options).plan(tokens, 12)
    theirs = get("flashvid", faithful=True, **options).plan(tokens, 12)
    assert isinstance(plan, Merge) and isinstance(theirs, Mix)
    assert torch.equal(plan.target, theirs.target)
    after, grown = tokens.apply(plan), tokens.apply(theirs)
    means = torch.stack([tokens.features[after.source == slot].mean(0) for slot in range(12)])
    assert torch.allclose(after.features, means, atol=1e-6)
    assert bool((after.size > 2).any()) and bool((after.span.diff(dim=1) > 1.4).any())
    assert not torch.allclose(grown.features, means, atol=0.1)


def test_flashvid_needs_attention_and_refuses_wrong_options() -> None:
    bare = VideoTokens.from_grid(torch.randn(2, 2, 2, 4), [0.0, 1.0], 2.0)
    with pytest.raises(InputError, match="cls-attention"):
        get("flashvid", keep=0.5)(bare)
    for options in ({"alpha": 1.5}, {"segments": 0}):
        with pytest.raises(InputError, match=r"flashvid: (alpha|segments) must be"):
            get("flashvid", **options)


def test_framefusion_required_sparsity_is_the_authors() -> None:
    data = golden("framefusion_ratio_table")
    for cost, s1, ratio in zip(data["cost"], data["s1"], data["ratio"], strict=True):
        done = [float(s) for s in s1 if s >= 0]
        assert required_sparsity(done, float(cost)) == pytest.approx(float(ratio), abs=1e-9)
    assert required_sparsity([], 0.5, layers=4) == 0.5
    with pytest.raises(InputError, match="raise cost"):
        required_sparsity([0.0] * 10, 0.3)


def test_framefusion_merge_and_prune_are_the_authors() -> None:
    data = golden("framefusion_threshold")
    options = {
        "cost": float(data["cost"]),
        "similarity_lower_bound": float(data["similarity_lower_bound"]),
        "ratio_lower_bound": float(data["ratio_lower_bound"]),
    }
    hidden, kind, s1 = data["hidden"], data["patch_type"], list[float]()
    place = torch.arange(hidden.shape[1])
    for call in (0, 1):
        upper = float(data[f"sparsity_upper{call}"])
        assert required_sparsity(s1, options["cost"]) == pytest.approx(upper, abs=1e-9)
        done = merge(hidden, kind, s1, **options)
        place = place[done.keep]
        assert torch.allclose(done.hidden, data[f"merge_out{call}"], atol=1e-5)
        assert torch.equal(place[None], data[f"merge_pos{call}"])
        hidden, kind, s1 = data[f"next_in{call}"], done.patch_type, done.s1
    assert s1 == pytest.approx(data["sparsity_list"].tolist())
    assert done.pruning and not done.merging
    need = required_sparsity(s1, options["cost"])
    assert need == pytest.approx(float(data["prune_ratio"]), abs=1e-9)
    keep = prune(data["prune_attention"], kind, need)
    assert torch.equal(keep, data["prune_keep"])
    assert torch.equal(place[keep][None], data["prune_pos"])


def test_framefusion_call_with_enough_alike_lands_on_the_need() -> None:
    hidden = torch.ones(1, 10, 4)
    kind = torch.tensor([[-1, 0, 1, 0, 1, 0, 1, 0, 1, -1]])
    done = merge(hidden, kind, [], cost=0.5, layers=4)
    assert not done.merging and not done.pruning and done.s1 == []
    assert len(done.keep) == 10 - 4 and {0, 9} <= set(done.keep.tolist())


def test_framefusion_method_merges_runs_into_their_first_token() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    rows = torch.stack([torch.stack([a, a]), torch.stack([a, b]), torch.stack([b, b])])
    tokens = video(rows.view(3, 1, 2, 2))
    after = FrameFusion(budget=4)(tokens)
    assert after.position.tolist() == [0, 1, 3, 4]
    assert after.size.tolist() == [2, 1, 2, 1] and after.span[0].tolist() == [0.0, 1.5]
    later = FrameFusion(budget=5)(tokens)  # of two equal links the later one merges
    assert later.position.tolist() == [0, 1, 2, 3, 4]
    attention = torch.tensor([0.1, 0.5, 0.1, 0.9, 0.2, 0.9])
    pruned = FrameFusion(budget=2)(tokens.with_signals(decoder_attention=attention))
    assert pruned.position.tolist() == [1, 3] and pruned.size.tolist() == [1, 2]


def test_framefusion_reads_attention_only_when_merging_does_not_do() -> None:
    still = torch.ones(4, 2, 2, 3)
    bare = VideoTokens.from_grid(still, [0.0, 1.0, 2.0, 3.0], 4.0)
    assert len(FrameFusion(budget=4)(bare)) == 4
    with pytest.raises(InputError, match="decoder-attention"):
        FrameFusion(budget=3)(bare)
    alone = FrameFusion(budget=3, rest="similarity")
    assert len(alone(bare)) == 3 and alone.needs == () and FrameFusion.needs != ()
    noise = video(torch.eye(8).view(2, 2, 2, 8))
    assert isinstance(FrameFusion().plan(noise, 3), Keep)


def test_framefusion_says_where_it_acts_and_refuses_wrong_options() -> None:
    assert FrameFusion(keep=0.3).points(28) == [(2, 0.3)] and FrameFusion().points(2) == [(1, 1.0)]
    for options in ({"rest": "x"}, {"weighting": "x"}, {"layer": 0}):
        with pytest.raises(InputError, match=f"framefusion: {next(iter(options))} must be"):
            FrameFusion(**options)  # type: ignore[arg-type]
    assert FrameFusion(layer=0, rest="similarity").points(4) == [(0, 1.0)]


def test_semvid_integer_allocation_is_the_authors() -> None:
    data = golden("semvid_integer_allocation")
    for row, total in enumerate(data["total"].tolist()):
        weights = data["weights"][row]
        assert torch.equal(allocate(weights, total), data["alloc"][row])
        capped = allocate_capped(weights, total, data["cap"][row])
        assert torch.equal(capped, data["alloc_cap"][row])
    assert allocate(torch.zeros(3), 4).tolist() == [2, 1, 1]
    assert allocate(torch.tensor([-1.0, 1.0]), 3).tolist() == [0, 3]
    assert allocate_capped(torch.ones(2), 9, torch.tensor([1, 3])).tolist() == [1, 3]


def test_semvid_budget_and_choice_are_the_authors() -> None:
    data = golden("semvid_qwen3_default")
    options = {
        name: data[f"p_{name}"].item() for name in ("c", "tau", "R", "topk", "win", "alpha", "minf")
    }
    keep = frame_budget(data["frame_global"], data["query"], 36, **options)
    assert torch.equal(keep, data["kept_per_frame"])
    inside = {name: data[f"p_{name}"].item() for name in ("obj", "lam", "beta", "minf")}
    features, query = data["features"], data["query"]
    kept = select(features, data["frame_global"], data["token_saliency"], query, keep, **inside)
    assert torch.equal(kept, data["kept_idx"])
    gaps = (features[1:] - features[:-1]).norm(dim=2)
    motion = (torch.cat([gaps[:1], gaps]) + torch.cat([gaps, gaps[-1:]])) / 2
    roles: list[list[list[int]]] = [[], [], []]
    for t in range(12):
        parts = choose(
            features[t], data["frame_global"][t], data["token_saliency"][t], motion[t], query,
            int(keep[t]), **inside,
        )  # fmt: skip
        for role, part in zip(roles, parts, strict=True):
            role += [[t, i] for i in sorted(part)]
    assert roles == [data[name].tolist() for name in ("context", "object", "motion")]


def test_semvid_method_gives_the_authors_tokens() -> None:
    data = golden("semvid_qwen3_default")
    features = data["features"]
    tokens = VideoTokens.from_grid(features.view(12, 6, 6, 16), list(range(12)), 12.0)
    plan = SemVid().plan(tokens, 54, data["query"])
    means, saliency = features.mean(1), features.norm(dim=2)
    keep = frame_budget(means, data["query"], 36, 0.125)
    expected = select(features, means, saliency, data["query"], keep)
    assert isinstance(plan, Keep) and torch.equal(plan.index, expected)
