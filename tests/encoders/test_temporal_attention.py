"""Aaren's prefix scan and attention over time, each against its equation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from authors.recurrences import prefix_attention_recurrent
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vidllm.encoders.temporal import TemporalEncoder, band, get_temporal, prefix_attention
from vidllm.encoders.temporal.band import band_attention, full_attention, rotate
from vidllm.encoders.temporal.registry import state_bytes, tensors_in
from vidllm.errors import InputError

DIM, SLOTS = 16, 3


def encoder(name: str, **options: Any) -> TemporalEncoder:
    torch.manual_seed(0)
    return get_temporal(name, DIM, zero_init=False, **{"head_dim": 8, **options})


def clip(frames: int, batch: int = 2, slots: int = SLOTS) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(frames)
    x = torch.randn(batch, frames, slots, DIM, generator=draw)
    return x, torch.rand(batch, frames, generator=draw).cumsum(1)


def row(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2, 3, length, dtype=torch.float64, generator=draw)
    return scores, torch.randn(2, 3, length, 5, dtype=torch.float64, generator=draw)


def softmax_over_prefixes(scores: Tensor, values: Tensor) -> Tensor:
    """Written down as the paper defines it: one softmax for every prefix."""
    ends = range(1, scores.shape[-1] + 1)
    each = [(scores[..., :t, None].softmax(2) * values[:, :, :t]).sum(2) for t in ends]
    return torch.stack(each, 2)


# ---------------------------------------------------------------------------------------- Aaren


@pytest.mark.parametrize("chunk", [2, 7, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 150])
def test_the_prefix_scan_is_softmax_attention_over_every_prefix(length: int, chunk: int) -> None:
    given = row(length)
    expected = softmax_over_prefixes(*given)
    for result in (prefix_attention(*given, chunk)[0], prefix_attention_recurrent(*given)[0]):
        assert (result - expected).abs().max() < 1e-10


def test_the_prefix_scan_has_the_gradients_of_softmax_attention() -> None:
    given = [t.requires_grad_() for t in row(37)]
    expected = torch.autograd.grad(softmax_over_prefixes(*given).sin().sum(), given)
    result = torch.autograd.grad(prefix_attention(*given, 4)[0].sin().sum(), given)
    for a, b in zip(expected, result, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_the_prefix_state_continues_a_row_and_has_a_constant_size() -> None:
    scores, values = row(50)
    whole, last = prefix_attention(scores, values, 8)
    slow = prefix_attention_recurrent(scores, values)[1]
    state, parts, sizes = None, [], set()
    for piece in (slice(0, 1), slice(1, 30), slice(30, 50)):
        mean, state = prefix_attention(scores[:, :, piece], values[:, :, piece], 8, state)
        parts.append(mean)
        sizes.add(tuple(t.shape for t in state))
    assert (torch.cat(parts, 2) - whole).abs().max() < 1e-10
    assert sizes == {((2, 3), (2, 3), (2, 3, 5))}  # maximum, denominator, numerator
    assert state is not None
    for a, b, c in zip(state, last, slow, strict=True):
        assert (a - b).abs().max() < 1e-10 and (a - c).abs().max() < 1e-10


def test_the_prefix_scan_is_safe_with_scores_of_any_size() -> None:
    _, values = row(130)
    ramp = torch.linspace(-5e4, 5e4, 130, dtype=torch.float64).expand(2, 3, -1)
    for scores in (ramp, -ramp, ramp.abs(), 1e4 * row(130)[0]):
        expected = softmax_over_prefixes(scores, values)
        assert (prefix_attention(scores, values, 8)[0] - expected).abs().max() < 1e-10
    exact = scores.float().requires_grad_()
    mean, _ = prefix_attention(exact, values.float(), 8)
    (gradient,) = torch.autograd.grad(mean.sum(), exact)
    assert mean.isfinite().all() and gradient.isfinite().all()


def test_tokens_without_weight_do_not_count() -> None:
    scores, values = row(20)
    scores[:, :, :6] = -math.inf
    scores[:, :, 11:14] = -math.inf
    scores.requires_grad_()
    mean, _ = prefix_attention(scores, values, 4)
    keep = [6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 19]
    expected = softmax_over_prefixes(scores[:, :, keep], values[:, :, keep])
    assert (mean[:, :, keep] - expected).abs().max() < 1e-10
    assert not mean[:, :, :6].any()  # nothing seen yet
    (gradient,) = torch.autograd.grad(mean.sum(), scores)
    assert gradient.isfinite().all()


def test_a_long_stream_goes_on_counting() -> None:
    """A float32 count of 2^24 swallows the next token; the state must not."""
    one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1)
    _, state = prefix_attention(*one)
    state = (state[0], state[1] * 2.0**24, state[2] * 2.0**24)
    for _ in range(3):
        _, state = prefix_attention(*one, state=state)
    assert float(state[1]) == 2.0**24 + 3


def test_aaren_layer_is_the_learned_query_over_projected_keys() -> None:
    model = encoder("aaren", ffn=0, bidirectional=False).double()
    mixer: Any = model.mixers[0]  # type: ignore[attr-defined]
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    heads = [layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (mixer.key, mixer.value)]
    scores = (heads[0] * mixer.query[:, None]).sum(-1) / math.sqrt(8)
    mean = softmax_over_prefixes(scores, heads[1]).transpose(1, 2).flatten(2)
    assert (mixer(x)[0] - mixer.out_proj(mean)).abs().max() < 1e-10
    doubled, _ = mixer(x, scale=torch.full((2, 9, 1), 2.0))  # all counting twice: the same mean
    assert (doubled - mixer(x)[0]).abs().max() < 1e-10


# ------------------------------------------------------------------------------------ attention


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """(B, H, T, n, d) by one softmax over all tokens; allowed (B, T, T) says what a frame sees."""
    n = q.shape[3]
    flat = [t.flatten(2, 3) for t in (q, k, v)]
    mask = allowed.repeat_interleave(n, 1).repeat_interleave(n, 2)[:, None]
    scores = flat[0] @ flat[1].transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ flat[2]).view_as(q)


@pytest.mark.parametrize("window", [1, 2, 9, 100, None])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (70, 1), (20, 12)])
def test_full_and_band_attention_equal_one_masked_softmax(
    shape: tuple[int, int], causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(band, "_FULL_QUERIES", 50)  # so that these sizes make several blocks
    frames, n = shape
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, frames, n, 4, dtype=torch.float64).unbind(0)
    at = torch.arange(frames)
    reach = at[:, None] - at
    near = reach.abs() < (window or frames)
    near = near & (reach >= 0) if causal else near
    first, last = min(2, frames - 1), max(1, frames - 2)
    valid = torch.stack([at >= first, at < last])
    for real in (None, valid):
        allowed = near.expand(2, -1, -1)
        if real is not None:
            allowed = allowed & (real[:, None] | (reach == 0))
        expected = reference(q, k, v, allowed)
        if window is None:
            result = full_attention(q, k, v, causal=causal, valid=real)
        else:
            result = band_attention(q, k, v, window, causal=causal, valid=real)
        wrong = (result - expected).abs().amax((1, 3, 4))
        assert (wrong if real is None else wrong[real]).max() < 1e-10


class Largest(TorchFunctionMode):
    """Keeps the size of the largest tensor that any operation gives back."""

    numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tensors_in(out))])
        return out


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("scan", ["slot", "raster"])
def test_a_window_costs_memory_linear_in_the_frames(scan: str, bidirectional: bool) -> None:
    model = encoder("attention", window=8, scan=scan, bidirectional=bidirectional)
    sizes = []
    for frames in (256, 512):
        x, seconds = clip(frames, 1, 2)
        with torch.no_grad(), Largest() as largest:
            model(x, seconds)
        sizes.append(largest.numbers)
    assert sizes[1] <= 2.05 * sizes[0]
    assert sizes[1] < 512**2 / 2  # and far from all pairs


def test_positions_tell_a_clip_from_the_reversed_one() -> None:
    x, seconds = clip(8)
    for position, sees in (("rotary", True), ("none", False)):
        model = encoder("attention", position=position)
        forwards, backwards = model(x, seconds), model(x.flip(1), seconds).flip(1)
        assert bool((forwards - backwards).abs().max() > 1e-3) == sees


def test_rotary_products_depend_on_distance_alone_even_a_day_later() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 1, 8).unbind(0)

    def product(a: float, b: float) -> Tensor:
        return (rotate(q, torch.tensor([[a]])) * rotate(k, torch.tensor([[b]]))).sum()

    assert torch.allclose(product(3, 5), product(86403, 86405), atol=1e-5)
    assert not torch.allclose(product(3, 5), product(3, 6), atol=1e-3)


def test_attention_sees_true_seconds_on_request() -> None:
    x, _ = clip(6, 1)
    even, uneven = torch.arange(6.0)[None], torch.tensor([[0.0, 1, 2, 8, 9, 10]])
    plain, step = encoder("attention"), encoder("attention", time="step")
    assert torch.equal(plain(x, even), plain(x, uneven))
    assert torch.allclose(step(x, even), plain(x, even), atol=1e-6)
    assert (step(x, even) - step(x, uneven)).abs().max() > 1e-4
    assert torch.allclose(step(x, uneven), step(x, 60 * uneven + 5), atol=1e-5)
    told = encoder("attention", time="embedding")
    assert (told(x, even) - told(x, uneven)).abs().max() > 1e-4


def test_only_a_window_lets_causal_attention_stream() -> None:
    x, seconds = clip(4)
    full = encoder("attention", bidirectional=False)
    assert full.causal and not full.streams and state_bytes(full, DIM) is None
    with pytest.raises(InputError, match="window=FRAMES"):
        full.stream(x, seconds)
    with pytest.raises(InputError, match="bidirectional=False"):
        encoder("attention", window=4).stream(x, seconds)
    model = encoder("attention", window=4, bidirectional=False)
    at, keys = 8, 2 * 3 * DIM * 4 * SLOTS  # keys and values of three frames in float32
    seen = 8  # and the seconds of the last frame
    assert state_bytes(model, DIM, SLOTS) == at + keys + seen


@pytest.mark.parametrize("window", [1, 5])
def test_a_window_streams_in_chunks_shorter_and_longer_than_itself(window: int) -> None:
    model = encoder("attention", layers=2, window=window, bidirectional=False, scan="raster")
    x, seconds = clip(40)
    sizes, state, parts = [1, 2, 30, 7], None, []
    for chunk, times in zip(x.split(sizes, 1), seconds.split(sizes, 1), strict=True):
        out, state = model.stream(chunk, times, state)
        parts.append(out)
    assert (torch.cat(parts, 1) - model(x, seconds)).abs().max() < 1e-5


# ----------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("scan", ["slot", "raster"])
def test_nan_in_padding_and_clips_of_padding_alone_do_no_harm(
    scan: str, bidirectional: bool
) -> None:
    kinds: list[tuple[str, dict[str, Any]]]
    kinds = [("attention", {"window": 3}), ("attention", {}), ("aaren", {})]
    for name, options in kinds:
        model = encoder(name, scan=scan, bidirectional=bidirectional, **options)
        x, seconds = clip(9, 3)
        mask = torch.zeros(3, 9, dtype=torch.bool)
        mask[0, :5] = mask[1, 5:] = True  # the third clip has no frame at all
        clean = model(x, seconds, mask)
        x = x.masked_fill(~mask[..., None, None], math.nan)
        out = model(x, seconds, mask)
        assert torch.equal(out[mask], clean[mask])
        clean[mask].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aaren", {"head_dim": 7}, "must divide"),
        ("aaren", {"chunk": 1}, "at least 2"),
        ("aaren", {"layers": 0}, "at least 1"),
        ("attention", {"head_dim": 5}, "even|divide"),
        ("attention", {"window": 0}, "at least 1 frame"),
        ("attention", {"ffn": -1}, "ffn"),
        ("attention", {"position": "learned"}, "rotary"),
        ("attention", {"position": "none", "time": "step"}, "embedding"),
        ("attention", {"scan": "spiral"}, "raster"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(name, **options)


def test_shapes_that_do_not_fit_the_prefix_scan_are_refused() -> None:
    scores, values = row(4)
    with pytest.raises(InputError, match="chunk"):
        prefix_attention(scores, values, 1)
    with pytest.raises(InputError, match="B, H, L"):
        prefix_attention(scores[:, :, :2], values)
    with pytest.raises(InputError, match="L > 0"):
        prefix_attention(scores[:, :, :0], values[:, :, :0])
