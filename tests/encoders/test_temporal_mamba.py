"""Mamba-1, S-Mamba and MambaMixer: exact against recurrence, transformers and their equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from authors.mamba import load_mamba, load_mamba2
from authors.recurrences import selective_recurrent
from torch import Tensor
from torch.nn import functional as F

from vidllm.encoders.temporal import get_temporal, selective_scan
from vidllm.encoders.temporal import selective as selective_module
from vidllm.encoders.temporal.mamba import Mamba1Mixer, MambaEncoder
from vidllm.encoders.temporal.selective import kernel_serves
from vidllm.encoders.temporal.ssd import SSDMixer
from vidllm.errors import InputError

SIZES = [(None, None), (1, 1), (8, 1), (8, 3), (32, 5), (200, 14)]


def inputs(length: int, groups: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    inner, state = 6, 3
    kind = torch.float64
    return {
        "x": torch.randn(2, length, inner, dtype=kind),
        "dt": torch.rand(2, length, inner, dtype=kind),
        "A": -5 * torch.rand(inner, state, dtype=kind),
        "B": torch.randn(2, length, groups, state, dtype=kind),
        "C": torch.randn(2, length, groups, state, dtype=kind),
        "D": torch.randn(inner, dtype=kind),
        "initial_state": torch.randn(2, inner, state, dtype=kind),
    }


def awake(model: torch.nn.Module, std: float = 0.2) -> Any:
    """With random weights everywhere, also where the initialisation has zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=std)
    return model.eval()


def times(frames: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, frames, generator=torch.Generator().manual_seed(1)).cumsum(1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("block", "lanes"), SIZES)
@pytest.mark.parametrize("length", [1, 7, 64, 131])
def test_blocks_equal_the_recurrence(
    length: int, block: int | None, lanes: int | None, groups: int
) -> None:
    given = inputs(length, groups)
    for state in (given.pop("initial_state"), None):
        slow = selective_recurrent(**given, initial_state=state)
        fast = selective_scan(**given, initial_state=state, block=block, lanes=lanes)
        for expected, result in zip(slow, fast, strict=True):
            assert (expected - result).abs().max() < 1e-10


@pytest.mark.parametrize(("block", "lanes"), SIZES)
def test_blocks_have_the_gradients_of_the_recurrence(block: int | None, lanes: int | None) -> None:
    given = {name: value.requires_grad_() for name, value in inputs(37, 2).items()}

    def gradients(function: Callable[..., tuple[Tensor, Tensor]], **options: Any) -> Any:
        y, state = function(**given, **options)
        return torch.autograd.grad(y.sin().sum() + state.sin().sum(), [*given.values()])

    slow = gradients(selective_recurrent)
    for expected, result in zip(
        slow, gradients(selective_scan, block=block, lanes=lanes), strict=True
    ):
        assert (expected - result).abs().max() < 1e-10


def test_a_gradient_that_is_asked_for_alone_is_the_same() -> None:
    given = {name: value.requires_grad_() for name, value in inputs(9, 1).items()}
    alone = {**inputs(9, 1), "A": given["A"]}
    whole, part = (selective_scan(**v)[0].sum() for v in (given, alone))
    assert torch.allclose(*(torch.autograd.grad(y, given["A"])[0] for y in (whole, part)))


def test_the_state_continues_a_sequence() -> None:
    given = inputs(50, 2)
    whole, last = selective_scan(**given)
    state, fixed = given.pop("initial_state"), {name: given.pop(name) for name in ("A", "D")}
    parts = []
    for piece in (slice(0, 21), slice(21, 22), slice(22, 50)):
        cut = {name: value[:, piece] for name, value in given.items()}
        y, state = selective_scan(**cut, **fixed, initial_state=state, block=8)
        parts.append(y)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10
    assert (state - last).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_decays_do_not_overflow(dtype: torch.dtype) -> None:
    given = {name: value.to(dtype) for name, value in inputs(64, 1).items()}
    given["dt"] = given["dt"].mul(1000).requires_grad_()
    y, state = selective_scan(**given, block=32, lanes=4)
    y.float().sum().backward()
    assert y.dtype == dtype and state.dtype == torch.float32
    assert y.isfinite().all() and given["dt"].grad.isfinite().all()  # type: ignore[union-attr]


def transformers_mamba(dim: int, **options: Any) -> Any:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=dim, num_hidden_layers=1, use_mambapy=False, **options)
    return awake(MambaMixer(config, 0))


THEIRS = {"state_size": 5, "expand": 1, "conv_kernel": 2, "time_step_rank": 3}
OURS = {"state": 5, "expand": 1, "conv": 2, "dt_rank": 3}


