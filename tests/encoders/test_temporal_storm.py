"""STORM's module and projector, and the two controls that see only their neighbours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.encoders.temporal import StormProjector, TemporalEncoder, get_temporal
from vidllm.encoders.temporal.storm import OURS, fold_cells
from vidllm.encoders.temporal.tsm import shift_channels
from vidllm.errors import InputError

DIM, SLOTS = 16, 3
SMALL: dict[str, dict[str, Any]] = {"storm": {"sizes": {"head_dim": 8, "state": 8}}}


def encoder(name: str, **options: Any) -> TemporalEncoder:
    torch.manual_seed(0)
    return get_temporal(name, DIM, zero_init=False, **{**SMALL.get(name, {}), **options})


def clip(frames: int, batch: int = 2, slots: int = SLOTS) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(frames)
    x = torch.randn(batch, frames, slots, DIM, generator=draw)
    return x, torch.rand(batch, frames, generator=draw).cumsum(1)


# ------------------------------------------------------------------------- convolution and shift


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_temporal_conv_is_a_depthwise_convolution(taps: int, bidirectional: bool) -> None:
    model = encoder("temporal-conv", taps=taps, bidirectional=bidirectional).double()
    mixer: Any = model.mixers[0]  # type: ignore[attr-defined]
    for frames in (1, 2, 9):
        x = torch.randn(2, frames, DIM, dtype=torch.float64)
        sides = (taps // 2, taps // 2) if bidirectional else (taps - 1, 0)
        mixed = F.conv1d(
            F.pad(x.transpose(1, 2), sides), mixer.weight.T[:, None], mixer.bias, groups=DIM
        ).transpose(1, 2)
        assert (mixer(x)[0] - mixer.out_proj(F.silu(mixed))).abs().max() < 1e-10


def test_the_shift_moves_an_eighth_each_way() -> None:
    x = torch.randn(2, 5, DIM)
    both, online = shift_channels(x, 2), shift_channels(x, 2, back=False)
    assert torch.equal(both[:, 1:, :2], x[:, :-1, :2]) and not both[:, 0, :2].any()
    assert torch.equal(both[:, :-1, 2:4], x[:, 1:, 2:4]) and not both[:, -1, 2:4].any()
    assert torch.equal(both[:, :, 4:], x[:, :, 4:])
    assert torch.equal(online[..., :2], both[..., :2]) and torch.equal(online[..., 2:], x[..., 2:])
    mixer: Any = encoder("tsm").mixers[0]  # type: ignore[attr-defined]
    assert mixer.count == 2 and torch.equal(mixer(x)[0], mixer.out_proj(both))


def test_controls_see_no_further_than_their_neighbours() -> None:
    x, seconds = clip(9)
    changed = x.clone()
    changed[:, 4] += torch.randn(DIM)  # not a constant, which LayerNorm would take away
    for name, reach in (("tsm", 1), ("temporal-conv", 1)):
        model = encoder(name)
        moved = (model(x, seconds) - model(changed, seconds)).abs().amax((0, 2, 3)) > 1e-6
        assert moved.nonzero().flatten().tolist() == list(range(4 - reach, 5 + reach))


# ---------------------------------------------------------------------------------------- STORM


def test_storm_is_the_paper_s_stack_and_says_which_numbers_are_ours() -> None:
    model = encoder("storm", layers=2)
    alone = get_temporal("ssd", DIM, layers=2, zero_init=False, **SMALL["storm"]["sizes"])
    alone.load_state_dict(model.stack.state_dict())  # type: ignore[union-attr]
    x, seconds = clip(5)
    assert torch.equal(model(x, seconds), alone(x, seconds)) and not model.causal
    assert len(get_temporal("storm", 64).stack.mixers) == OURS["layers"][0]  # type: ignore
    image = torch.randn(1, 1, 4, 64)
    assert torch.equal(get_temporal("storm", 64, ssm="mamba")(image, torch.zeros(1, 1)), image)
    assert set(OURS) >= {"layers", "ssm", "sizes", "directions", "zero_init"}
    with pytest.raises(InputError, match="another encoder"):
        encoder("storm", ssm="storm", sizes={})
    with pytest.raises(InputError, match="identity"):
        encoder("storm", ssm="identity", sizes={})
    with pytest.raises(InputError, match="stat"):
        encoder("storm", sizes={"stat": 4})


def test_folding_is_pixel_unshuffle() -> None:
    cells = torch.randn(2, 4, 6, 5)
    expected = F.pixel_unshuffle(cells.permute(0, 3, 1, 2), 2)  # (B, C * k * k, h, w)
    expected = expected.unflatten(1, (5, 4)).permute(0, 3, 4, 2, 1).flatten(3)
    assert torch.equal(fold_cells(cells, 2), expected)
    assert torch.equal(fold_cells(cells, 1), cells)


def test_folding_is_what_the_native_model_does() -> None:
    from tiny import hub_model  # here alone: it loads transformers

    native = hub_model("siglip", downsample=2)
    flat = torch.randn(3, 16, 32)
    own = fold_cells(flat.unflatten(1, (4, 4)), 2).flatten(1, 2)
    assert torch.equal(native.fold(flat), native.projector(own))


def test_storm_projector_is_downsampling_and_one_linear_layer_at_step_0() -> None:
    model = StormProjector(5, 64, layers=2)
    cells, seconds = torch.randn(2, 3, 4, 6, 5), torch.rand(2, 3).cumsum(1)
    expected = F.linear(fold_cells(cells, 2).flatten(2, 3), model.linear.weight, model.linear.bias)
    assert torch.equal(model(cells, seconds), expected)
    assert expected.shape[2] == math.prod(model.grid(4, 6))
    assert model(cells[:, :1], seconds[:, :1]).shape == (2, 1, 6, 64)  # images
    assert model(torch.randn(1, 2, 16, 5), torch.zeros(1, 2)).shape == (1, 2, 4, 64)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    model.reset_parameters()
    assert torch.equal(model(cells, seconds), model.project(cells))


def test_odd_grids_are_refused_or_filled_with_zeros() -> None:
    cells, seconds = torch.randn(1, 2, 27, 27, 5), torch.zeros(1, 2)
    with pytest.raises(InputError, match="pad=True"):
        StormProjector(5, 64)(cells, seconds)
    model = StormProjector(5, 64, pad=True)
    filled = F.pad(cells, (0, 0, 0, 1, 0, 1))
    assert model.grid(27, 27) == (14, 14)
    assert torch.equal(model(cells, seconds), model(filled, seconds))
    assert StormProjector(5, 64, 3)(cells, seconds).shape == (1, 2, 81, 64)
    with pytest.raises(InputError, match="square"):
        model(torch.randn(1, 2, 15, 5), seconds)
    with pytest.raises(InputError, match="B, T, H, W, 5"):
        model(torch.randn(1, 2, 4, 4, 6), seconds)
    with pytest.raises(InputError, match="downsample"):
        StormProjector(5, 64, 0)


def test_storm_projector_streams_and_takes_other_encoders() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"zero_init": False, "bidirectional": False}
    cells, seconds = torch.randn(2, 6, 4, 4, 5), torch.rand(2, 6).cumsum(1)
    for model in (
        StormProjector(5, 64, **options),
        StormProjector(5, 64, encoder="aaren", **options),
    ):
        state, parts = None, []
        for chunk, times in zip(cells.split(2, 1), seconds.split(2, 1), strict=True):
            out, state = model.stream(chunk, times, state)
            parts.append(out)
        assert (torch.cat(parts, 1) - model(cells, seconds)).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("name", ["storm", "temporal-conv", "tsm"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_nan_in_padding_and_clips_of_padding_alone_do_no_harm(
    name: str, bidirectional: bool
) -> None:
    model = encoder(name, bidirectional=bidirectional)
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
        ("temporal-conv", {"taps": 4}, "odd"),
        ("temporal-conv", {"taps": 0}, "at least 1"),
        ("temporal-conv", {"time": "step"}, "embedding"),
        ("tsm", {"fold": 17}, "fold"),
        ("tsm", {"fold": 1}, "fold"),
        ("storm", {"layers": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(name, **options)
