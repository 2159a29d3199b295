"""Merging inside vision towers: ToMe, TempMe with its tower and retrieval head, PYRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors import pyra as pyra_authors
from authors import tempme, tome
from authors.tempme import (
    TempMe,
    TempMeText,
    TempMeVideo,
    contrastive_loss,
    load_clip,
    retrieval_metrics,
)
from torch import Tensor

from vidllm.compressors import get
from vidllm.compressors import pyra as pyra_module
from vidllm.errors import InputError
from vidllm.eval.scores.retrieval import retrieval_scores
from vidllm.tokens import Keep, VideoTokens
from vidllm.tokens.matching import match

GOLDENS = Path(__file__).parents[1] / "goldens"
METHODS = ["tome", "tempme", "pyra"]


def golden(case: str) -> dict[str, Any]:
    with np.load(GOLDENS / f"{case}.npz") as data:
        return {k: torch.from_numpy(v) if v.dtype.kind != "U" else str(v) for k, v in data.items()}


def clip(grid: tuple[int, int, int], width: int = 6, seed: int = 0) -> VideoTokens:
    features = torch.randn(*grid, width, generator=torch.Generator().manual_seed(seed))
    return VideoTokens.from_grid(features, [2 * t + 1.0 for t in range(grid[0])], 2.0 * grid[0])


def close(one: Tensor, two: Tensor, tolerance: float = 1e-5) -> bool:
    return one.shape == two.shape and torch.allclose(one.float(), two.float(), atol=tolerance)


def means(tokens: VideoTokens, after: VideoTokens) -> Tensor:
    """The plain mean of the sources of every token."""
    return torch.stack([tokens.features[after.source == i].mean(0) for i in range(len(after))])


@pytest.mark.parametrize("case", ["tome_even_nocls", "tome_odd_cls"])
def test_tome_is_the_authors(case: str) -> None:
    data = golden(case)
    first = tome.merge(
        data["metric"], data["x"], int(data["r"]), class_token=bool(data["class_token"])
    )
    assert close(first.x, data["merged"]) and torch.equal(first.size, data["size"])
    assert torch.equal(first.source, data["source"])
    assert close(tome.unmerge(first.x, first.owner), data["unmerged"])
    second = tome.merge(
        data["metric2"], first.x, int(data["r2"]), first.size, bool(data["class_token"])
    )
    assert close(second.x, data["merged2"]) and torch.equal(second.size, data["size2"])


def test_tome_special_tokens_never_merge_and_stand_in_front() -> None:
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(1))
    out = tome.merge(x, x, 9, class_token=True, distill_token=True)
    assert out.x.shape == (2, 7, 4)  # five pairs are all that ten tokens make
    assert close(out.x[:, :2], x[:, :2]) and bool((out.size[:, :2] == 1).all())
    assert torch.equal(tome.merge(x, x, 0).x, x)
    assert torch.equal(tome.merge(x[:, :1], x[:, :1], 3, class_token=True).x, x[:, :1])


def test_tome_ties_go_to_the_earlier_and_zeros_are_no_trouble() -> None:
    x = torch.zeros(1, 7, 3)
    out = tome.merge(x, x, 2)
    assert not out.x.isnan().any() and out.owner[0].tolist() == [2, 2, 2, 3, 0, 4, 1]
    assert out.size[0, :, 0].tolist() == [1, 1, 3, 1, 1]


def test_tome_kth_variant_joins_groups_and_loses_the_tail() -> None:
    x = torch.tensor([[0.0, 1], [1, 0], [1, 0], [9, 1], [1, 9], [0, 1], [7, 7]])[None]
    out = tome.merge_kth(x, x, 3)
    assert out.owner.tolist() == [[1, 0, 0, 0, 1, 1]]
    assert close(out.x[0], torch.tensor([[11 / 3, 1 / 3], [1 / 3, 11 / 3]]))
    assert torch.equal(tome.merge_kth(x, x, 1).x, x)
    with pytest.raises(InputError, match="smaller k"):
        tome.merge_kth(x, x, 8)


def test_tome_counts_by_layer() -> None:
    assert tome.parse_r(3, 8) == [8, 8, 8]
    assert tome.parse_r(5, (4, -1.0)) == [8, 6, 4, 2, 0]
    assert tome.parse_r(5, (4, 1.0)) == [0, 2, 4, 6, 8]
    assert tome.parse_r(4, [3, 2]) == [3, 2, 0, 0]
    assert tome.parse_r(1, (4, 0.0)) == [4]


def test_matching_in_blocks_is_matching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = torch.randn(2, 21, 4, generator=torch.Generator().manual_seed(2))
    even, odd = torch.arange(0, 21, 2), torch.arange(1, 21, 2)
    whole = match(metric, 6, even, odd)
    monkeypatch.setattr("vidllm.tokens.matching._BLOCK", 45)
    assert all(map(torch.equal, whole, match(metric, 6, even, odd)))


@pytest.mark.parametrize("case", ["tempme_merge_cls1", "tempme_merge_cls2_even"])
def test_tempme_merge_is_the_authors(case: str) -> None:
    data = golden(case)
    x, metric, size = data["x"], data["metric"], data.get("size_in")
    protected, r = int(data["cls_num"]), int(data["r"])
    out, sizes = tempme.merge(x, metric, size, protected, r)
    assert close(out, data["out"]) and close(sizes, data["size_out"])
    assert close(tempme.merge(x, metric, None, protected, r)[0], data["out_mean"])
    eye = torch.eye(x.shape[1]).expand(x.shape[0], -1, -1)
    member, _ = tempme.merge(eye, metric, None, protected, r)
    assert torch.equal((member > 0).float(), data["source"])


def test_tempme_merge_at_its_limits() -> None:
    x = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(3))
    for protected, most in ((0, 4), (1, 3), (7, 0), (8, 0)):
        out, size = tempme.merge(x, x, None, protected, 99)
        assert out.shape[1] == 8 - most and size.sum() == 8
        assert close(out[:, :protected], x[:, :protected])
    with pytest.raises(InputError, match="protected"):
        tempme.merge(x, x, None, 9, 1)
    with pytest.raises(InputError, match="size must be"):
        tempme.merge(x, x, torch.ones(1, 8), 0, 1)


def test_tempme_schedule_is_the_authors() -> None:
    data = golden("tempme_schedule")
    for name, tokens, r in (("b32_r2", 50, 2), ("b16_r2", 197, 2), ("b16_r10", 197, 10)):
        steps = tempme.schedule(tokens, tome_r=r)
        assert [list(step) for step in steps] == data[f"vit_{name}"].tolist()
    assert tempme.schedule(50, frames=24)[-1].frames == 2
    with pytest.raises(InputError, match="multiple"):
        tempme.schedule(50, frames=8)


def tower(state: dict[str, Tensor], **options: Any) -> TempMeVideo:
    made = TempMeVideo(40, 8, 64, 12, 16, rank=4, frames=0, **options)
    load_clip(made, state)
    return made.eval()


@torch.inference_mode()
def test_tempme_tower_is_the_authors_and_padding_decides_nothing() -> None:
    data = golden("tempme_video_nopos_mask")
    state = {k[3:]: v for k, v in data.items() if k.startswith("sd/")}
    pixels, mask = data["video"].view(2, 12, 3, 40, 40), data["video_mask"]
    authors = tower(state, faithful=True)
    outputs: list[tuple[Tensor, Tensor]] = []
    for layer in authors.transformer.resblocks:
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    assert close(authors.encode(pixels, mask), data["feat"], 1e-4)
    steps = authors.steps(12)
    for (x, _), step, row in zip(outputs, steps, data["trace"].tolist(), strict=True):
        assert [x.shape[0], x.shape[1], step.cls_num, step.frames] == row
    for i in (0, 7, 8, 9, 10, 11):
        assert close(outputs[i][0], data[f"block{i}_out"], 1e-3)
    assert torch.equal(outputs[-1][1], data["final_size"])

    ours = tower(state)
    feat = ours.encode(pixels, mask)
    assert close(feat[0], data["feat"][0], 1e-4) and not close(feat[1], data["feat"][1], 1e-3)
    other = pixels.clone()
    other[1, 9:] = 5.0
    assert close(ours.encode(other, mask), feat) and feat.isfinite().all()
    lone = torch.zeros(2, 12, dtype=torch.long)
    lone[0, 0] = 1
    assert ours.encode(pixels, lone).isfinite().all()


def test_tempme_tower_takes_weights_under_any_name_and_refuses_others() -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 64, "output": 8}
    video, other = (TempMeVideo(**small, layers=12, rank=2, frames=12) for _ in range(2))
    model, again = (TempMe(v, TempMeText(30, 9, 64, 2, 8, rank=2)) for v in (video, other))
    torch.nn.init.normal_(video.transformer.resblocks[9].place)  # type: ignore[arg-type]
    theirs = {}
    for name, value in model.state_dict().items():
        bare = name.removeprefix("text.").replace("lora_", "TVPt_LoRA_")
        place = f"TVPt_place.{value.shape[1]}" if name.endswith("place") else ""
        theirs[place or f"clip.{bare}"] = value
    for state in (theirs, model.state_dict()):
        load_clip(again, state)
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
        load_clip(again.text, state)
        load_clip(again.visual, state)
    plain = {k: v for k, v in theirs.items() if "TVPt" not in k}
    load_clip(again, plain)  # CLIP's own weights, as a start
    with pytest.raises(InputError, match="do not fit"):
        load_clip(TempMeVideo(**small, layers=12, rank=0, frames=12), theirs)
    with pytest.raises(InputError, match="do not fit"):
        load_clip(TempMeVideo(**small, layers=12, rank=2, frames=0), theirs)
    with pytest.raises(InputError, match="do not fit"):
        load_clip(again, {k: v for k, v in plain.items() if "ln_post" not in k})
    with pytest.raises(InputError, match="for 12 frames, not 24"):
        video(torch.rand(1, 24, 3, 16, 16))


def test_tempme_learns_to_retrieve_with_lora_and_places_alone() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"merge_layers": (1, 2), "merge_frames": (2, 2), "tome_r": 1}
    video = TempMeVideo(16, 4, 64, 3, 8, rank=4, frames=4, **options)
    model = TempMe(video, TempMeText(20, 6, 64, 1, 8, rank=4))
    weights = model.trainable()
    assert sum(w.numel() for w in weights) == 4 * (4 * 64 + 192 * 4) + (4 + 2) * 64
    frozen = video.conv1.weight.clone()
    frames = torch.rand(4, 4, 3, 16, 16)
    ids = torch.tensor([[1, 2, 19, 0], [3, 4, 5, 19], [6, 19, 0, 0], [7, 8, 19, 0]])
    words = (ids > 0).long()
    losses = []
    for _ in range(12):
        loss = contrastive_loss(model(ids, frames, words))
        steps = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                weight -= 0.01 * step.sign()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and torch.equal(frozen, video.conv1.weight)
    with torch.no_grad():
        longer = torch.cat([ids, torch.zeros(4, 2, dtype=torch.long)], dim=1)
        assert close(model.text(longer, (longer > 0).long()), model.text(ids, words), 1e-4)
        assert retrieval_metrics(model(ids, frames, words))["R1"] == 100.0


def test_retrieval_metrics_are_the_authors_and_count_ties_once() -> None:
    data = golden("tempme_metrics")
    for similarity, name in ((data["sim"], "t2v"), (data["sim"].T, "v2t")):
        expected = json.loads(data[name])
        for faithful in (True, False):  # no ties here
            found = retrieval_metrics(similarity, faithful=faithful)
            assert all(found[k] == pytest.approx(v) for k, v in expected.items() if k != "cols")
            scores = retrieval_scores(similarity.numpy(), official=faithful)
            assert scores["R@1"] == pytest.approx(expected["R1"] / 100)
            assert scores["MdR"] == pytest.approx(expected["MedianR"])
            assert scores["MnR"] == pytest.approx(expected["MeanR"])
    flat = torch.zeros(4, 4)
    assert retrieval_metrics(flat)["R1"] == 0.0 and retrieval_metrics(flat)["MeanR"] == 4.0
    assert retrieval_metrics(flat, faithful=True)["R1"] == 25.0
    assert retrieval_scores(flat.numpy(), official=True)["R@1"] == 0.25
    with pytest.raises(InputError, match="square"):
        retrieval_metrics(torch.zeros(2, 3))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 4), (5, 1, 1), (7, 3, 5), (13, 2, 2)])
def test_any_budget_is_met_by_means_of_the_sources(name: str, grid: tuple[int, int, int]) -> None:
    tokens = clip(grid)
    thinned = tokens.apply(Keep(torch.arange(len(tokens))[torch.arange(len(tokens)) % 5 != 1]))
    for before in (tokens, thinned):
        for budget in {1, len(before) // 7, len(before) // 2, len(before) - 1} - {0}:
            after = get(name)(before, budget=budget)
            assert len(after) == budget and bool((after.position.diff() > 0).all())
            assert float(after.size.sum()) == len(before)  # merged, never dropped
            assert close(after.features, means(tokens, after))
    flat = tokens.with_features(torch.zeros(len(tokens), 6))
    half = get(name, budget=max(1, len(tokens) // 2))(flat)
    assert bool((half.features == 0).all())


@pytest.mark.parametrize("name", ["tome", "tempme"])
def test_faithful_keeps_the_authors_order(name: str) -> None:
    tokens = clip((1, 3, 4))
    x = tokens.features[None]
    made = tome.merge(x, x, 3).x if name == "tome" else tempme.merge(x, x, None, 0, 3)[0]
    faithful, default = (get(name, budget=9, faithful=f)(tokens) for f in (True, False))
    assert close(faithful.features, made[0])
    order = faithful.position.argsort()
    assert not torch.equal(order, torch.arange(9))
    assert torch.equal(default.features, faithful.features[order])
    assert len(get(name, budget=5, faithful=True)(clip((7, 2, 3)))) == 5


@pytest.mark.parametrize("name", METHODS)
def test_keys_decide_where_the_model_gives_them(name: str) -> None:
    tokens = clip((1, 1, 4)).with_signals(
        vision_keys=torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 1]])
    )
    after = get(name, budget=3)(tokens)
    assert after.source.tolist() == [0, 1, 1, 2]
    half = tokens.to(dtype=torch.bfloat16)
    assert get(name, budget=2)(half).features.dtype == torch.bfloat16


def test_tempme_merges_across_neighbouring_frames_and_not_beyond_a_row() -> None:
    still = torch.randn(1, 2, 2, 6, generator=torch.Generator().manual_seed(4)).repeat(24, 1, 1, 1)
    tokens = VideoTokens.from_grid(still, [float(t) for t in range(24)], 24.0)
    after = get("tempme", budget=32)(tokens)
    assert float((after.span[:, 1] - after.span[:, 0]).max()) > 1.0
    first = after.source.view(24, 4)[:12].unique()
    assert not set(first.tolist()) & set(after.source.view(24, 4)[12:].unique().tolist())
    only = get("tempme", budget=48, inside=1.0)(tokens)
    assert only.per_frame().tolist() == [2] * 24  # all inside the frames
    with pytest.raises(InputError, match="joins"):
        get("tempme", joins="2-1")
    with pytest.raises(InputError, match="inside"):
        get("tempme", inside=1.5)


def test_pyra_starts_as_tome_and_modulates_by_its_formula() -> None:
    torch.manual_seed(5)
    tokens = clip((3, 3, 4), width=8)
    plain = get("tome", budget=14)(tokens)
    for modulation in (None, pyra_module.Modulation(8, 4)):
        after = get("pyra", budget=14, modulation=modulation)(tokens)
        assert close(after.features, plain.features) and torch.equal(after.source, plain.source)

    src, dst, w_a, w_b = (torch.randn(s) for s in ((2, 3, 8), (2, 3, 8), (3, 1), (1, 8)))
    both = src + dst
    both = (both - both.mean(-1, keepdim=True)) / (
        both.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    d_c = 2 / (1 + torch.exp(-(w_a[None] * both).sum(1, keepdim=True)))
    d_t = 2 / (1 + torch.exp(-(both * w_b).sum(-1, keepdim=True))) - 1
    assert close(pyra_module.modulate(src, dst, w_a, w_b), src + src * d_c * d_t)
    assert close(pyra_module.modulate(src, dst, w_a, torch.zeros(1, 8)), src)


def test_pyra_trains_through_the_merge_and_comes_back_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(6)
    tokens = clip((3, 3, 4), width=8)
    modulation = pyra_module.Modulation(8, 5)
    torch.nn.init.normal_(modulation.w_b)
    method = get("pyra", budget=7, modulation=modulation)
    method(tokens).features.square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in modulation.parameters())
    x, r = tokens.features.view(3, 12, 8), 5
    with torch.no_grad():
        alone = pyra_authors.merge(x, x, r, modulation)
        after = get("pyra", budget=21, modulation=modulation)(tokens)
        assert close(alone.x.sum((0, 1)), after.features.sum(0), 1e-4)
    file = tmp_path / "modulation.pt"
    torch.save(modulation.state_dict(), file)
    loaded = get("pyra", budget=7, weights=str(file))(tokens)
    assert torch.equal(loaded.features, method(tokens).features)
    with pytest.raises(InputError, match="width 8"):
        get("pyra", budget=7, weights=str(file))(clip((3, 3, 4)))
    file.write_bytes(b"nothing")
    for options in ({"weights": str(file)}, {"weights": "no-such-file"}, {"modulation": "x"}):
        with pytest.raises(InputError, match="pyra"):
            get("pyra", **options)
