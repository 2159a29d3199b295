"""SemVID's frame budget, and the wrappers that share a budget out around any method."""

from __future__ import annotations

import pytest
import torch
from test_methods_flow import check
from torch import Tensor

from vidllm.compressors import (
    WRAPPERS,
    Chain,
    Compressor,
    FrameBudget,
    PerScene,
    Protect,
    Scorer,
    build,
    get,
    names,
    parse_wrapped,
)
from vidllm.compressors.flashvid import FlashVid
from vidllm.compressors.framefusion import FrameFusion
from vidllm.compressors.semvid import SemVid
from vidllm.compressors.shared.allocation import relevance, shares, uniform_shares
from vidllm.compressors.shared.parts import part_of
from vidllm.compressors.spec import spec_of
from vidllm.errors import InputError, WorkError
from vidllm.tokens import Keep, Merge, Mix, Selection, VideoTokens

QUERY = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
SPECS = [
    "semvid",
    "frame-budget(semvid)",
    "frame-budget(uniform)",
    "frame-budget:by=motion(aim)",
    "frame-budget:by=uniform(aim:weighting=size)",
    "per-scene:scenes=3(aim:faithful=true)",
    "per-scene:threshold=0.2(temporal-pool,uniform)",
    "per-scene(frame-budget:by=motion(random))",
    "random:keep=0.97,per-scene:scenes=2(spatial-pool)",
    "frame-budget:by=motion(flashvid:faithful=true)",
    "per-scene:scenes=2(framefusion:rest=similarity)",
]


def clip(grid: tuple[int, int, int], seed: int = 0) -> VideoTokens:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(*grid, 6, generator=draw)
    tokens = VideoTokens.from_grid(features, [2 * t + 1.0 for t in range(grid[0])], 2.0 * grid[0])
    return tokens.with_signals(cls_attention=torch.rand(len(tokens), generator=draw))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 3), (5, 1, 1), (7, 3, 2)])