@pytest.mark.parametrize(("theirs", "ours"), [({}, {}), (THEIRS, OURS)])
def test_the_mixer_is_that_of_transformers(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    reference = transformers_mamba(32, **theirs)
    mixer = Mamba1Mixer(32, **ours)
    load_mamba(mixer, reference.state_dict())
    x = torch.randn(2, 45, 32)
    result, _ = mixer(x)
    assert (result - reference(x)).abs().max() < 1e-5 < result.abs().max()
    valid = torch.ones(2, 45, dtype=torch.bool)
    valid[0, :9], valid[1, 30:] = False, False
    masked = mixer(x, valid)[0] - reference(x, attention_mask=valid.long())
    assert masked[valid].abs().max() < 1e-5


@pytest.mark.parametrize("groups", [1, 4])
def test_ssd_is_the_mamba2_of_transformers(groups: int) -> None:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=32, state_size=6, head_dim=8, num_heads=8, n_groups=groups, chunk_size=16
    )
    reference = awake(Mamba2Mixer(config, 0))
    with torch.no_grad():
        reference.norm.weight.normal_()
        reference.dt_bias.normal_()
    mixer = SSDMixer(32, 6, 8, 2, 4, 8, False, True, groups=groups, eps=1e-5)
    load_mamba2(mixer, reference.state_dict())
    x = torch.randn(2, 45, 32)
    result, _ = mixer(x)
    assert (result - reference(x)).abs().max() < 1e-5 < result.abs().max()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_ssd_with_groups_keeps_its_promises(bidirectional: bool) -> None:
    model = awake(
        get_temporal("ssd", 16, head_dim=8, state=4, groups=2, bidirectional=bidirectional)
    )
    x, seconds, mask = torch.randn(2, 9, 3, 16), times(9), (torch.arange(9) < 6).expand(2, 9)
    short = model(x[:, :6], seconds[:, :6])
    assert torch.allclose(model(x, seconds, mask)[:, :6], short, atol=1e-5)


def one_way(mixer: Mamba1Mixer, way: int) -> Mamba1Mixer:
    """The direction `way` of a mixer that reads both, alone."""
    alone = Mamba1Mixer(mixer.in_proj.in_features, mixer.state)
    with torch.no_grad():
        for name, value in mixer.named_parameters():
            own = alone.get_parameter(name)
            if name.startswith("conv"):
                value = value.chunk(2, dim=-1)[way]
            elif value.shape != own.shape:
                value = value.chunk(2, dim=0)[way]
            own.copy_(value)
    return alone


def test_both_ways_are_two_mixers_that_share_their_projections() -> None:
    """out_proj is linear: out_proj(y_f + flip(y_b)) is the sum of two mixers, one of them back."""
    both = awake(Mamba1Mixer(16, 4, bidirectional=True))
    x, scale = torch.randn(2, 11, 16), 1 + torch.rand(2, 11, 2)
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[0, 8:] = False
    ahead, _ = one_way(both, 0)(x, valid, scale[..., :1])
    back, _ = one_way(both, 1)(x.flip(1), valid.flip(1), scale[..., 1:].flip(1))
    result, state = both(x, valid, scale)
    assert state is None
    assert torch.allclose(result[valid], (ahead + back.flip(1))[valid], atol=1e-5)


def test_separate_directions_share_nothing_and_refuse_to_stream() -> None:
    shared, separate = (
        get_temporal("mamba", 16, directions=kind) for kind in ("shared", "separate")
    )
    assert sum("in_proj" in name for name, _ in separate.named_parameters()) == 2
    assert sum("in_proj" in name for name, _ in shared.named_parameters()) == 1
    with pytest.raises(InputError, match="bidirectional=False"):
        separate.stream(torch.randn(2, 9, 3, 16), times(9))


def test_padding_may_be_anything() -> None:
    for name in ("mamba", "s-mamba", "mambamixer"):
        model = awake(get_temporal(name, 16, state=4))
        x, seconds = torch.randn(2, 8, 3, 16), times(8)
        mask = torch.arange(8) >= torch.tensor([[3], [5]])
        mask[1] = ~mask[1]
        full = model(x, seconds, mask)
        x[~mask] = float("nan")
        assert torch.equal(model(x, seconds, mask)[mask], full[mask])


def test_initialisation_is_mambas_and_can_be_restored() -> None:
    model = MambaEncoder(32)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    model.reset_parameters()
    mixer = model.mixers[0]
    assert isinstance(mixer, Mamba1Mixer) and mixer.rank == 2 and mixer.inner == 64
    assert torch.equal(mixer.out_proj.weight, torch.zeros(32, 64))
    assert torch.allclose(mixer.A_log.exp(), torch.arange(1, 17.0).expand(128, 16))
    step = F.softplus(mixer.dt_bias)
    assert bool(((step > 0.99e-3) & (step < 1.01e-1)).all())
    assert mixer.dt_proj.abs().max() <= 1 / math.sqrt(2)
    for own in (mixer.A_log, mixer.D, mixer.dt_bias):
        assert own._no_weight_decay is True


