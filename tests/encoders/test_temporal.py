"""Temporal encoders: the chunked form equals its recurrence, and padding changes nothing."""

from __future__ import annotations

import pytest
import torch
from authors.recurrences import ssd_recurrent
from torch import Tensor

from vidllm.encoders.temporal import (
    SSDEncoder,
    TemporalEncoder,
    base,
    chunked,
    get_temporal,
    ssd,
    ssd_chunked,
    temporal_names,
)
from vidllm.encoders.temporal.base import Mixer
from vidllm.encoders.temporal.mamba import Mamba1Mixer
from vidllm.errors import InputError

BOTH = pytest.mark.parametrize("scan", ["raster", "slot"])


def inputs(length: int, groups: int, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    kind = torch.float64
    return {
        "x": torch.randn(2, length, 4, 5, dtype=kind),
        "dt": torch.rand(2, length, 4, dtype=kind),
        "A": -5 * torch.rand(4, dtype=kind),
        "B": torch.randn(2, length, groups, 3, dtype=kind),
        "C": torch.randn(2, length, groups, 3, dtype=kind),
        "D": torch.randn(4, dtype=kind),
        "initial_state": torch.randn(2, 4, 5, 3, dtype=kind),
    }


def encoder(scan: str = "raster", **options: object) -> SSDEncoder:
    torch.manual_seed(0)
    options = {"head_dim": 8, "state": 8, "chunk": 8, "zero_init": False, **options}
    return SSDEncoder(16, scan=scan, **options)  # type: ignore[arg-type]


def times(frames: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, frames, generator=torch.Generator().manual_seed(1)).cumsum(1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
@pytest.mark.parametrize("length", [1, 7, 16, 65, 150])
def test_chunked_equals_the_recurrence(length: int, chunk: int, groups: int) -> None:
    given = inputs(length, groups)
    for state in (given.pop("initial_state"), None):
        slow = ssd_recurrent(**given, initial_state=state)
        fast = ssd_chunked(**given, chunk=chunk, initial_state=state)
        for expected, result in zip(slow, fast, strict=True):
            assert (expected - result).abs().max() < 1e-10


def test_a_sequence_of_many_blocks_equals_the_recurrence() -> None:
    given = {k: v[:1] if v.dim() > 1 else v for k, v in inputs(2048 + 70, 1).items()}
    slow, fast = ssd_recurrent(**given), ssd_chunked(**given, chunk=48)
    for expected, result in zip(slow, fast, strict=True):
        assert (expected - result).abs().max() < 1e-10


@pytest.mark.parametrize("length", [7, 37])
def test_chunked_has_the_gradients_of_the_recurrence(length: int) -> None:
    given = {name: value.requires_grad_() for name, value in inputs(length, 2).items()}
    gradients = []
    for function, options in ((ssd_recurrent, {}), (ssd_chunked, {"chunk": 8})):
        y, state = function(**given, **options)  # type: ignore[operator]
        gradients.append(torch.autograd.grad(y.sin().sum() + state.sin().sum(), [*given.values()]))
    for expected, result in zip(*gradients, strict=True):
        assert (expected - result).abs().max() < 1e-10


def test_a_long_sequence_is_carried_over_many_blocks() -> None:
    given = inputs(300, 1)
    slow, fast = ssd_recurrent(**given), ssd_chunked(**given, chunk=2)  # 150 chunks
    assert (slow[0] - fast[0]).abs().max() < 1e-10 and (slow[1] - fast[1]).abs().max() < 1e-10


def test_the_state_continues_a_sequence() -> None:
    given = inputs(50, 2)
    whole, last = ssd_chunked(**given, chunk=16)
    state = given.pop("initial_state")
    fixed = {name: given.pop(name) for name in ("A", "D")}
    parts = []
    for piece in (slice(0, 21), slice(21, 50)):
        cut = {name: value[:, piece] for name, value in given.items()}
        y, state = ssd_chunked(**cut, **fixed, chunk=16, initial_state=state)
        parts.append(y)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10 and (state - last).abs().max() < 1e-10


def test_large_decays_do_not_overflow() -> None:
    given = inputs(64, 1)
    given["dt"] = given["dt"].mul(1000).requires_grad_()
    y, _ = ssd_chunked(**given, chunk=32)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(given["dt"].grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", temporal_names())
def test_every_encoder_starts_as_the_identity_and_keeps_the_shape(name: str) -> None:
    model = get_temporal(name, 64)
    assert isinstance(model, TemporalEncoder)
    x = torch.randn(2, 5, 3, 64)
    assert torch.equal(model(x, times(5)), x)


@BOTH
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("time", ["step", "none"])
def test_padding_never_changes_valid_frames(scan: str, bidirectional: bool, time: str) -> None:
    model = encoder(scan, layers=2, bidirectional=bidirectional, time=time)
    x, seconds = torch.randn(2, 12, 3, 16), times(12)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 0:7] = True  # padded behind
    mask[1, 5:12] = True  # padded before
    full = model(x, seconds, mask)
    for row in range(2):
        real = mask[row]
        alone = model(x[row : row + 1, real], seconds[row : row + 1, real])
        assert torch.allclose(full[row, real], alone[0], atol=1e-5)
    x[~mask] = float("nan")
    assert torch.equal(model(x, seconds, mask)[mask], full[mask])


@BOTH
def test_one_direction_never_sees_the_future_and_two_do(scan: str) -> None:
    x, seconds = torch.randn(1, 8, 3, 16), times(8, 1)
    changed = x.clone()
    changed[:, 5:] *= -1
    causal, both = encoder(scan, bidirectional=False), encoder(scan)
    before = (causal(x, seconds) - causal(changed, seconds))[:, :5].abs().max()
    assert before < 1e-6
    assert (both(x, seconds) - both(changed, seconds))[:, :5].abs().max() > 1e-4


@BOTH
def test_both_directions_are_the_same_kind_of_scan(scan: str) -> None:
    """With equal parameters for both directions a reversed clip gives the reversed result."""
    model = encoder(scan)
    with torch.no_grad():
        for mixer in model.mixers:
            heads, mixed = mixer.heads, mixer.mixed
            for own in (mixer.A_log, mixer.D, mixer.dt_bias):
                own[heads:] = own[:heads]
            mixer.conv_weight[:, mixed:] = mixer.conv_weight[:, :mixed]
            mixer.conv_bias[mixed:] = mixer.conv_bias[:mixed]
            steps = mixer.in_proj.weight[-2 * heads :]
            steps[heads:] = steps[:heads]
    x = torch.randn(1, 6, 3, 16)
    forwards = model(x, times(6, 1))
    backwards = model(x.flip(1, 2), times(6, 1)).flip(1, 2)
    assert torch.allclose(forwards, backwards, atol=1e-5)


def test_slots_do_not_mix_in_space_and_raster_does() -> None:
    x, seconds = torch.randn(1, 6, 4, 16), times(6, 1)
    changed = x.clone()
    changed[:, :, 2] *= -1
    for scan, mixes in (("slot", False), ("raster", True)):
        moved = (encoder(scan)(x, seconds) - encoder(scan)(changed, seconds))[:, :, [0, 1, 3]]
        assert bool(moved.abs().max() > 1e-6) == mixes


@BOTH
def test_the_chunk_length_is_only_speed(scan: str) -> None:
    x, seconds = torch.randn(2, 11, 3, 16), times(11)
    results = [encoder(scan, chunk=chunk)(x, seconds) for chunk in (3, 8, 64)]
    assert all(torch.allclose(results[0], other, atol=1e-5) for other in results[1:])


def test_time_in_the_step_sees_gaps_and_not_the_unit_of_time() -> None:
    model = encoder(time="step")
    x, even = torch.randn(1, 6, 3, 16), torch.arange(6.0)[None]
    uneven = torch.tensor([[0.0, 1, 2, 10, 11, 12]])
    assert torch.allclose(model(x, even), encoder()(x, even), atol=1e-6)
    assert (model(x, even) - model(x, uneven)).abs().max() > 1e-5
    assert torch.allclose(model(x, uneven), model(x, 60 * uneven + 5), atol=1e-5)
    same = torch.zeros(1, 6)  # no gap at all: as if even
    assert torch.allclose(model(x, same), model(x, even), atol=1e-6)


@BOTH
def test_bf16_autocast_trains_with_finite_gradients_near_the_exact_result(scan: str) -> None:
    model = encoder(scan, layers=2, time="step")
    x, seconds = torch.randn(2, 40, 3, 16), times(40)
    exact = model(x, seconds)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, seconds)
        rough.float().square().mean().backward()
    assert rough.dtype == torch.float32 and (exact - rough).abs().max() < 0.1
    for name, weight in model.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name
    whole = model.to(torch.bfloat16)(x.bfloat16(), seconds)
    assert whole.dtype == torch.bfloat16 and torch.isfinite(whole).all()


def test_its_own_initialisation_can_be_restored() -> None:
    model = encoder(zero_init=True)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    model.reset_parameters()
    mixer = model.mixers[0]
    assert torch.equal(mixer.out_proj.weight, torch.zeros(16, 32))
    assert bool((mixer.D == 1).all())
    assert bool(((mixer.A_log >= 0) & (mixer.A_log <= 2.7726)).all())
    step = torch.nn.functional.softplus(mixer.dt_bias)
    assert bool(((step > 0.99e-3) & (step < 1.01e-1)).all())
    for own in (mixer.A_log, mixer.D, mixer.dt_bias):
        assert own._no_weight_decay is True


def test_what_does_not_fit_is_refused() -> None:
    for options, message in (
        ({"head_dim": 7}, "must divide"),
        ({"scan": "spiral"}, "raster"),
        ({"state": 0, "head_dim": 16}, "at least 1"),
        ({"chunks": 3}, "chunk"),
    ):
        with pytest.raises(InputError, match=message):
            get_temporal("ssd", 16, **options)
    with pytest.raises(InputError, match="did you mean ssd"):
        get_temporal("sdd", 16)
    model = encoder()
    with pytest.raises(InputError, match="B, T, N, D"):
        model(torch.zeros(2, 3, 16), torch.zeros(2, 3))
    with pytest.raises(InputError, match="seconds"):
        model(torch.zeros(2, 3, 1, 16), torch.zeros(2, 4))
    with pytest.raises(InputError, match="mask"):
        model(torch.zeros(2, 3, 1, 16), torch.zeros(2, 3), torch.ones(2, 3))
    given = inputs(5, 1)
    with pytest.raises(InputError, match="dt must be"):
        ssd_chunked(**{**given, "dt": given["dt"][:, :3]})
    with pytest.raises(InputError, match="groups"):
        ssd_chunked(**{**given, "B": given["B"].repeat(1, 1, 3, 1)})
    with pytest.raises(InputError, match="chunk"):
        ssd_chunked(**given, chunk=0)


@pytest.mark.parametrize("time", ["none", "step"])
def test_a_long_causal_clip_in_blocks_equals_the_stream_and_pads(time: str) -> None:
    model = encoder("raster", bidirectional=False, time=time, gap=0.4)
    x, seconds = torch.randn(1, 1100, 2, 16), times(1100, 1)  # 2200 tokens: more than a block
    whole = model(x, seconds)
    parts, state = [], None
    for chunk, at in zip(x.split(300, 1), seconds.split(300, 1), strict=True):
        out, state = model.stream(chunk, at, state)
        parts.append(out)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-4
    mask = torch.zeros(1, 1103, dtype=torch.bool)
    mask[:, 3:] = True
    padded = torch.cat([torch.full((1, 3, 2, 16), 9.0), x], 1)
    out = model(padded, torch.cat([torch.zeros(1, 3), seconds], 1), mask)
    assert (out[:, 3:] - whole).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["ssd", "mamba"])
