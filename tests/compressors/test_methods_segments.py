"""VisionZip, FastVID and HoliTom: the authors' numbers, exact budgets, and what each promises."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors import fastvid, holitom, visionzip
from torch import Tensor

from vidllm.compressors.fastvid import FastVid, segments
from vidllm.compressors.holitom import HoliTom, HoliTomInner, programme
from vidllm.compressors.shared.density import cluster, generator, peaks
from vidllm.compressors.visionzip import VisionZip
from vidllm.errors import InputError
from vidllm.tokens import Keep, VideoTokens

GOLDENS = Path(__file__).parents[1] / "goldens"
GRIDS = [(1, 1, 2), (1, 4, 4), (5, 1, 1), (9, 3, 4)]
METHODS: list[Any] = [
    *(VisionZip, FastVid),
    lambda **o: FastVid(variant="qwen", **o),
    lambda **o: FastVid(variant="qwen", ignore=-1.0, c=1, tau=-2.0, **o),
    lambda **o: FastVid(p=1, c=1, tau=-2.0, **o),
    HoliTom,
    lambda **o: HoliTom(tau=0.0, **o),
]


def load(name: str) -> dict[str, Any]:
    arrays = np.load(GOLDENS / f"{name}.npz").items()
    return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in arrays}


def clip(features: Tensor, attention: Tensor | None = None, **signals: Tensor) -> VideoTokens:
    seconds = torch.arange(len(features)) * 2.0 + 1
    tokens = VideoTokens.from_grid(features, seconds, 2.0 * len(features))
    if attention is None:
        attention = torch.rand(len(tokens), generator=torch.Generator().manual_seed(3))
    keys = signals.pop("vision_keys", tokens.features)
    return tokens.with_signals(cls_attention=attention.flatten(), vision_keys=keys, **signals)


def noisy(grid: tuple[int, int, int], seed: int = 0) -> VideoTokens:
    """A clip of which about half the cells stand still from frame to frame."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.randn(*grid, 6, generator=draw)
    steps *= torch.where(torch.rand(grid, generator=draw) < 0.5, 0.05, 1.0)[..., None]
    return clip(steps.cumsum(0))


def check(before: VideoTokens, after: VideoTokens) -> None:
    """Time order, provenance and spans."""
    assert (after.position.diff() > 0).all(), "not in time order"
    member, slot = (t.source[after.source >= 0] for t in (before, after))
    assert torch.equal(torch.bincount(slot, minlength=len(after)).float(), after.size)

    def hull(plane: Tensor, how: str) -> Tensor:
        start = plane.new_zeros(len(after), plane.shape[1])
        index = slot[:, None].expand(-1, plane.shape[1])
        return start.scatter_reduce(0, index, plane[member], how, include_self=False)

    assert torch.equal(after.span[:, 0], hull(before.span, "amin")[:, 0])
    assert torch.equal(after.span[:, 1], hull(before.span, "amax")[:, 1])
    assert (after.features >= hull(before.features, "amin") - 1e-5).all()
    assert (after.features <= hull(before.features, "amax") + 1e-5).all()
    own = torch.searchsorted(before.position, after.position)
    assert torch.equal(after.cell, before.cell[own]) and torch.equal(after.frame, before.frame[own])
    assert torch.equal(after.source[after.position], torch.arange(len(after)))


def test_visionzip_with_a_cls_is_the_authors() -> None:
    data = load("visionzip_cls_4x49")
    wanted, places = data.pop("tokens"), data.pop("dominant_idx")
    tokens, index = visionzip.merge(**data)
    assert torch.equal(index, places) and torch.allclose(tokens, wanted, atol=1e-5)


