"""The selective scan of Mamba-1, in blocks, fast in plain torch.

Source: Mamba (arXiv 2312.00752, algorithm 2 and section 3.3): a diagonal state whose decay
exp(dt A) is zero-order hold and whose input dt B is Euler's, as in the authors' code.

Every channel has decays of its own, so no product of matrices does the work as it does for the
scalar decays of `scan.py`. What makes a scan slow in torch is then not arithmetic but memory
(all states at once are B * L * E * N numbers) and calls. Here a block of the sequence at a time
is held in buffers that fit the cache and are used again; within a block several lanes run side by
side and are joined by the products of their decays, which are at most 1; nothing is divided and
no exponent is positive. Training keeps one state a block and computes the others again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError

# Numbers in one buffer of a block, and the least that one call should work on: (CPU, others).
_BLOCK = (1 << 18, 1 << 25)
_CALL = (1 << 14, 1 << 20)


def _check(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    if x.dim() != 3 or dt.shape != x.shape or a.dim() != 2 or a.shape[0] != x.shape[2]:
        raise InputError(
            f"the selective scan takes x and dt (B, L, E) and A (E, N), not {tuple(x.shape)}, "
            f"{tuple(dt.shape)} and {tuple(a.shape)}"
        )
    fits = b.dim() == 4 and b.shape[:2] == x.shape[:2] and b.shape[3] == a.shape[1]
    if b.shape != c.shape or not fits or x.shape[2] % b.shape[2]:
        raise InputError(
            f"B and C must both be (batch, length, groups, {a.shape[1]}) with groups dividing "
            f"{x.shape[2]} channels, not {tuple(b.shape)} and {tuple(c.shape)}"
        )


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    block: int | None = None,
    lanes: int | None = None,
    kernel: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The selective scan, block by block and by hand where torch would be slow.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,  y_t = <C_t, h_t> + D x_t  (per channel).

    Any length works (the tail is padded with steps of size 0, which leave the state alone). All
    is float32 at least; y has the dtype of `x`. Memory is O(B * L * E), not times N, in training
    too. First derivatives only.

    Args:
        x: (B, L, E) inputs; dt: (B, L, E) step sizes >= 0; A: (E, N) negative decay rates.
        B, C: (B, L, G, N) input and output maps, shared by the E / G channels of a group.
        D: (E,) skip weights. initial_state: (B, E, N), zeros when None.
        block: tokens a block, lanes: parts of a block that run side by side; None takes what
            suits the sizes and the device. Speed only.
        kernel: True runs mamba-ssm's CUDA kernel, False never, None where `kernel_serves`.

    Returns:
        y (B, L, E) and the state after the last token (B, E, N).

    Raises:
        InputError: the shapes do not fit together, block or lanes are below 1, or the kernel
            was asked for where it cannot serve.
    """
    _check(x, dt, A, B, C)
    serves = kernel_serves(x, initial_state)
    if kernel and not serves:
        raise InputError(
            "mamba-ssm's kernel cannot serve here: it needs `pip install mamba-ssm`, CUDA "
            "tensors, at most float32, and no initial state; pass kernel=None"
        )
    exact = torch.promote_types(x.dtype, torch.float32)
    u, steps, rates, b, c = (v.to(exact) for v in (x, dt, A, B, C))
    with torch.autocast(x.device.type, enabled=False):
        if serves and kernel is not False:
            y, final = _by_kernel(u, steps, rates, b, c)
        else:
            start = None if initial_state is None else initial_state.to(exact)
            y, final = _in_blocks(u, steps, rates, b, c, start, block, lanes)
        if D is not None:
            y = y + D.to(exact) * u
    return y.to(x.dtype), final


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    """mamba-ssm's selective_scan_fn, or None where the package is not installed."""
    try:
        module = import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return None
    scan: Callable[..., Any] = module.selective_scan_fn
    return scan


def kernel_serves(x: Tensor, initial_state: Tensor | None = None) -> bool:
    """Whether the scan of `x` runs in mamba-ssm's kernel: installed, on CUDA, at most float32.

    The kernel starts from a state of zeros, so a stream that goes on runs in plain torch.
    """
    able = x.is_cuda and x.dtype != torch.float64 and initial_state is None
    return able and _kernel() is not None