@pytest.mark.parametrize("scale", [None, 2])
def test_both_ways_in_blocks_are_the_whole_at_once(
    monkeypatch: pytest.MonkeyPatch, scale: int | None, kind: str
) -> None:
    """Under autograd a sequence runs whole, without it in blocks: the outputs are the same."""
    torch.manual_seed(0)
    mixer: Mixer = ssd.SSDMixer(16, 4, 8, 2, 4, 3, True, False)
    if kind == "mamba":
        mixer = Mamba1Mixer(16, 4, bidirectional=True, zero_init=False)
    mixer = mixer.double()
    x, valid = torch.randn(2, 23, 16).double(), torch.ones(2, 23, dtype=torch.bool)
    valid[0, :6], valid[1, 17:] = False, False
    told = None if scale is None else torch.rand(2, 23, scale)
    whole = mixer(x, valid, told)[0]
    monkeypatch.setattr(base, "_BLOCK", 5)
    with torch.no_grad():
        assert (mixer(x, valid, told)[0] - whole).abs().max() < 1e-12


@pytest.mark.parametrize("size", [1, 1 << 6, 1 << 20])
@pytest.mark.parametrize("started", [False, True])
def test_the_scans_gradients_do_not_depend_on_its_blocks(
    monkeypatch: pytest.MonkeyPatch, size: int, started: bool
) -> None:
    monkeypatch.setattr(chunked, "_BLOCK_SIZE", (size, size))
    torch.manual_seed(0)
    x, b, c = torch.randn(2, 7, 4, 2), torch.randn(2, 7, 2, 3), torch.randn(2, 7, 2, 3)
    dt, rates, skip = torch.rand(2, 7, 4), -torch.rand(4), torch.randn(4)
    given = [v.double().requires_grad_() for v in (x, dt, rates, b, c, skip)]
    state = torch.randn(2, 4, 2, 3).double().requires_grad_() if started else None

    def scan(*v: Tensor) -> tuple[Tensor, Tensor]:
        return ssd_chunked(*v[:5], 3, D=v[5], initial_state=v[6] if started else None)

    inputs = (*given, state) if state is not None else tuple(given)
    assert torch.autograd.gradcheck(scan, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *v: scan(*v)[0], inputs, fast_mode=True)