def test_every_budget_is_met_and_the_books_are_kept(spec: str, grid: tuple[int, int, int]) -> None:
    tokens = clip(grid)
    for budget in range(1, max(1, int(0.9 * len(tokens))), 1 + len(tokens) // 5):
        after = parse_wrapped(spec, budget=budget)(tokens, query=QUERY)
        check(tokens, after, budget)
    assert parse_wrapped(spec)(tokens, budget=len(tokens), query=QUERY) is tokens


@pytest.mark.parametrize("spec", SPECS)
def test_thinned_and_merged_clips_and_flat_features(spec: str) -> None:
    whole = clip((6, 3, 2))
    method = parse_wrapped(spec)
    for earlier in ("random", "temporal-pool", "frame-sample", "aim"):
        tokens = get(earlier, budget=23)(whole)
        for budget in (1, 4, 15):
            check(whole, method(tokens, budget=budget, query=QUERY), budget)
    flat = whole.with_features(torch.zeros(36, 6))
    for budget in (1, 6, 20):
        check(flat, method(flat, budget=budget, query=QUERY), budget)


# SemVID


def test_semvid_relevance_takes_two_best_rows_and_smooths() -> None:
    frames = torch.eye(3)
    query = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert relevance(frames, query).tolist() == [1.0, 0.0, 0.5]
    assert relevance(frames, query[0]).tolist() == [1.0, 0.0, 0.0]
    assert relevance(frames, query, win=2).tolist() == pytest.approx([2 / 3, 0.5, 1 / 3])
    assert relevance(frames[:2], query, win=5).tolist() == [1.0, 0.0]


def test_semvid_shares_go_to_relevant_segments_and_the_rest_keeps_its_floor() -> None:
    frames = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    sizes, asked = torch.full((6,), 10), torch.tensor([[0.0, 1.0]])
    both = shares(frames, asked, sizes, 24, c=2, topk=1, minf=2, alpha=1.0)
    assert both.tolist() == [2, 2, 2, 6, 6, 6]
    overflow = shares(frames, asked, sizes, 45, c=2, topk=1, minf=2, alpha=1.0)
    assert overflow.tolist() == [5, 5, 5, 10, 10, 10]
    assert shares(frames, None, sizes, 12).sum() == 12
    assert sorted(shares(frames, asked, sizes, 3).tolist()) == [0, 0, 0, 1, 1, 1]
    assert uniform_shares(torch.tensor([4, 4, 4, 4]), 6).tolist() == [2, 1, 2, 1]
    assert uniform_shares(torch.tensor([1, 4, 4]), 8).tolist() == [1, 4, 3]


def test_semvid_needs_a_query_that_fits() -> None:
    tokens = clip((3, 2, 2))
    with pytest.raises(InputError, match="give it a query"):
        SemVid(keep=0.5)(tokens)
    for query in (torch.ones(2, 5), torch.ones(6), torch.ones(0, 6)):
        with pytest.raises(InputError, match=r"rows in the width of the video features"):
            SemVid(keep=0.5)(tokens, query=query)
    assert len(SemVid(keep=0.5)(tokens, query=torch.randn(60, 6))) == 6
    for options in ({"alpha": 2.0}, {"least": -1}):
        with pytest.raises(InputError, match=r"semvid: (alpha must|least cannot)"):
            SemVid(**options)  # type: ignore[arg-type]


# The wrappers


def test_each_frame_is_compressed_to_its_share_of_the_users_weights() -> None:
    tokens = clip((4, 2, 3))
    for inner in ("aim", "uniform", "spatial-pool"):
        method = FrameBudget(get(inner), weights=torch.tensor([1.0, 0.0, 2.0, 1.0]), least=0)
        after = method(tokens, budget=12)
        assert after.per_frame().tolist() == [3, 0, 6, 3]
        for t in (0, 2, 3):
            alone = clip((4, 2, 3)).features.view(4, 2, 3, 6)[t : t + 1]
            sub = VideoTokens.from_grid(alone, [2 * t + 1.0], 2 * t + 2.0, start=2 * t)
            expected = get(inner)(sub, budget=3 if t != 2 else 6)
            assert torch.equal(after.features[after.frame == t], expected.features)
            assert torch.equal(after.span[after.frame == t], expected.span)
    floor = FrameBudget(get("aim"), weights=[1, 0, 0, 0])(tokens, budget=8)
    assert floor.per_frame().tolist() == [5, 1, 1, 1]
    with pytest.raises(InputError, match="4 frames needs as many weights, not 2"):
        FrameBudget(get("aim"), weights=[1, 2])(tokens, budget=8)


def test_a_frame_budget_follows_relevance_motion_or_neither() -> None:
    still = torch.ones(6, 2, 2, 2) * torch.tensor([1.0, 0.0])
    still[4] = torch.tensor([0.0, 1.0])
    tokens = VideoTokens.from_grid(still, list(range(6)), 6.0)
    asked = FrameBudget(get("uniform"), alpha=1.0)(tokens, 9, torch.tensor([[0.0, 1.0]]))
    assert asked.per_frame().tolist() == [1, 1, 1, 1, 4, 1]
    moving = FrameBudget(get("uniform"), by="motion")(tokens, 8)
    assert moving.per_frame().tolist() == [1, 1, 1, 1, 2, 2]
    even = FrameBudget(get("uniform"), by="uniform")(tokens, 8)
    assert even.per_frame().tolist() == [2, 1, 1, 2, 1, 1]
    with pytest.raises(InputError, match=r"frame-budget\(uniform\).*give it a query"):
        FrameBudget(get("uniform"))(tokens, 8)


class Norm(Scorer):
    name = "norm"

    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        return tokens.features.norm(dim=1) * self.keep_scale(tokens)

    def keep_scale(self, tokens: VideoTokens) -> float:
        self.seen = len(tokens)
        return 1.0


def test_a_scorer_scores_the_whole_clip_but_a_scene_by_itself() -> None:
    tokens, norm = clip((4, 2, 2)), Norm()
    after = FrameBudget(norm, by="uniform")(tokens, 8)
    best = tokens.features.norm(dim=1).view(4, 4).topk(2).indices.sort().values
    assert norm.seen == 16
    assert after.position.tolist() == (best + 4 * torch.arange(4)[:, None]).flatten().tolist()
    PerScene(norm, scenes=2)(tokens, 8)
    assert norm.seen < 16
    norm.keep_scale = lambda tokens: float("nan")  # type: ignore[method-assign]
    with pytest.raises(WorkError, match="none NaN"):
        FrameBudget(norm, by="uniform")(tokens, 8)


@pytest.mark.parametrize("inner", ["aim", "random", "temporal-pool", "frame-sample", "aim,uniform"])
def test_protected_frames_are_bit_equal_and_the_rest_meets_the_budget(inner: str) -> None:
    tokens = clip((6, 2, 2))
    for method, safe in (
        (Protect(build(inner)), [0]),
        (Protect(build(inner), last=1), [0, 5]),
        (Protect(build(inner), first=0, frames=(2, -1)), [2, 5]),
    ):
        for budget in (4 * len(safe), 4 * len(safe) + 1, 17, 23):
            after = method(tokens, budget=budget)
            check(tokens, after, budget)
            for frame in safe:
                rows = after.position // 4 == frame
                assert torch.equal(after.features[rows], tokens.features[4 * frame : 4 * frame + 4])
        with pytest.raises(InputError, match=f"does not cover the {4 * len(safe)} protected"):
            method(tokens, budget=4 * len(safe) - 1)


def test_protection_works_on_thinned_clips_and_names_a_missing_frame() -> None:
    thin = get("frame-sample", stride=2)(clip((7, 2, 2)))  # frames 0, 2, 4, 6
    after = Protect(get("random"), first=1, last=1, frames=(3,))(thin, budget=10)
    assert after.per_frame()[[0, 6]].tolist() == [4, 4]
    with pytest.raises(InputError, match="7 frames has no frame 7"):
        Protect(get("random"), frames=(7,))(thin, budget=10)


def test_scenes_are_cut_where_frames_are_least_alike_and_stand_alone() -> None:
    draw = torch.Generator().manual_seed(1)
    looks = torch.randn(3, 1, 2, 2, 6, generator=draw)
    lengths = [4, 2, 6]
    film = torch.cat([x.expand(n, -1, -1, -1) for x, n in zip(looks, lengths, strict=True)])
    film = film + 0.1 * torch.randn(film.shape, generator=draw)
    tokens = VideoTokens.from_grid(film, list(range(12)), 12.0)
    for options in ({"scenes": 3}, {"threshold": 0.8}):
        for inner in ("aim", "temporal-pool", "random", "frame-sample"):
            after = PerScene(get(inner), **options)(tokens, 24)
            start = 0
            for length in lengths:
                scene = film[start : start + length]
                edges = {"start": max(0.0, start - 0.5)}
                end = min(12.0, start + length - 0.5)
                times = list(range(start, start + length))
                alone = get(inner)(VideoTokens.from_grid(scene, times, end, **edges), 2 * length)
                here = (after.frame >= start) & (after.frame < start + length)
                assert torch.allclose(after.features[here], alone.features, atol=1e-6)
                assert torch.equal(after.position[here], alone.position + 4 * start)
                start += length
    assert len(PerScene(get("aim"), scenes=99)(tokens, 5)) == 5


def test_a_part_is_a_clip_of_its_own() -> None:
    tokens = clip((6, 2, 2))
    part = part_of(tokens, torch.arange(8, 20))
    again = VideoTokens.from_grid(
        tokens.features[8:20].view(3, 2, 2, 6), [5.0, 7.0, 9.0], 10.0, start=4.0
    )
    for name in ("features", "frame", "cell", "span", "size", "position", "source"):
        assert torch.equal(getattr(part, name), getattr(again, name)), name
    assert part.grid == again.grid
    assert torch.equal(part.signals["cls-attention"], tokens.signals["cls-attention"][8:20])


@pytest.mark.parametrize(
    ("inner", "kind"),
    [
        ("random", Keep),
        ("temporal-pool", Merge),
        ("aim:weighting=size", Merge),
        ("aim", Mix),  # two rounds of plain means are no plain mean
        ("flashvid:faithful=true", Mix),
        ("random,temporal-pool", Merge),
    ],
)
def test_rounds_become_one_selection_that_does_the_same(inner: str, kind: type[Selection]) -> None:
    tokens = clip((4, 3, 3))
    plan = PerScene(parse_wrapped(inner), scenes=1).plan(tokens, 9)
    assert isinstance(plan, kind)
    direct = parse_wrapped(inner)(tokens, budget=9)
    after = tokens.apply(plan)
    assert torch.allclose(after.features, direct.features, atol=1e-6)
    for name in ("frame", "cell", "span", "size", "position", "source"):
        assert torch.equal(getattr(after, name), getattr(direct, name)), name


def test_wrappers_hold_chains_and_wrappers_and_are_held_by_chains() -> None:
    tokens = clip((6, 2, 2))
    deep = PerScene(Chain([get("temporal-pool"), Protect(get("aim"))]), scenes=2)
    assert deep.name == "per-scene(temporal-pool,protect(aim))"
    check(tokens, Chain([get("random", keep=0.9), deep], budget=12)(tokens), 12)
    check(tokens, Chain([deep, get("uniform")], keep=0.5)(tokens), 12)


def test_a_wrapper_says_of_itself_what_its_method_says() -> None:
    outer = PerScene(FrameBudget(FrameFusion()), keep=0.25)
    assert (outer.stage, outer.needs, outer.query_aware) == (
        "prefill",
        ("decoder-attention",),
        True,
    )
    assert outer.points(28) == [(2, 0.25)]
    assert Protect(FlashVid()).needs == ("cls-attention",) and Protect.needs == ()
    assert FrameBudget(get("aim"), by="uniform").query_aware is False
    with pytest.raises(InputError, match="names no decoder layers"):
        Protect(get("aim")).points(28)
    assert set(WRAPPERS) == {"frame-budget", "protect", "per-scene"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("protect(aim", "brackets do not match"),
        ("protect)aim(", "brackets do not match"),
        ("aim(uniform)", "no wrapper 'aim'"),
        ("protect:firs=1(aim)", "'firs' of wrapper 'protect' is none of keep"),
        ("protect:first=x(aim)", "must be a whole number"),
        ("protect:first=-1(aim)", "cannot be negative"),
        ("per-scene:threshold=x(aim)", "must be a number"),
        ("per-scene:threshold=0.5:scenes=2(aim)", "either scenes or threshold"),
        ("per-scene:scenes=0(aim)", "at least 1"),
        ("frame-budget:by=luck(aim)", "'semvid', 'motion' or 'uniform'"),
        ("frame-budget:weights=0+0(aim)", "not all zero"),
        ("per-scene(aim:keep=0.5)", "give the keep or budget to per-scene"),
        ("per-scene(temporal-pool:k=2)", "no window of its own"),
        ("per-scene()", "empty name"),
        ("per-scene(zzz)", "choose from"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_wrapped(spec)
    assert "\n" not in str(caught.value)


def test_specs_build_what_they_say() -> None:
    method = parse_wrapped("Frame_Budget:weights=1+0.5:least=0(aim)", keep=0.5)
    assert isinstance(method, FrameBudget) and method.weights == (1.0, 0.5) and method.keep == 0.5
    chain = parse_wrapped("random:keep=0.5, protect:frames=0+-1:first=0(aim,uniform)", budget=7)
    assert isinstance(chain, Chain) and isinstance(chain.items[1], Protect) and chain.budget == 7
    assert chain.items[1].frames == (0, -1) and isinstance(chain.items[1].inner, Chain)
    plain = parse_wrapped("aim", keep=0.3)
    assert isinstance(plain, Compressor) and plain == build("aim", keep=0.3)
    with pytest.raises(InputError, match="given twice"):
        parse_wrapped("protect:keep=0.5(aim)", keep=0.5)


@pytest.mark.parametrize(
    ("spec", "keep"),
    [
        *((name, 0.3) for name in names() if name != "none"),
        ("aim:faithful=true:budget=7", 1.0),
        ("temporal-pool:k=2", 1.0),
        ("dycoke,uniform", 0.4),
        ("per-scene:scenes=4(protect:frames=0+-1(aim))", 0.25),
        ("random:keep=0.5,protect:last=1(frame-budget:by=uniform(aim))", 0.2),
    ],
)
def test_a_method_says_the_spec_that_builds_it(spec: str, keep: float) -> None:
    method = build(spec, keep=keep)
    written, share = spec_of(method)
    assert repr(build(written, keep=share)) == repr(method)


def test_what_no_spec_can_say_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be written"):
        spec_of(build("dycoke,uniform", budget=9))
