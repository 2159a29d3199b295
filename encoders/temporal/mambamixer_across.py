"""The channel mixer where frames are many and narrow: the same S6, frames innermost in memory.

A scan over the channels of a frame has few features (the frame's tokens, often one or four) and as
many sequences as there are frames. Laid out with features innermost, as `selective_scan` does for
wide tokens, every torch kernel would work on runs of a few numbers, and the projections on
matrices of a few columns. Here all is (features, channels, frames): runs are as long as there are
frames, projections are one matrix product from the left, and the frames go in tiles that stay in
the cache from the first projection to the last. Nothing else differs: weights, equations and the
order of the recurrence are those of `Mamba1Mixer` and `selective_scan`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .mamba import Mamba1Mixer
from .selective import _run

# Numbers that one step works on and that one buffer of a block holds, and the fewest and most
# frames of a tile: what was fastest on a CPU with a megabyte of cache a core.
_CALL, _BLOCK = 1 << 14, 1 << 18
_FEWEST, _MOST = 128, 512


def tiles(x: Tensor, mixer: Mamba1Mixer) -> int:
    """In how many tiles `mix_across` should take x (M, L, dim); 0 where `mixer` itself is faster.

    That is on a GPU, and where runs of M numbers would be shorter than its own of the inner width.
    """
    rows = len(x)
    if x.device.type != "cpu" or rows < min(mixer.inner, _FEWEST // 2):
        return 0
    tile = min(_MOST, max(_FEWEST, _CALL // (mixer.inner * mixer.state)))
    return -(-rows // tile)


def mix_across(mixer: Mamba1Mixer, x: Tensor) -> Tensor:
    """What `mixer` gives for x.permute(2, 1, 0), in the layout of x.

    Args:
        mixer: of one direction or both, over the middle axis.
        x: (dim, L, M): M sequences of length L, each alone.

    Returns:
        (dim, L, M), as mixer(x.permute(2, 1, 0))[0].permute(2, 1, 0).
    """
    inner, gate = _product(mixer.in_proj.weight, x).chunk(2)
    exact = torch.promote_types(inner.dtype, torch.float32)
    ways = []
    for way in range(mixer.ways):
        mine = slice(way * mixer.inner, (way + 1) * mixer.inner)
        told = inner.flip(1) if way else inner
        told = F.silu(_causal(told, mixer.conv_weight[:, mine], mixer.conv_bias[mine]))
        low, b, c = _product(mixer.x_proj[way], told).split([mixer.rank, mixer.state, mixer.state])
        dt = _product(mixer.dt_proj[way], low).to(exact)
        dt = F.softplus(dt + mixer.dt_bias[mine].to(exact)[:, None, None])
        rates = -torch.exp(mixer.A_log[mine].to(exact))
        given = scan_across(told, dt, rates, b, c, mixer.D[mine])
        ways.append(given.flip(1) if way else given)
    y = ways[0] + ways[1] if mixer.ways == 2 else ways[0]
    return _product(mixer.out_proj.weight, y * F.silu(gate))


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """(O, I) by (I, L, M): (O, L, M)."""
    return torch.mm(weight, x.flatten(1)).unflatten(1, x.shape[1:])


def _causal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The depthwise convolution over the middle axis of (C, L, M); weight (taps, C)."""
    taps, weight = weight.shape[0], weight.to(x.dtype)[..., None, None]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    out = bias.to(x.dtype)[:, None, None] + x * weight[-1]
    for k in range(taps - 1):
        out = torch.addcmul(out, padded[:, k : k + x.shape[1]], weight[k])
    return out


def scan_across(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`selective_scan` over the middle axis, sequences innermost, from a state of zeros.

    Float32 at least; y has the dtype of `x`. Memory is O((E + N) * L * M), in training too. First
    derivatives only.

    Args:
        x, dt: (E, L, M) inputs and step sizes >= 0; A: (E, N) negative decay rates; D: (E,).
        B, C: (N, L, M) input and output maps.

    Returns:
        y (E, L, M).
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    u, steps, rates, b, c = (v.to(exact) for v in (x, dt, A, B, C))
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Across.apply(u * steps, steps, rates.t()[..., None].contiguous(), b, c)
        return (y + D.to(exact)[:, None, None] * u).to(x.dtype)


def _blocks(rates: Tensor, length: int, rows: int) -> int:
    """Steps of a block."""
    return min(length, max(1, _BLOCK // max(1, rates.numel() * rows)))


class _Across(torch.autograd.Function):
    """The scan of u = dt x. u, dt (E, L, M), a (N, E, 1), b and c (N, L, M).

    Inside, time leads: a block of states is (block, N, E, M).
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        length, rows = u.shape[1:]
        block = _blocks(a, length, rows)
        shape = (*a.shape[:2], rows)
        ins, steps, into, out = (v.transpose(0, 1) for v in (u, dt, b, c))
        fades, states = (u.new_empty(block, *shape) for _ in range(2))
        y, held, starts = torch.empty_like(u), u.new_zeros(shape), []
        for at in range(0, length, block):
            here = slice(at, at + block)
            size = min(block, length - at)
            decay, x = fades[:size], states[:size]
            starts.append(held)
            torch.mul(steps[here, None], a, out=decay).exp_()
            torch.mul(into[here, :, None], ins[here, None], out=x)
            _run(decay, x, held, 1)
            held = x[-1].clone()
            y[:, here] = x.mul_(out[here, :, None]).sum(1).transpose(0, 1)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(u, dt, a, b, c, torch.stack(starts))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return _adjoint(ctx.saved_tensors, dy)


def _adjoint(saved: tuple[Tensor, ...], dy: Tensor) -> tuple[Tensor, ...]:
    """Gradients of (u, dt, a, b, c), as in `selective_scan`.

    g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}, backwards; states are computed again block by block.
    """
    u, dt, a, b, c, starts = saved
    length, rows = u.shape[1:]
    block = _blocks(a, length, rows)
    ins, steps, into, out, given = (v.transpose(0, 1) for v in (u, dt, b, c, dy))
    du, ddt, db, dc = (torch.empty_like(v) for v in (u, dt, b, c))
    da = torch.zeros_like(a)
    fades, states, adjoint, work = (u.new_empty(block + 1, *a.shape[:2], rows) for _ in range(4))
    held = torch.zeros_like(states[0])
    for at in range((len(starts) - 1) * block, -1, -block):
        here = slice(at, at + block)
        size = min(block, length - at)
        step, put, said = (v[here, None] for v in (steps, ins, given))
        wide, read = (v[here, :, None] for v in (into, out))
        decay, x, g, free = fades[:size], states[1 : size + 1], adjoint[:size], work[:size]
        torch.mul(step, a, out=decay).exp_()
        fades[size] = 1  # what comes from later blocks is faded already
        states[0] = starts[at // block]
        torch.mul(wide, put, out=x)
        _run(decay, x, states[0], 1)
        torch.mul(read, said, out=g)
        _run(fades[1 : size + 1], g, held, 1, reverse=True)
        dc[:, here] = torch.mul(x, said, out=free).sum(2).transpose(0, 1)
        db[:, here] = torch.mul(g, put, out=free).sum(2).transpose(0, 1)
        du[:, here] = torch.mul(g, wide, out=free).sum(1).transpose(0, 1)
        held = g[0] * decay[0]
        g.mul_(decay).mul_(states[:size])  # the gradient of dt A
        ddt[:, here] = torch.mul(g, a, out=free).sum(1).transpose(0, 1)
        da += torch.mul(g, step, out=free).sum((0, 3))[..., None]
    return du, ddt, da, db, dc
