"""EVS, DivPrune, VidCom2 and DyCoke: goldens, cases worked by hand, exact budgets, defects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from authors import divprune, dycoke, evs
from authors import vidcom2 as vidcom2_authors
from test_compressors import GOLDENS, check, clip
from torch import Tensor

from vidllm.compressors import vidcom2
from vidllm.compressors.base import Compressor
from vidllm.compressors.divprune import DivPrune, pick
from vidllm.compressors.dycoke import DyCoke, allocate
from vidllm.compressors.evs import Evs
from vidllm.compressors.vidcom2 import VidCom2
from vidllm.errors import InputError
from vidllm.tokens import Keep, VideoTokens

METHODS: list[type[Compressor]] = [Evs, DivPrune, VidCom2, DyCoke]


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}


def tokens_of(features: Tensor, rows: int = 1) -> VideoTokens:
    """A clip from (T, n, D), its n cells in `rows` rows."""
    frames, cells, width = features.shape
    grid = features.reshape(frames, rows, cells // rows, width)
    return VideoTokens.from_grid(grid, [float(t) for t in range(frames)], float(frames))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(*degrees: float) -> Tensor:
    """(N, 2) unit vectors."""
    turn = torch.tensor(degrees).deg2rad()
    return torch.stack([turn.cos(), turn.sin()], dim=1)


def kept(method: Compressor, tokens: VideoTokens, budget: int) -> list[int]:
    return method(tokens, budget=budget).position.tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(1, 3, 3), (3, 1, 1), (6, 1, 3), (7, 2, 2)])
def test_every_budget_is_met(method: type[Compressor], grid: tuple[int, int, int]) -> None:
    tokens = clip(grid)
    for budget in range(1, len(tokens)):
        after = method()(tokens, budget=budget)
        assert len(after) == budget
        check(tokens, after)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_every_budget_is_met_on_a_thinned_clip(method: type[Compressor], seed: int) -> None:
    whole = clip((7, 3, 3), seed=seed)
    draw = torch.randperm(63, generator=torch.Generator().manual_seed(seed))[:24]
    tokens = whole.apply(Keep(draw.sort().values))
    for budget in range(1, 24, 3):
        after = method()(tokens, budget=budget)
        assert len(after) == budget
        assert (after.position.diff() > 0).all()
        assert set(after.position.tolist()) <= set(tokens.position.tolist())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flat_clips_give_numbers_and_the_same_tokens(
    method: type[Compressor], dtype: torch.dtype
) -> None:
    for value in (0.0, 1.0):
        flat = tokens_of(torch.full((4, 6, 5), value, dtype=dtype))
        for budget in (1, 5, 11, 23):
            first = kept(method(), flat, budget)
            assert first == kept(method(), flat, budget) and len(first) == budget
            if method in (Evs, DivPrune):
                assert first == list(range(budget)), "the earlier token wins"


@pytest.mark.parametrize("method", METHODS)
def test_the_registry_knows_it_and_one_channel_is_enough(method: type[Compressor]) -> None:
    assert method.stage == "tokens" and not method.query_aware and method.uses_features
    assert method.name == method.__name__.lower() and "arXiv" in method.paper and method.summary
    assert len(method(keep=0.3)(clip((5, 2, 2), width=1))) == 6


@pytest.mark.parametrize("case", ["evs_basic", "evs_floor_first_frame"])
def test_evs_is_the_authors(case: str) -> None:
    g = golden(case)
    q, merge = float(g["q"]), int(g["spatial_merge_size"])
    assert evs.count(g["thw"], q, merge) == int(g["n_keep"])
    index = evs.select(g["features"], g["thw"], q, merge)
    assert torch.equal(index, g["kept_idx"])
    assert torch.equal(torch.nonzero(g["mask"]).flatten(), index)
    frames, side = int(g["thw"][0]), int(g["thw"][1]) // merge
    tokens = tokens_of(g["features"].view(frames, side * side, -1), side)
    after = Evs(budget=int(g["n_keep"]))(tokens)
    assert torch.equal(after.position, index)
    assert torch.equal(after.per_frame(), g["kept_per_frame"])


def test_evs_counts_in_python_floats() -> None:
    assert evs.count((10, 1, 1), 0.9) == 1  # int(0.999...) is 0, one frame stays
    assert evs.count((1000, 1, 1), 0.9) == 99
    assert evs.count((8, 8, 8), 0.0, 2) == 128
    assert evs.count((4, 5, 7), 0.5, 2) == 12  # the merge loses an odd row and column
    assert evs.count((1, 4, 4), 0.99) == 16


def test_evs_ties_go_to_the_earlier_token() -> None:
    x = torch.eye(4)[torch.tensor([[0, 1], [1, 1], [1, 0], [1, 0], [2, 0]])]
    # changed: cell 0 in frames 1 and 4, cell 1 in frame 2, all by 1; the rest by 0
    assert evs.select(x, (5, 1, 2), 0.5).tolist() == [0, 1, 2, 5, 8]
    assert evs.select(x, (5, 1, 2), 0.4).tolist() == [0, 1, 2, 3, 5, 8]
    assert kept(Evs(), tokens_of(x), 7) == [0, 1, 2, 3, 4, 5, 8]


def test_evs_on_a_still_clip_is_not_ruled_by_rounding() -> None:
    still = noise(1, 9, 16).repeat(5, 1, 1)
    assert kept(Evs(), tokens_of(still, 3), 14) == list(range(14))
    faithful = kept(Evs(faithful=True), tokens_of(still, 3), 14)
    assert faithful == evs.select(still, (5, 3, 3), 1 - 14.5 / 45).tolist()
    assert faithful[:9] == list(range(9))


def test_evs_compares_with_the_last_frame_that_has_the_cell() -> None:
    # frames 0 and 3 hold cell 0, between them it is missing; cell 1 first comes in frame 1
    whole = tokens_of(angles(0, 0, 90, 0, 180, 5, 2, 95).view(4, 2, 2))
    thin = whole.apply(Keep(torch.tensor([0, 3, 5, 6, 7])))
    scores = Evs().score(thin)
    assert scores[:2].tolist() == [255, 255]
    wanted = 1 - torch.tensor([5.0, 2.0, 90.0]).deg2rad().cos()
    assert torch.allclose(scores[2:], wanted, atol=1e-5)
    assert kept(Evs(), thin, 3) == [0, 3, 7]


def test_evs_refuses_what_does_not_fit() -> None:
    for q in (-0.1, 1.0):
        with pytest.raises(InputError, match="below 1"):
            evs.count((2, 2, 2), q)
    with pytest.raises(InputError, match="no tokens"):
        evs.count((2, 1, 1), 0.5, 2)
    with pytest.raises(InputError, match="8 features"):
        evs.select(torch.randn(8, 3), (2, 2, 3), 0.5)


def test_divprune_is_the_authors() -> None:
    g = golden("divprune_a")
    share, picked = float(g["threshold_ratio"]), g["picked_in_order"]
    for faithful in (True, False):
        assert torch.equal(pick(g["features"], 24, faithful), picked)
        assert torch.equal(divprune.select(g["features"], share, faithful), g["kept_idx"])
    assert kept(DivPrune(), tokens_of(g["features"].view(6, 16, 16)), 24) == g["kept_idx"].tolist()


def test_divprune_picks_the_farthest_from_the_picked() -> None:
    x = angles(0, 2, 4, 90, 94, 160)
    assert pick(x, 6).tolist()[:3] == [5, 0, 3]
    assert pick(x, 6).sort().values.tolist() == list(range(6))
    assert divprune.select(x, 0.5).tolist() == [0, 3, 5]
    assert divprune.select(x, 5 / 12).tolist() == [0, 5]  # round(2.5) is 2


@pytest.mark.parametrize("block", [1, 40, 2**24])
def test_divprune_is_the_plain_search_in_blocks_of_any_size(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidllm.compressors.divprune._BLOCK", block)
    x = noise(33, 5, seed=3)
    unit = x / x.norm(dim=1, keepdim=True)
    apart = 1 - unit @ unit.T
    wanted = [int(apart.sort(dim=0).values[1].argmax())]
    while len(wanted) < 20:
        wanted.append(int(apart[wanted].amin(dim=0).argmax()))
    assert pick(x, 20).tolist() == wanted


def test_divprune_picks_a_token_once_and_faithful_again_and_again() -> None:
    frame = noise(9, 16)
    still = frame.repeat(4, 1)
    fresh, theirs = pick(still, 18), pick(still, 18, faithful=True)
    assert fresh.unique().numel() == 18 and theirs.unique().numel() < 18
    assert sorted((fresh[:9] % 9).tolist()) == list(range(9))
    assert divprune.select(still, 0.5, faithful=True).numel() == 18
    assert len(kept(DivPrune(faithful=True), tokens_of(still.view(4, 9, 16)), 18)) == 18


def test_divprune_edges() -> None:
    assert divprune.select(torch.ones(1, 3), 1.0).tolist() == [0]
    assert divprune.select(torch.ones(4, 3), 0.1).tolist() == []
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        divprune.select(torch.ones(4, 3), 1.1)


def test_vidcom2_is_the_authors() -> None:
    g = golden("vidcom2_8x16")
    n, share = int(g["tokens_per_frame"]), float(g["R"])
    vid, frame = vidcom2.rate(g["features"], [n] * 8)
    assert torch.allclose(vid.view(8, n), g["vid_score"], atol=1e-5)
    assert torch.allclose(frame.view(8, n), g["frame_score"], atol=1e-5)
    assert torch.allclose(vidcom2.frame_scales(vid, [n] * 8, share), g["scales"], atol=1e-6)
    index = vidcom2_authors.select(g["features"], n, share)
    assert torch.equal(index, g["kept_idx"]) and torch.equal(g["features"][index], g["out"])
    assert torch.equal(torch.bincount(index // n), g["kept_per_frame"])


def test_vidcom2_on_a_grid_with_newlines_is_the_authors() -> None:
    g = golden("vidcom2_llavavid_grid")
    index = vidcom2_authors.select_grid(g["features"], float(g["R"]), int(g["grid"]))
    assert torch.equal(index, g["out_idx"])


def test_vidcom2_lands_on_the_budget_next_to_the_authors_counts() -> None:
    g = golden("vidcom2_8x16")
    tokens = tokens_of(g["features"].view(8, 16, 16))
    after = VidCom2(budget=32)(tokens)  # R is 0.25; rounded: 4, but 7 once, in all 35
    assert after.per_frame().tolist() == [4, 4, 7, 3, 4, 3, 3, 4]
    assert set(after.position.tolist()) < set(g["kept_idx"].tolist())
    few = VidCom2(budget=3)(tokens).per_frame()
    assert few.max() == 1 and few[2] == 1


def test_vidcom2_moves_single_tokens_to_meet_the_count() -> None:
    exact = torch.tensor([4.4, 4.6, 1.0, 9.0])
    assert vidcom2._settle([4, 5, 1, 9], exact, [9, 9, 9, 9], 20) == [5, 5, 1, 9]
    assert vidcom2._settle([4, 5, 1, 9], exact, [9, 9, 9, 9], 18) == [4, 4, 1, 9]
    assert vidcom2._settle([4, 5, 1, 9], exact, [9, 9, 9, 9], 4) == [1, 1, 1, 1]
    assert vidcom2._settle([4, 5, 1, 9], exact, [9, 9, 9, 9], 35) == [9, 9, 8, 9]
    equal = torch.full((3,), 0.5)
    assert vidcom2._settle([1, 1, 1], equal, [2, 2, 2], 2) == [1, 1, 0]
    assert vidcom2._settle([1, 1, 1], equal, [2, 2, 2], 4) == [2, 1, 1]


def test_vidcom2_gives_the_odd_frame_and_the_odd_token_their_due() -> None:
    x = noise(1, 1, 8, seed=0).repeat(5, 6, 1)
    x = x + 0.01 * noise(5, 6, 8)
    x[3] = -x[3]
    x[0, 4] = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    after = VidCom2(keep=0.4)(tokens_of(x))
    assert int(after.per_frame().argmax()) == 3 and 4 in after.position.tolist()
    assert vidcom2_authors.select(x[:1], 6, 0.25).numel() == 2  # one frame: round(1.5) is 2


def test_vidcom2_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="no frames of 5"):
        vidcom2_authors.select(torch.ones(12, 3), 5, 0.5)
    with pytest.raises(InputError, match="above 0"):
        vidcom2_authors.select(torch.ones(12, 3), 4, 0.0)


def test_dycoke_faithful_is_the_authors() -> None:
    g = golden("dycoke_ttm_8x16")
    n, ratio = int(g["num_tokens_per_frame"]), float(g["merging_ratio"])
    index = dycoke.select(g["features"], n, ratio, faithful=True)
    assert torch.equal(index, g["src_idx"]) and torch.equal(index // n, g["out_frame"])
    assert torch.equal(g["features"][index], g["out"])
    mine = dycoke.select(g["features"], n, ratio)
    assert torch.bincount(mine // n).tolist() == [16, 4, 4, 4, 16, 4, 4, 4]
    theirs = index[index // n != 6]  # the frame that their last group leaves whole
    assert torch.equal(mine[mine // n != 6], theirs.sort().values)
    assert kept(DyCoke(), tokens_of(g["features"].view(8, n, 16)), mine.numel()) == mine.tolist()


def test_dycoke_corrects_the_odd_last_frame_and_the_last_group() -> None:
    for frames, theirs, mine in (
        (5, [4, 1, 1, 1], [4, 1, 1, 1, 4]),
        (7, [4, 1, 1, 1, 4, 1], [4, 1, 1, 1, 4, 1, 1]),
        (8, [4, 1, 1, 1, 4, 1, 4, 1], [4, 1, 1, 1, 4, 1, 1, 1]),
        (10, [4, 1, 1, 1, 4, 1, 1, 1, 4, 1], [4, 1, 1, 1, 4, 1, 1, 1, 4, 1]),
    ):
        x = noise(frames * 4, 6, seed=frames)
        assert torch.bincount(dycoke.select(x, 4, 0.7, faithful=True) // 4).tolist() == theirs
        assert torch.bincount(dycoke.select(x, 4, 0.7) // 4).tolist() == mine


def test_dycoke_works_on_few_frames_and_keeps_every_frame() -> None:
    for frames in range(1, 5):
        x = noise(frames * 4, 6, seed=0)
        for ratio in (0.5, 1.0):
            assert dycoke.select(x, 4, ratio).div(4).long().unique().numel() == frames
        with pytest.raises(InputError, match="more than 4 frames"):
            dycoke.select(x, 4, 0.5, faithful=True)
    emptied = dycoke.select(torch.ones(24, 2), 4, 1.0, faithful=True)
    assert torch.equal(emptied // 4, torch.tensor([0] * 4 + [4] * 4))
    assert dycoke.select(torch.ones(26, 2), 4, 0.5, faithful=True).max() < 24
    with pytest.raises(InputError, match="no frames"):
        dycoke.select(torch.ones(26, 2), 4, 0.5)


def test_dycoke_keeps_what_is_unlike_the_frame_compared_with() -> None:
    # frame 1 has a new cell 2 and 2 a new cell 0 against 0, frame 3 a new cell 1 against 2
    x = angles(0, 0, 0, 3, 5, 60, 70, 4, 5, 74, 90, 9).view(4, 3, 2)
    assert dycoke.select(x, 3, 0.6).tolist() == [0, 1, 2, 5, 6, 10]
    assert kept(DyCoke(), tokens_of(x), 6) == [0, 1, 2, 5, 6, 10]
    whole = dycoke.select(torch.cat([x, x]), 3, 0.3, faithful=True)
    assert whole[3:5].tolist() == [5, 4], "by rising cosine"


def test_dycoke_shares_any_budget() -> None:
    sizes = [10] * 8
    assert allocate(sizes, 38, 4) == [10, 3, 3, 3, 10, 3, 3, 3]
    assert allocate(sizes, 28, 4) == [10, 2, 2, 1, 10, 1, 1, 1]
    assert allocate(sizes, 24, 4) == [10, 2, 2, 2, 2, 2, 2, 2]
    assert allocate(sizes, 12, 4) == [2, 2, 2, 2, 1, 1, 1, 1]
    assert allocate(sizes, 4, 4) == [0, 1, 0, 1, 0, 1, 0, 1]
    assert allocate([3, 1, 2], 4, 2) == [2, 1, 1]
    with pytest.raises(InputError, match="power of two"):
        DyCoke(group=6)


def test_dycoke_keeps_a_token_whose_cell_was_not_there() -> None:
    x = angles(0, 0, 0, 0, 80, 70, 3, 60).view(2, 4, 2)
    thin = tokens_of(x).apply(Keep(torch.tensor([0, 1, 3, 4, 5, 6, 7])))
    assert kept(DyCoke(), thin, 4) == [0, 1, 3, 6]
    assert kept(DyCoke(), thin, 5) == [0, 1, 3, 4, 6]


def test_dycoke_cache_faithful_is_the_authors() -> None:
    g = golden("dycoke_decode_a")
    start, length, ratio = int(g["image_start"]), int(g["image_len"]), float(g["prune_ratio"])
    state = mine = None
    for step in range(4):
        attn, wanted = g[f"attn_step{step}"], g[f"kept_kv_step{step}"]
        index, state = dycoke.select_cache(attn, start, length, ratio, state, faithful=True)
        again, mine = dycoke.select_cache(attn, start, length, ratio, mine)
        assert state.similarity == pytest.approx(float(g["similarity"][step]), abs=1e-5)
        if wanted.tolist() == [-1]:
            assert index is None
            assert again is not None and again.tolist() == [*g["kept_kv_step0"].tolist(), 30]
        else:
            assert index is not None and again is not None
            assert torch.equal(index, wanted) and torch.equal(again, wanted)


def test_dycoke_cache_refuses_what_does_not_fit() -> None:
    attn = torch.rand(2, 10)
    _, state = dycoke.select_cache(attn, 2, 5, 0.5)
    with pytest.raises(InputError, match="start with None"):
        dycoke.select_cache(attn, 2, 6, 0.5, state)
    with pytest.raises(InputError, match="do not fit"):
        dycoke.select_cache(attn, 8, 5, 0.5)
    with pytest.raises(InputError, match="prune_ratio"):
        dycoke.select_cache(attn, 2, 5, 1.5)