def test_visionzip_without_a_cls_is_the_authors_in_the_function_and_in_the_method() -> None:
    data = load("visionzip_nocls_odd")
    wanted = data.pop("tokens")
    assert torch.allclose(visionzip.merge(**data)[0], wanted, atol=1e-5)
    planes = data["attention_mean"], data["key_mean"].flatten(0, 1)
    tokens = clip(data["hidden"].view(3, 5, 5, 11), planes[0], vision_keys=planes[1])
    theirs = VisionZip(budget=24, dominant=5 / 8, faithful=True)(tokens)
    assert torch.allclose(theirs.features.view(3, 8, 11), wanted, atol=1e-5)
    ours = VisionZip(budget=24, dominant=5 / 8)(tokens)
    order = theirs.position.argsort()
    assert torch.equal(ours.source, order.argsort()[theirs.source] * (theirs.source >= 0))
    assert torch.equal(ours.features[ours.size == 1], theirs.features[order][ours.size == 1])
    check(tokens, ours)


def test_visionzip_adds_what_joins_and_the_method_takes_the_mean() -> None:
    hidden = torch.tensor([[[9.0], [1.0], [2.0], [10.0], [4.0]]])
    keys = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2]]])
    attention = torch.tensor([[0.9, 0.1, 0.1, 0.1, 0.1]])
    tokens, index = visionzip.merge(hidden, keys, 1, 2, attention_mean=attention)
    assert index.tolist() == [[0]]
    # Targets are the first and the third of the four that are left.
    assert tokens.flatten().tolist() == [9.0, 1.0 + (2.0 + 4.0) / 2, 10.0]
    video = clip(hidden.view(1, 1, 5, 1), attention, vision_keys=keys[0])
    after = VisionZip(budget=3, dominant=0.5)(video).features
    assert after.flatten().tolist() == pytest.approx([9.0, 7 / 3, 10.0])
    assert VisionZip(budget=3, dominant=1.0)(video).position.tolist() == [0, 1, 2]


def test_visionzip_with_fewer_tokens_than_frames_takes_runs_of_frames() -> None:
    after = VisionZip(budget=2)(noisy((5, 2, 2)))
    assert after.span.tolist() == [[0.0, 4.0], [4.0, 10.0]] and after.size.tolist() == [8, 12]


def test_visionzip_refuses_what_it_cannot_do() -> None:
    hidden, score = torch.zeros(1, 4, 2), torch.zeros(1, 4)
    with pytest.raises(InputError, match="either"):
        visionzip.merge(hidden, hidden, 1, 1)
    for keys, dominant, message in ((hidden, 3, "cannot be had"), (hidden[:, 1:], 1, "same tok")):
        with pytest.raises(InputError, match=message):
            visionzip.merge(hidden, keys, dominant, 2, attention_mean=score)


@pytest.mark.parametrize("case", ["fastvid_ov_16x49", "fastvid_qwen25_16x6x6"])
def test_fastvid_is_the_authors(case: str) -> None:
    data = load(case)
    sizes = segments(data["frame_global_features"], data["DySeg_c"], data["DySeg_tau"])
    assert torch.equal(sizes, data["segment_sizes"])
    inputs = {k: data[k] for k in fastvid.merge.__annotations__ if k in data}
    index, tokens = fastvid.merge(**inputs)
    assert torch.equal(index, data["video_kept_idx"])
    assert torch.allclose(tokens, data["video_tokens"], atol=1e-5)


def test_fastvid_the_method_is_the_function() -> None:
    data = load("fastvid_qwen25_16x6x6")
    x, attention = data["features"], data["frame_attention"]
    tokens = clip(x.view(16, 6, 6, 16), attention)
    for ignore, variant in ((0.97, "qwen"), (None, "llava")):
        index, rows = fastvid.merge(x, x.mean(1), attention, 0.3, 4, 0.5, DySeg_ignore=ignore)
        options: Any = {"variant": variant, "c": 4, "tau": 0.5, "ignore": ignore or 0.0}
        theirs = FastVid(budget=len(index), faithful=True, **options)(tokens)
        ours = FastVid(budget=len(index), **options)(tokens)
        assert torch.equal(theirs.position, index) and torch.equal(ours.position, index)
        assert torch.allclose(theirs.features, rows, atol=1e-5)
        assert torch.equal(theirs.source, ours.source)
        assert not torch.allclose(theirs.features, ours.features, atol=1e-3)
        check(tokens, ours)