@pytest.mark.parametrize("name", ["mamba", "s-mamba", "mambamixer"])
def test_bf16_autocast_trains_near_the_exact_result(name: str) -> None:
    model = awake(get_temporal(name, 16, state=4, layers=2))
    x, seconds = torch.randn(2, 20, 3, 16), times(20)
    exact = model(x, seconds)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, seconds)
        rough.float().square().mean().backward()
    assert rough.dtype == torch.float32 and (exact - rough).abs().max() < 0.1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_s_mamba_is_its_equation() -> None:
    x, seconds = torch.randn(1, 7, 1, 16), times(7, 1)
    for post in (False, True):
        model = awake(get_temporal("s-mamba", 16, state=4, post_norm=post, layers=2))
        y = x[:, :, 0]
        for i, part in enumerate(model.mixers):
            part, after = (part.mixer, part.norm) if post else (part, None)
            given = y if post else model.norms[i](y)
            if i % 2:
                change = part.down(F.gelu(part.up(given)))
            else:
                ways = part.mixer
                change = ways.ahead(given)[0] + ways.back(given.flip(1))[0].flip(1)
            y = y + change if after is None else after(y + change)
        assert torch.allclose(model(x, seconds)[:, :, 0], y, atol=1e-5)
        start = get_temporal("s-mamba", 16, post_norm=post)(x, seconds)
        assert torch.equal(start, x) != post


def test_mambamixer_is_its_equations() -> None:
    model = awake(get_temporal("mambamixer", 16, state=4, slots=3, layers=3, scan="slot"))
    with torch.no_grad():
        for group in (model.alpha, model.beta, model.theta, model.gamma):
            for weights in group:
                weights.normal_()
    x, seconds = torch.randn(2, 5, 3, 16), times(5)
    y_t, y_c = [x], [x]
    for i in range(3):
        given = sum(model.alpha[i][j] * y_t[j] + model.beta[i][j] * y_c[j] for j in range(i + 1))
        normed = model.norms[i](given).transpose(1, 2).reshape(6, 5, 16)  # every slot over time
        y_t.append(given + model.mixers[i](normed)[0].view(2, 3, 5, 16).transpose(1, 2))
        given = sum(model.gamma[i][j] * y_c[j] for j in range(i + 1))
        given = given + sum(model.theta[i][j] * y_t[j] for j in range(i + 2))
        normed = model.channel_norms[i](given).transpose(2, 3).reshape(10, 16, 3)
        change, _ = model.channel_mixers[i].mixer(normed)  # channels are the sequence
        y_c.append(given + change.view(2, 5, 16, 3).transpose(2, 3))
    result = model(x, seconds)
    assert torch.allclose(result, y_c[-1], atol=1e-4 * float(result.detach().abs().max()))


@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
def test_mambamixer_takes_any_number_of_tokens_a_frame(tokens: int) -> None:
    model = awake(get_temporal("mambamixer", 16, state=4, slots=4))
    x = torch.randn(1, 3, tokens, 16)
    out = model(x, times(3, 1))
    assert out.shape == x.shape and out.isfinite().all()


def test_the_kernel_is_taken_only_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself needs CUDA; here the layout that it is called with is checked."""
    given = inputs(9, 2)
    del given["initial_state"]
    assert not kernel_serves(given["x"])
    with pytest.raises(InputError, match="mamba-ssm's kernel cannot serve"):
        selective_scan(**given, kernel=True)

    def published(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, **options: Any) -> Any:
        assert options == {"return_last_state": True}
        maps = (v.permute(0, 3, 1, 2) for v in (b, c))
        y, last = selective_recurrent(u.transpose(1, 2), delta.transpose(1, 2), a, *maps)
        return y.transpose(1, 2), last

    expected = selective_scan(**given, kernel=False)
    monkeypatch.setattr(selective_module, "_kernel", lambda: published)
    assert not kernel_serves(given["x"])  # installed is not enough: the tensors are on the CPU
    monkeypatch.setattr(selective_module, "kernel_serves", lambda *_: True)
    for expected_part, part in zip(expected, selective_scan(**given), strict=True):
        assert torch.allclose(expected_part, part)


def test_what_does_not_fit_is_refused() -> None:
    for name, options, message in (
        ("mamba", {"state": 0}, "at least 1"),
        ("mamba", {"directions": "up"}, "'shared' or 'separate'"),
        ("mamba", {"dt_rank": 0}, "at least 1"),
        ("s-mamba", {"dropout": 1.0}, "dropout"),
        ("s-mamba", {"hidden": 0}, "hidden"),
        ("mambamixer", {"slots": 0}, "slots"),
        ("mambamixer", {"scan": "spiral"}, "raster"),
        ("ssd", {"groups": 3, "head_dim": 8}, "groups 3 must divide"),
    ):
        with pytest.raises(InputError, match=message):
            get_temporal(name, 16, **options)
    given = inputs(5, 1)
    with pytest.raises(InputError, match="x and dt"):
        selective_scan(**{**given, "dt": given["dt"][:, :3]})
    with pytest.raises(InputError, match="groups"):
        selective_scan(**{**given, "B": given["B"].repeat(1, 1, 4, 1)})
    with pytest.raises(InputError, match="block and lanes"):
        selective_scan(**given, block=0)
