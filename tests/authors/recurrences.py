"""Recurrences of temporal encoders, token by token as their papers write them: the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidllm.encoders.temporal.aaren import Summary, _merge
from vidllm.encoders.temporal.chunked import _check_ssd
from vidllm.encoders.temporal.diagonal import DiagonalSystem, _paired, _unpaired
from vidllm.encoders.temporal.longconv import DenseSystem
from vidllm.encoders.temporal.selective import _check


def ssd_recurrent(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `ssd_chunked` computes, one token after the other."""
    _check_ssd(x, dt, A, B, C)
    batch, length, heads, width = x.shape
    each = heads // B.shape[2]
    b, c = B.repeat_interleave(each, dim=2), C.repeat_interleave(each, dim=2)
    state = (
        x.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    )
    outputs = []
    for t in range(length):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        update = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None, :]
        state = decay * state + update
        outputs.append((state * c[:, t, :, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1)
    return (y if D is None else y + D[:, None] * x), state


def selective_recurrent(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `selective_scan` computes, one token after the other."""
    _check(x, dt, A, B, C)
    batch, length, inner = x.shape
    each = inner // B.shape[2]
    b, c = B.repeat_interleave(each, dim=2), C.repeat_interleave(each, dim=2)
    state = x.new_zeros(batch, inner, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        step = dt[:, t, :, None]
        state = torch.exp(step * A) * state + step * x[:, t, :, None] * b[:, t]
        outputs.append((state * c[:, t]).sum(-1))
    y = torch.stack(outputs, dim=1)
    return (y if D is None else y + D * x), state


def prefix_attention_recurrent(
    scores: Tensor, values: Tensor, state: Summary | None = None
) -> tuple[Tensor, Summary]:
    """What `prefix_attention` computes, one token after the other, O(1) each."""
    if state is None:
        zero = torch.zeros_like(values[:, :, 0])
        state = torch.full_like(scores[:, :, 0], -math.inf), zero[..., 0].clone(), zero
    means = []
    for t in range(scores.shape[-1]):
        s = scores[:, :, t]
        state = _merge(state, (s, (s > -math.inf).to(s.dtype), values[:, :, t]))
        means.append(state[2] / state[1].masked_fill(state[1] == 0, 1)[..., None])
    return torch.stack(means, 2), state


System = DenseSystem | DiagonalSystem


def start(system: System, batch: int) -> Tensor:
    """A state of zeros (B, G, S)."""
    if isinstance(system, DiagonalSystem):
        return system.start(batch)
    return system.B.new_zeros(batch, *system.B.shape)


def step(
    system: System, held: Tensor, u: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """State (B, G, S) and input (B, G) to the next state and the output (B, G, M).

    `scale` (B,) multiplies the step of a diagonal system.
    """
    if isinstance(system, DenseSystem):
        held = torch.einsum("gij,bgj->bgi", system.A, held) + system.B * u[..., None]
        return held, torch.einsum("gms,bgs->bgm", system.C, held)
    rate = system.rate if scale is None else scale[:, None, None] * system.rate
    state = rate.exp() * _paired(held) + rate.expm1() * system.gain * u[..., None]
    return _unpaired(state), torch.einsum("gms,bgs->bgm", system.C, state).real * 2


def recurrence(u: Tensor, system: System, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The systems token by token. Arguments and results as `longconv.convolve`."""
    held = start(system, u.shape[0]) if state is None else state
    outputs = []
    for t in range(u.shape[1]):
        held, y = step(system, held, u[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), held