def test_fastvid_cuts_the_least_similar_and_those_below_tau() -> None:
    angles = torch.tensor([0.0, 0.1, 1.2, 1.3, 1.5, 3.0])
    frames = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert segments(frames, 1, 0.9).tolist() == [2, 3, 1]
    assert segments(frames, 4, 0.9).tolist() == [2, 2, 1, 1]
    assert segments(frames, 1, -1.0).tolist() == [6]
    for few in (frames, frames[:1]):
        assert segments(few, 60, 0.9).tolist() == [1] * len(few)
    assert segments(torch.ones(5, 2), 3, 0.9).tolist() == [1, 1, 3]


@pytest.mark.parametrize("ignore", [None, 0.9])
def test_fastvid_function_stands_large_shares_and_short_clips(ignore: float | None) -> None:
    for ratio, (frames, n) in product((0.1, 0.6, 0.95, 1.0), ((9, 11), (1, 11), (3, 10))):
        x = torch.randn(frames, n, 4, generator=torch.Generator().manual_seed(1))
        index, rows = fastvid.merge(x, x.mean(1), x[..., 0], ratio, 2, -1.0, DySeg_ignore=ignore)
        assert (index.diff() > 0).all() and bool(torch.isfinite(rows).all())
        most = frames * int(n * ratio)
        assert len(rows) == len(index) <= most and (ignore or len(index) >= most - frames)
    for share, message in ((0.01, "not 0"), (1.2, "not 12")):
        with pytest.raises(InputError, match=message):
            fastvid.merge(x, x.mean(1), x[..., 0], share)


