"""Complex diagonal state spaces (S4D), as convolutions and with a step that changes by token.

Source: S4D (Gu et al., arXiv 2206.11893): diagonal A in conjugate pairs, zero-order hold. The
tables are for `longconv.convolve`; `convolve_steps` is for irregular time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .longconv import Block


@dataclass(frozen=True)
class DiagonalSystem:
    """Complex diagonal systems under zero-order hold, in conjugate pairs: y = 2 Re(C h).

    `rate` (G, S) is the step times the continuous eigenvalue, real part negative: A = exp(rate).
    `gain` (G, S) is the continuous input weight over the eigenvalue: B = (exp(rate) - 1) gain.
    C is (G, M, S). All complex; the state that `convolve` carries is real, (B, G, 2 S).
    """

    rate: Tensor
    gain: Tensor
    C: Tensor

    def block(self, length: int) -> Block:
        """The tables over `length` tokens."""
        return _DiagonalBlock(self, length)

    def start(self, batch: int) -> Tensor:
        """A state of zeros (B, G, 2 S)."""
        groups, states = self.rate.shape
        return self.rate.real.new_zeros(batch, groups, 2 * states)


class _DiagonalBlock(Block):
    def __init__(self, system: DiagonalSystem, length: int) -> None:
        self.system = system
        ages = torch.arange(length + 1, device=system.rate.device)
        self.powers = (system.rate[:, None] * ages[:, None]).exp()  # (G, q + 1, S)
        left = self.powers[:, :-1] * (system.rate.expm1() * system.gain)[:, None]
        self.inputs = _unpaired(left)
        self.kernel = _readout(system.C) @ self.inputs.mT

    def outputs(self) -> Tensor:
        return _readout(self.system.C[:, None] * self.powers[:, 1:, None])

    def advance(self, held: Tensor, steps: int) -> Tensor:
        return _unpaired(_paired(held) * self.powers[:, steps, None])


def _paired(state: Tensor) -> Tensor:
    """Real (…, 2 S) to complex (…, S)."""
    return torch.view_as_complex(state.unflatten(-1, (-1, 2)).contiguous())


def _unpaired(state: Tensor) -> Tensor:
    return torch.view_as_real(state).flatten(-2)


def _readout(C: Tensor) -> Tensor:
    """Weights on a real state that give 2 Re(C h): (…, 2 S)."""
    return _unpaired(2 * C.conj().resolve_conj())


def convolve_steps(
    u: Tensor, scale: Tensor, system: DiagonalSystem, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Diagonal systems whose step changes from token to token: A_t = exp(scale_t rate), and B so.

    No convolution any more: a recurrence over about sqrt(L) blocks side by side, twice (once for
    the states between them). Exponentials are taken once a distinct step. Training keeps the
    states of all tokens, O(L G S) memory.

    Args:
        u: (B, L, G). scale: (B, L) >= 0, relative to the system's step; 0 skips a token.
        system: with G features. state: (B, G, 2 S) or None.

    Returns:
        y (B, L, G, M) and the state after the last token, as `convolve`.
    """
    batch, length, groups = u.shape
    exact = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        size = math.isqrt(max(length - 1, 0)) + 1
        tail = -length % size
        count = (length + tail) // size
        u = F.pad(u.to(exact), (0, 0, 0, tail)).view(batch, count, size, groups, 1)
        scale = F.pad(scale.to(exact), (0, tail)).view(batch, count, size)
        distinct, which = scale.unique(return_inverse=True)
        exponents = distinct[:, None, None] * system.rate
        decays, gains = exponents.exp(), exponents.expm1() * system.gain

        def step(held: Tensor, i: int) -> Tensor:
            """The i-th token of every block: (B, n, G, S) on."""
            now = which[:, :, i].flatten()
            decay = decays.index_select(0, now).view(held.shape)
            gain = gains.index_select(0, now).view(held.shape)
            return decay * held + gain * u[:, :, i]

        first = _paired(system.start(batch) if state is None else state.to(exact))
        added = torch.zeros_like(first)[:, None].expand(-1, count, -1, -1)
        before = [first]
        if count > 1:
            for i in range(size):
                added = step(added, i)
            kept = (scale.sum(2)[..., None, None] * system.rate).exp()
            for i in range(count - 1):
                before.append(kept[:, i] * before[-1] + added[:, i])
        held = torch.stack(before, dim=1)
        weights, outputs = _readout(system.C), []
        for i in range(size):
            held = step(held, i)
            outputs.append(torch.einsum("gms,bngs->bngm", weights, _unpaired(held)))
        y = torch.stack(outputs, dim=2).flatten(1, 2)[:, :length]
    return y, _unpaired(held[:, -1])
