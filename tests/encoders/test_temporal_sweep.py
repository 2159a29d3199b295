"""What every registered temporal encoder promises, one test a promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from vidllm.encoders.temporal import TemporalEncoder, get_temporal, temporal_names
from vidllm.encoders.temporal.registry import state_bytes, tensors_in
from vidllm.errors import InputError

DIM, FRAMES, SLOTS = 16, 12, 4
#: Sizes that fit the small width, where an encoder's own would not.
SMALL: dict[str, dict[str, Any]] = {
    "aaren": {"head_dim": 8, "ffn": 2, "chunk": 4},
    "attention": {"head_dim": 8, "ffn": 2, "window": 3},
    "h3": {"state": 8, "block": 4},
    "lmu": {"memory": 6, "theta": 5.0, "heads": 3, "block": 4},
    "lssl": {"state": 8, "channels": 2, "block": 4},
    "mamba": {"state": 4},
    "mambamixer": {"slots": 4, "state": 4, "layers": 2},
    "s-mamba": {"state": 4},
    "ssd": {"head_dim": 8, "state": 8, "chunk": 4},
    "storm": {"sizes": {"head_dim": 8, "state": 8, "chunk": 4}},
}
NAMES = temporal_names()
SCANS = [n for n in NAMES if n not in ("identity",)]


def build(name: str, **options: Any) -> TemporalEncoder:
    torch.manual_seed(0)
    encoder = get_temporal(name, DIM, **{**SMALL.get(name, {}), **options})
    return encoder.eval()


def takes(name: str, option: str) -> bool:
    try:
        get_temporal(name, DIM, **SMALL.get(name, {}), **{option: None})
    except InputError as error:
        return "no option" not in str(error)
    except Exception:
        return True
    return True


def causal_options(name: str) -> dict[str, Any]:
    """What makes an encoder read forwards only."""
    return {"bidirectional": False} if takes(name, "bidirectional") else {}


def clip(batch: int = 2, frames: int = FRAMES, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, frames, SLOTS, DIM, generator=draw)
    return x, torch.rand(batch, frames, generator=draw).cumsum(1)


def awake(encoder: TemporalEncoder) -> TemporalEncoder:
    """With weights that do something: no zeros left from the initialisation."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in encoder.parameters():
            if not p.any():
                p.normal_(std=0.2)
    return encoder


@pytest.mark.parametrize("name", NAMES)
def test_shape_stays_and_the_start_is_the_identity(name: str) -> None:
    x, seconds = clip()
    encoder = build(name)
    out = encoder(x, seconds)
    assert out.shape == x.shape
    assert torch.equal(out, x)
    if name != "identity":
        assert not torch.allclose(awake(encoder)(x, seconds), x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": False}, {"time": "step"}])
def test_padding_never_changes_valid_outputs(name: str, side: str, options: dict[str, Any]) -> None:
    try:
        encoder = awake(build(name, **options))
    except InputError:
        return  # no such option here: said by `test_options_that_do_not_exist_are_refused`
    x, seconds = clip(frames=7)
    alone = encoder(x, seconds)
    pad = torch.full((2, 5, SLOTS, DIM), 1e3)
    times = torch.full((2, 5), 99.0)
    at = slice(5, None) if side == "left" else slice(0, 7)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, at] = True
    order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
    padded = torch.cat(order(x, pad), 1)
    out = encoder(padded, torch.cat(order(seconds, times), 1), mask)
    assert (out[:, at] - alone).abs().max() < 1e-5
    assert torch.equal(out[~mask], padded[~mask])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scan", ["slot", "raster"])
@pytest.mark.parametrize("time", [{}, {"time": "step", "gap": 0.5}, {"time": "embedding"}])
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [2, 3, 1, 6]])
def test_a_stream_in_chunks_equals_the_whole_clip(
    name: str, scan: str, time: dict[str, Any], sizes: list[int]
) -> None:
    options = {**causal_options(name), **time}
    if takes(name, "scan"):
        options["scan"] = scan
    try:
        encoder = awake(build(name, **options))
    except InputError:
        return
    x, seconds = clip()
    if not encoder.streams:
        with pytest.raises(InputError, match="cannot stream"):
            encoder.stream(x, seconds)
        return
    whole, state, parts = encoder(x, seconds), None, []
    for chunk, times in zip(x.split(sizes, 1), seconds.split(sizes, 1), strict=True):
        out, state = encoder.stream(chunk, times, state)
        parts.append(out)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5
    assert encoder.causal


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_a_stream_does_not_grow(name: str) -> None:
    encoder = build(name, **causal_options(name))
    if not encoder.streams:
        assert state_bytes(encoder, DIM, SLOTS) is None
        return
    sizes, state = set(), None
    x, seconds = clip(1, 64)
    for i, (chunk, times) in enumerate(zip(x.split(4, 1), seconds.split(4, 1), strict=True)):
        _, state = encoder.stream(chunk, times, state)
        if i >= 12:  # a window fills up first
            sizes.add(sum(t.numel() for t in tensors_in(state)))
    assert len(sizes) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_causal_encoder_does_not_see_the_future(name: str) -> None:
    encoder = awake(build(name, **causal_options(name)))
    if not encoder.causal:
        return
    x, seconds = clip()
    later = x.clone()
    later[:, 8:] += 1
    before, after = encoder(x, seconds), encoder(later, seconds)
    assert (before - after)[:, :8].abs().max() < 1e-6


@pytest.mark.parametrize("name", SCANS)
def test_gradients_are_finite_in_bfloat16(name: str) -> None:
    encoder = awake(build(name)).to(torch.bfloat16).train()
    x, seconds = clip()
    x = x.to(torch.bfloat16).requires_grad_()
    encoder(x, seconds).float().square().mean().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    grads = [p.grad for p in encoder.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("name", SCANS)
def test_weights_round_trip_and_reset(name: str) -> None:
    encoder, other = awake(build(name)), build(name)
    x, seconds = clip()
    other.load_state_dict(load(save(encoder.state_dict())))
    assert torch.equal(other(x, seconds), encoder(x, seconds))
    encoder.reset_parameters()
    assert torch.equal(encoder(x, seconds), x)


@pytest.mark.parametrize("name", SCANS)
def test_one_frame_one_slot_and_double_precision(name: str) -> None:
    encoder = awake(build(name)).double()
    x = torch.randn(1, 1, 1, DIM, dtype=torch.float64)
    assert encoder(x, torch.zeros(1, 1)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_options_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="no option 'bidirectonal'"):
        get_temporal(name, DIM, bidirectonal=True)
    assert get_temporal(name, DIM, **SMALL.get(name, {})).summary
