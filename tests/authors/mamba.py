"""Weights of transformers' Mamba mixers in the project's own: what their equality is shown with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidllm.encoders.temporal.mamba import Mamba1Mixer
from vidllm.encoders.temporal.ssd import SSDMixer

_SAME = ("A_log", "D", "in_proj.weight", "out_proj.weight")
_CONV = {"conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias"}


def load_mamba(mixer: Mamba1Mixer, state: dict[str, Tensor]) -> None:
    """Take the weights of transformers' `MambaMixer`, or of `mamba_ssm.Mamba` (same names)."""
    names = {"x_proj.weight": "x_proj", "dt_proj.weight": "dt_proj", "dt_proj.bias": "dt_bias"}
    _load(mixer, state, names)


def load_mamba2(mixer: SSDMixer, state: dict[str, Tensor]) -> None:
    """Take the weights of transformers' `Mamba2Mixer` of the same sizes."""
    _load(mixer, state, {"dt_bias": "dt_bias", "norm.weight": "norm_weight"})


@torch.no_grad()
def _load(mixer: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> None:
    """A depthwise Conv1d weight (C, 1, K) becomes (K, C); others get the axis that they lack."""
    names = {**dict(zip(_SAME, _SAME, strict=True)), **_CONV, **names}
    assert names.keys() == state.keys()
    own = dict(mixer.named_parameters())
    for key, name in names.items():
        value = state[key].squeeze(1).t() if key == "conv1d.weight" else state[key]
        own[name].copy_(value.reshape(own[name].shape))
