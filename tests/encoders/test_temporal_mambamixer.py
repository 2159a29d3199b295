"""MambaMixer's channel mixer with frames innermost: the same numbers as the mixer it stands for."""

from __future__ import annotations

import pytest
import torch
from authors.recurrences import selective_recurrent
from torch import Tensor

from vidllm.encoders.temporal import get_temporal, mambamixer_across
from vidllm.encoders.temporal.mamba import Mamba1Mixer
from vidllm.encoders.temporal.mambamixer import ChannelMixer
from vidllm.encoders.temporal.mambamixer_across import mix_across, scan_across, tiles


@pytest.fixture(params=[1 << 18, 200], ids=["one block", "many blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mambamixer_across, "_BLOCK", request.param)


def mixer(width: int, ways: int = 2, state: int = 3) -> Mamba1Mixer:
    torch.manual_seed(0)
    return Mamba1Mixer(width, state, bidirectional=ways == 2, zero_init=False).double()


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((y * weights).sum(), inputs)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_the_scan_is_the_recurrence_and_so_are_its_gradients(length: int) -> None:
    torch.manual_seed(length)
    inner, state, rows = 3, 4, 5
    x, dt = torch.randn(inner, length, rows).double(), torch.rand(inner, length, rows).double()
    a, d = -5 * torch.rand(inner, state).double(), torch.randn(inner).double()
    b, c = torch.randn(2, state, length, rows).double()
    given = [v.requires_grad_() for v in (x, dt, a, b, c, d)]
    first = [v.permute(2, 1, 0) for v in (x, dt)]  # (rows, length, ...)
    maps = [v.permute(2, 1, 0)[:, :, None] for v in (b, c)]
    exact = selective_recurrent(*first, a, *maps, D=d)[0].permute(2, 1, 0)
    y = scan_across(x, dt, a, b, c, d)
    assert torch.allclose(y, exact, rtol=0, atol=1e-10)
    for mine, theirs in zip(gradients(y, *given), gradients(exact, *given), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)
    assert torch.equal(scan_across(*(v.detach() for v in given)), y.detach())


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("width", [1, 4])
def test_the_mixer_is_the_same_in_both_layouts(width: int, ways: int) -> None:
    layer = mixer(width, ways)
    x = torch.randn(width, 11, 7, dtype=torch.float64, requires_grad=True)
    exact, y = layer(x.permute(2, 1, 0))[0].permute(2, 1, 0), mix_across(layer, x)
    assert torch.allclose(y, exact, rtol=0, atol=1e-10)
    inputs = (x, *layer.parameters())
    for mine, theirs in zip(gradients(y, *inputs), gradients(exact, *inputs), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)


def test_many_frames_go_in_tiles_and_few_by_the_mixer_itself() -> None:
    layer = ChannelMixer(slots=2, state=3, expand=2, conv=4, zero_init=False).double()
    for frames, parts in ((3, 0), (4, 1), (512, 1), (513, 2), (1100, 3)):
        x = torch.randn(1, frames, 2, 6, dtype=torch.float64)
        across = x[0].transpose(1, 2)
        assert tiles(across, layer.mixer) == parts
        exact = layer.mixer(across)[0].transpose(1, 2)[None]
        assert torch.allclose(layer(x), exact, rtol=0, atol=1e-10)
    wide = mixer(64)
    assert tiles(torch.randn(63, 5, 64), wide) == 0 and tiles(torch.randn(64, 5, 64), wide) == 1


def test_frames_do_not_see_each_other_whatever_the_tile() -> None:
    torch.manual_seed(0)
    model = get_temporal(
        "mambamixer", 8, slots=1, scan="slot", zero_init=False, bidirectional=False
    ).double()
    x, seconds = torch.randn(1, 700, 1, 8).double(), torch.arange(700.0)[None]
    whole = model(x, seconds)
    changed = x.clone()
    changed[:, 600:] = 5
    assert torch.allclose(model(changed, seconds)[:, :600], whole[:, :600], rtol=0, atol=1e-10)
    state, parts = None, []
    for part, when in zip(
        x.split([1, 2, 600, 97], 1), seconds.split([1, 2, 600, 97], 1), strict=True
    ):
        out, state = model.stream(part, when, state)
        parts.append(out)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


def test_autocast_keeps_the_scan_exact_and_gradients_finite() -> None:
    layer = mixer(2).float()
    x = torch.randn(2, 30, 70, requires_grad=True)
    exact = mix_across(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = mix_across(layer, x)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(g.isfinite().all() for g in gradients(rough.float(), x, *layer.parameters()))