def test_fastvid_an_anchor_weighs_at_least_beta() -> None:
    # After the salient token two pairs of neighbours remain, and two anchors.
    x = torch.tensor([[[7.0, 7.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    attention = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    index, rows = fastvid.merge(x, x.mean(1), attention, 0.6, STPrune_d=0.7)
    assert len(index) == 3 and index[0] == 0
    # The LLaVA variant counts the anchor among its members.
    first, joined = x[0, index[1]], x[0, 1:3].mean(0)
    assert torch.allclose(rows[1], 0.6 * first + 0.4 * joined)
    _, qwen = fastvid.merge(x, x.mean(1), attention, 0.6, STPrune_d=0.7, DySeg_ignore=0.9)
    assert torch.allclose(qwen[1], 0.6 * first + 0.4 * (2 * joined - first))


def test_holitom_is_the_authors() -> None:
    data = load("holitom_12x49_tau08")
    found, saved = holitom.windows(data["features"], data["tau"], data["max_window"])
    assert torch.equal(found, data["windows"]) and saved == data["total_reduced"]
    inputs = {k: data[k] for k in holitom.merge.__annotations__ if k in data}
    tokens, counts = holitom.merge(**inputs)
    assert torch.allclose(tokens, data["tokens"], atol=1e-5)
    assert torch.equal(counts, data["tokens_per_window"])
    grid, _ = holitom.merge(**inputs, newline=torch.full((16,), 9.0))
    assert torch.allclose(grid, data["tokens_grid_newline9"], atol=1e-5)


def test_holitom_the_method_is_the_function_but_for_two_tokens() -> None:
    data = load("holitom_12x49_tau08")
    tokens = clip(data["features"].view(12, 7, 7, 16), data["attention"])
    theirs = HoliTom(keep=0.25, faithful=True)(tokens)
    near = torch.cdist(theirs.features, data["tokens"]).argmin(1)
    assert len(theirs) == 147 and (near.diff() > 0).all()
    assert torch.allclose(theirs.features, data["tokens"][near], atol=1e-5)
    check(tokens, HoliTom(keep=0.25)(tokens))


def test_holitom_sets_stand_in_raster_order_or_before_their_frames() -> None:
    for budget in (14, 42):
        theirs = HoliTom(budget=budget, faithful=True)(noisy((5, 3, 3)))
        assert (theirs.position.diff() < 0).any() and (theirs.frame.diff() >= 0).all()


def brute(still: Tensor, longest: int) -> int:
    best = [0]
    for end in range(1, len(still) + 2):
        windows = [(first, end - 1) for first in range(max(0, end - longest), end - 1)]
        saved = [best[a] + int(still[a:b].all(0).sum()) * (b - a) for a, b in windows]
        best.append(max(best[-1], *saved) if saved else best[-1])
    return best[-1]


@pytest.mark.parametrize("longest", [1, 3, 1024])
def test_holitom_windows_save_the_most(longest: int) -> None:
    for seed in range(12):
        draw = torch.Generator().manual_seed(seed)
        still = torch.rand(9, 7, generator=draw) < 0.75
        found, saved = programme(still, longest)
        assert [t for a, b in found for t in range(a, b + 1)] == list(range(10))
        gains = [int(still[a:b].all(0).sum()) * (b - a) for a, b in found]
        assert sum(gains) == saved == brute(still, longest)
        assert all(gain > 0 or a == b for gain, (a, b) in zip(gains, found, strict=True))
        assert max(b - a for a, b in found) < longest
    assert programme(torch.zeros(2, 2, dtype=torch.bool)) == ([(0, 0), (1, 1), (2, 2)], 0)
    assert programme(torch.tensor([[True], [False], [True]])) == ([(0, 1), (2, 3)], 2)


def test_holitom_function_on_one_frame_and_on_cells_that_are_no_square() -> None:
    x = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0))
    score = torch.arange(7.0)[None]
    tokens, counts = holitom.merge(x, score, 0.5)
    assert torch.equal(tokens, x[0, 3:]) and counts.tolist() == [4]
    for options, message in (({"newline": x[0, 0]}, "no square"), ({"D": 1}, "D 0")):
        with pytest.raises(InputError, match=message):
            holitom.merge(x, score, 0.5, **options)
    # A clip that stands still: one set, of which half the 7 cells stay, rounded to even.
    still, counts = holitom.merge(x.expand(4, -1, -1), score.expand(4, -1), 0.5 / 4)
    assert len(still) == round(3.5) == 4 and counts.tolist() == [4]


def test_holitom_keeps_what_is_still_once_and_drops_nothing_that_it_need_not() -> None:
    frame = torch.randn(1, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    tokens = clip(frame.expand(5, -1, -1, -1).clone())
    after = HoliTom(budget=4)(tokens)
    assert after.size.tolist() == [5] * 4 and after.span.tolist() == [[0.0, 10.0]] * 4
    assert torch.allclose(after.features, frame.view(4, 4), atol=1e-6)
    more = HoliTom(budget=9)(tokens)
    assert int(more.size.sum()) == 20 and more.per_frame().tolist() == [4, 4, 1, 0, 0]
    assert HoliTom(budget=1, beta=1.0)(tokens).size.tolist() == [20]


def test_holitom_inner_stage_is_the_authors_in_the_function_and_in_the_method() -> None:
    data = load("holitom_inner_a")
    wanted, index = data.pop("hidden_out"), data.pop("keep_idx")
    hidden, kept = holitom.inner_merge(**data)
    assert torch.equal(kept, index) and torch.allclose(hidden, wanted, atol=1e-5)
    score = data["attention_prev_layer"][0].mean(0)[-1, 4:24]
    tokens = clip(data["hidden"][0, 4:24].view(5, 2, 2, 12), decoder_attention=score)
    theirs = HoliTomInner(budget=10, faithful=True)(tokens)
    assert torch.allclose(theirs.features, wanted[0, 4:14], atol=1e-5)
    ours = HoliTomInner(budget=10)(tokens)
    assert torch.equal(ours.source, theirs.source) and int(ours.size.sum()) == 20
    check(tokens, ours)
    pairs = ours.size <= 2  # halved once, which is the mean
    assert torch.allclose(ours.features[pairs], theirs.features[pairs], atol=1e-6)


def test_holitom_points_end_at_its_keep() -> None:
    assert HoliTom(keep=0.1).points(28) == [(0, 0.1)]
    assert HoliTom(keep=0.1, inner=0.5).points(28) == [(0, 0.2), (18, 0.1)]
    assert HoliTom(keep=0.6, inner=0.5).points(36) == [(0, 1.0), (23, 0.6)]
    tokens, late = HoliTom(keep=0.2, inner=0.5).before_decoder(noisy((5, 3, 3)))
    assert len(tokens) == 18 and late == [(HoliTomInner(keep=0.2), 9)]
    assert HoliTom(keep=0.2).before_decoder(tokens)[1] == []


@pytest.mark.parametrize(
    ("method", "options"),
    [(VisionZip, "dominant=2"), (FastVid, "p=0"), (FastVid, "beta=2"), (HoliTom, "inner=0")],
)
def test_wrong_options_and_models_without_attention_are_refused(method: Any, options: str) -> None:
    option, value = options.split("=")
    with pytest.raises(InputError, match=option):
        method(**{option: int(value)})
    with pytest.raises(InputError, match="cls-attention"):
        method(budget=3)(VideoTokens.from_grid(torch.ones(2, 2, 2, 3), [0.0, 1.0], 2.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_budget_is_met_and_the_books_are_kept(method: Any, grid: Any) -> None:
    tokens = noisy(grid)
    draw = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))
    some = Keep(draw[: max(2, 2 * len(tokens) // 3)].sort().values)
    for video in (tokens, tokens.apply(some)):
        for budget in range(1, len(video), 1 + len(video) // 6):
            after = method(budget=budget)(video)
            assert len(after) == budget
            check(video, after)
            assert len(method(budget=budget, faithful=True)(video)) == budget


@pytest.mark.parametrize("method", METHODS)
def test_constant_clips_give_no_nan_and_the_earlier_of_equals(method: Any) -> None:
    for value, budget in product((0.0, 1.0), (1, 3, 8, 20)):
        tokens = clip(torch.full((5, 2, 3, 4), value), torch.ones(30))
        after = method(budget=budget)(tokens)
        assert len(after) == budget and torch.allclose(after.features, tokens.features[:1])
        check(tokens, after)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_gradients_pass(method: Any) -> None:
    tokens, half = noisy((6, 3, 3)), torch.bfloat16
    assert method(budget=20)(tokens.to(dtype=half)).features.dtype == half
    x = tokens.features.clone().requires_grad_()
    method(budget=20)(tokens.with_features(x)).features.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and bool(x.grad.any())


def test_density_peaks_stand_in_the_middle_of_clouds() -> None:
    cloud = torch.tensor([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])
    x = torch.cat([cloud, cloud * 2 + 5])
    assert peaks(x, 4).argsort(descending=True)[:2].sort().values.tolist() == [0, 5]
    centres, into, rows = cluster(x, 2, 0.6, 7, strict=False)
    assert into.tolist() == [0] * 5 + [1] * 5
    others = [x[[i for i in part if i not in centres]].mean(0) for part in (range(5), range(5, 10))]
    assert torch.allclose(rows, 0.6 * x[centres] + 0.4 * torch.stack(others), atol=1e-6)
    assert torch.equal(peaks(x[:1], 4), torch.zeros(1))
    noise = [peaks(x, 4, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    same = torch.tensor([[0.0], [0.0], [0.0], [1.0], [9.0]])
    for strict, best in ((True, [True] * 3), (False, [True, False, False])):
        assert (peaks(same, 3, strict=strict)[:3] > 0).tolist() == best
