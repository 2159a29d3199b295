"""Blocked arithmetic against the plain one, and how much memory the methods take."""

from __future__ import annotations

import pytest
import torch
from allocations import peak_bytes
from hard_clips import KINDS, hard_clips
from torch import Tensor

from vidllm.compressors import find, get, names
from vidllm.compressors.shared import kernels
from vidllm.compressors.shared.segments import before_in_cell, unit
from vidllm.tokens import Merge, VideoTokens, apply_rows
from vidllm.tokens.video_tokens import finite, take

#: More rows than a block of any width here holds.
CLIPS = dict(hard_clips(frames=6, side=7, width=640))


@pytest.mark.parametrize("name", CLIPS)
def test_blocks_give_what_whole_tensors_give(name: str) -> None:
    tokens = CLIPS[name]
    x, before = tokens.features.float(), before_in_cell(tokens)
    later = torch.nonzero(before >= 0).flatten()
    left, right = x[later], x[before[later]]
    cosine = torch.cosine_similarity(left, right, dim=1, eps=1e-8)
    assert torch.equal(kernels.row_cosine(tokens.features, later, before[later]), cosine)
    distance = kernels.row_distance(tokens.features, later, before[later])
    assert torch.equal(distance, (left - right).norm(dim=1))
    assert torch.equal(unit(tokens.features), x / x.norm(dim=1, keepdim=True).clamp(min=1e-38))
    exact = x.double().var(dim=0, unbiased=False)
    assert torch.allclose(kernels.variance(tokens.features), exact, rtol=1e-4, atol=1e-9)
    assert torch.equal(kernels.mean(tokens.features, later), left.mean(0))
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for index in (some, some.sort().values, later, later[:1], later[:0]):
        assert torch.equal(take(tokens.features, index), tokens.features[index])
        blocks = list(kernels.blocks(tokens.features, index, 5))
        assert sum(len(rows) for _, rows in blocks) == len(index)
        assert all(torch.equal(rows, tokens.features[index[where]]) for where, rows in blocks)


def _distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("name", CLIPS)
def test_equal_tokens_are_at_no_distance_and_others_where_they_are(name: str) -> None:
    x = CLIPS[name].features[:49]
    found, exact = kernels.distances(x), _distances(x.double())
    assert torch.equal(found, found.T)
    assert not found[exact == 0].any()
    centred = x.double() - x.double().mean(0)
    length = float(centred.norm(dim=1).max())
    assert torch.allclose(found.double(), exact, rtol=1e-3, atol=3e-3 * length + 1e-9)


@pytest.mark.parametrize("weighting", ["mean", "size"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_in_blocks_is_the_mean_of_every_slot(dtype: torch.dtype, weighting: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 600, 640, generator=draw).to(dtype)
    target = torch.randint(-1, 40, (600,), generator=draw)
    target[:40], target[40:420] = torch.arange(40), 7  # a slot of several blocks
    target[target == 3] = -1
    target[3] = 3  # and one that is a token by itself
    size = torch.randint(1, 5, (600,), generator=draw).float()
    merge = Merge(target, torch.arange(40), weighting)  # type: ignore[arg-type]
    found = apply_rows(x, merge, size)
    near = 1e-6 if dtype is torch.float32 else 1e-2
    weight = size if weighting == "size" else torch.ones(600)
    for slot in range(40):
        own = (target == slot).nonzero().flatten()
        share = (weight[own] / weight[own].sum())[:, None]
        mean = (x[:, own].float() * share).sum(1)
        assert torch.allclose(found[:, slot].float(), mean, atol=near)
    assert torch.equal(found[:, 3], x[:, 3])
    made = apply_rows(x.requires_grad_(), merge, size)
    assert made.requires_grad and torch.allclose(made, found, atol=1e-6)


def test_nan_and_infinity_are_seen_anywhere() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.zeros(9, 33, dtype=dtype)
            assert finite(x) and finite(x[:, :0])
            x[8, 32] = bad
            assert not finite(x)


#: They hold what their arithmetic is made of: distances of all tokens, and trained parts.
LARGER = {"divprune", *(n for n in names() if find(n).has_parameters)}


@pytest.mark.parametrize("name", [n for n in names() if n not in LARGER and n != "none"])
@pytest.mark.parametrize(("dtype", "keep"), [(torch.float32, 0.25), (torch.bfloat16, 0.1)])
def test_a_method_takes_a_quarter_of_its_input_beyond_its_output(
    name: str, dtype: torch.dtype, keep: float
) -> None:
    """Counted, not timed: every allocation of torch while it runs."""
    draw = torch.Generator().manual_seed(0)
    still, new = (torch.randn(n, 8, 8, 3584, generator=draw) for n in (4, 48))
    features = KINDS["moving"](still, new).to(dtype)
    tokens = VideoTokens.from_grid(features, list(range(48)), 48.0)
    signals = {
        "cls_attention": torch.rand(len(tokens), generator=draw),
        "vision_keys": torch.randn(len(tokens), 64, generator=draw),
        "decoder_attention": torch.rand(len(tokens), generator=draw),
        "decoder_text_attention": torch.rand(len(tokens), 4, generator=draw),
        "decoder_keys": torch.randn(len(tokens), 64, generator=draw),
        "prefill_survivors": torch.rand(len(tokens), generator=draw).round(),
        "decoder_importance": torch.rand(len(tokens), generator=draw),
    }
    needed = {need.replace("-", "_") for need in (*find(name).needs, *find(name).uses)}
    tokens = tokens.with_signals(**{k: v for k, v in signals.items() if k in needed})
    query = torch.randn(6, 3584, generator=draw)
    whole = features.numel() * features.element_size()
    method = get(name, keep=keep)
    with torch.inference_mode():
        most, after = peak_bytes(lambda: method(tokens, query=query))
    made = after.features.numel() * after.features.element_size()
    assert most - made <= whole / 4, f"{name}: {(most - made) / whole:.2f}"


@pytest.mark.parametrize("name", [n for n in names() if n not in ("none", "mustdrop-cache")])
def test_gradients_pass_and_change_no_choice(name: str) -> None:
    tokens = dict(hard_clips())["moving, torch.float32, thinned"]
    query = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    features = tokens.features.clone().requires_grad_()
    given = {key: plane.clone().requires_grad_() for key, plane in tokens.signals.items()}
    learning = tokens.with_features(features * 1).with_signals(**given)
    made = get(name, keep=0.3)(learning, query=query)
    made.features.square().sum().backward()
    with torch.no_grad():
        plain = get(name, keep=0.3)(tokens, query=query)
    assert features.grad is not None and bool(features.grad.any())
    assert torch.equal(made.source, plain.source)
    assert torch.allclose(made.features, plain.features, atol=1e-5)