def _by_kernel(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """mamba-ssm's layout is channels first: (B, E, L) and (B, G, N, L)."""
    scan = _kernel()
    if scan is None:
        raise InputError("mamba-ssm is not installed")
    first = [v.transpose(1, 2).contiguous() for v in (x, dt)]
    maps = [v.permute(0, 2, 3, 1).contiguous() for v in (b, c)]
    y, final = scan(first[0], first[1], a.contiguous(), *maps, return_last_state=True)
    return y.transpose(1, 2), final


def _in_blocks(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    initial: Tensor | None,
    block: int | None,
    lanes: int | None,
) -> tuple[Tensor, Tensor]:
    batch, length, inner = x.shape
    groups, state = b.shape[2:]
    if (block is not None and block < 1) or (lanes is not None and lanes < 1):
        raise InputError(f"block and lanes must be at least 1, not {block} and {lanes}")
    size = batch * inner * state
    device = int(x.device.type != "cpu")
    if block is None:
        block = max(1, _BLOCK[device] // max(1, size))
    block = min(block, length)
    if lanes is None:
        lanes = min(math.isqrt(block), _CALL[device] // max(1, size))
    lanes = max(1, min(lanes, block))
    tail = -length % lanes
    block += -block % lanes

    def led(v: Tensor) -> Tensor:  # the sequence first: (L, B, G, ...)
        v = v.reshape(batch, length, groups, -1).transpose(0, 1)
        return F.pad(v, (0, 0) * 3 + (0, tail)) if tail else v.contiguous()

    rates = a.view(groups, inner // groups, state).transpose(1, 2).contiguous()
    if initial is None:
        start = x.new_zeros(batch, groups, state, inner // groups)
    else:
        start = initial.view(batch, groups, -1, state).transpose(2, 3).contiguous()
    y, final = _Blocks.apply(led(x * dt), led(dt), rates, led(b), led(c), start, block, lanes)
    y = y[:length].transpose(0, 1).reshape(batch, length, inner)
    return y, final.transpose(2, 3).reshape(batch, inner, state)


def _run(decay: Tensor, x: Tensor, start: Tensor, lanes: int, reverse: bool = False) -> None:
    """x_t += decay_t x_{t-1} in place along the first axis, x before the first being `start`.

    With `reverse` from the last to the first. Several lanes leave products in `decay`.
    """
    decays, parts = (v.view(lanes, -1, *v.shape[1:]) for v in (decay, x))
    order = list(zip(decays.unbind(1), parts.unbind(1), strict=True))
    turn = range(lanes)
    if reverse:
        order.reverse()
        turn = turn[::-1]
    fades, held = order[0]
    held[turn[0]].addcmul_(fades[turn[0]], start)
    for fade, here in order[1:]:
        here.addcmul_(fade, held)
        held = here
        if lanes > 1:
            fades = fade.mul_(fades)
    # A lane began without what came before it: the end of the lane before, faded.
    end = 0 if reverse else -1
    for before, lane in itertools.pairwise(turn):
        parts[lane].addcmul_(decays[lane], parts[before, end])


class _Blocks(torch.autograd.Function):
    """The scan of u = dt x. All sequences are (L, B, G, ...), states (B, G, N, F), E = G F."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        start: Tensor,
        block: int,
        lanes: int,
    ) -> tuple[Tensor, Tensor]:
        y, held, starts = torch.empty_like(u), start, []
        decays, states = (u.new_empty(block, *start.shape) for _ in range(2))
        for at in range(0, u.shape[0], block):
            here = slice(at, at + block)
            size = u[here].shape[0]
            decay, x = decays[:size], states[:size]
            starts.append(held)
            torch.mul(dt[here].unsqueeze(-2), a, out=decay).exp_()
            torch.mul(b[here].unsqueeze(-1), u[here].unsqueeze(-2), out=x)
            _run(decay, x, held, lanes)
            y[here] = torch.matmul(c[here].unsqueeze(-2), x).squeeze(-2)
            held = x[-1].clone()
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(u, dt, a, b, c, torch.stack(starts))
            ctx.block, ctx.lanes = block, lanes
        return y, held

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            saved: list[Tensor] = [*ctx.saved_tensors, dy, dfinal]
            return (*_adjoint(saved, ctx.block, ctx.lanes), None, None)


def _adjoint(saved: list[Tensor], block: int, lanes: int) -> tuple[Tensor, ...]:
    """Gradients of (u, dt, a, b, c, start): g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}, backwards.

    The states of a block are computed again from the one before it. `saved` is u, dt, a, b, c,
    the states that blocks start from, and the gradients of y and of the last state.
    """
    u, dt, a, b, c, starts, dy, dfinal = saved
    du, ddt, db, dc = (torch.empty_like(v) for v in (u, dt, b, c))
    da = torch.zeros_like(a)
    states, fades = (u.new_empty(block + 1, *starts.shape[1:]) for _ in range(2))
    adjoint, work = (torch.empty_like(states) for _ in range(2))
    held = dfinal
    for at in range((len(starts) - 1) * block, -1, -block):
        here = slice(at, at + block)
        size = u[here].shape[0]
        steps, inputs, output = (v[here].unsqueeze(-2) for v in (dt, u, dy))
        decay, x, g, free = fades[:size], states[1 : size + 1], adjoint[:size], work[:size]
        torch.mul(steps, a, out=decay).exp_()
        fades[size] = 1  # what comes from later blocks is faded already
        states[0] = starts[at // block]
        torch.mul(b[here].unsqueeze(-1), inputs, out=x)
        _run(free.copy_(decay) if lanes > 1 else decay, x, states[0], lanes)
        torch.mul(c[here].unsqueeze(-1), output, out=g)
        later = fades[1 : size + 1]
        _run(free.copy_(later) if lanes > 1 else later, g, held, lanes, reverse=True)
        dc[here] = torch.matmul(x, output.transpose(-1, -2)).squeeze(-1)
        db[here] = torch.matmul(g, inputs.transpose(-1, -2)).squeeze(-1)
        du[here] = torch.matmul(b[here].unsqueeze(-2), g).squeeze(-2)
        held = g[0] * decay[0]
        g.mul_(decay).mul_(states[:size])  # the gradient of dt A
        ddt[here] = torch.mul(g, a, out=free).sum(-2)
        da += torch.mul(g, steps, out=free).sum((0, 1))
    return du, ddt, da, db, dc, held
