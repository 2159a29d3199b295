"""Linear time-invariant state spaces as long convolutions, in blocks with a carried state.

Every feature g has a system of its own, one input and M outputs wide:

    h_t = A h_{t-1} + B u_t,    y_t = C h_t,    so that    y = K * u with K_k = C A^k B.

`convolve` gives what running it token by token gives, from four tables over a block of q
tokens: the kernel K (inside the block), A^j B (what an input leaves in the state at the end),
C A^(i+1) (what the state before adds to an output), and A^q (from block to block). The cost is
linear in the length, nothing is longer than a block, and a stream is the same with a state given.

Inside a block the convolution is a product with the q x q Toeplitz matrix of K up to 128 tokens
(there faster than an FFT, and strictly causal: rounding of later tokens cannot leak into earlier
outputs), and an FFT of 2q points above. One block as long as the sequence is the single FFT
convolution of the papers.

Sources: LSSL (arXiv 2110.13985, section 3: the recurrent and the convolutional view); H3 (arXiv
2212.14052, section 4: FFT convolution in blocks with state passing); S4D (arXiv 2206.11893).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vidllm.errors import InputError

_TOEPLITZ = 128  # tokens: longest block that is a matrix product
_SHORTEST = 16  # tokens: shortest block that is chosen here


class Block(ABC):
    """What a system does to a block of tokens at once, as tables.

    `inputs` (G, q, S): row j is A^j B. `kernel` (G, M, q): C A^k B. The state is real; a complex
    one stands as (real, imaginary) pairs.
    """

    inputs: Tensor
    kernel: Tensor

    @abstractmethod
    def outputs(self) -> Tensor:
        """(G, q, M, S): row i is C A^(i+1)."""

    @abstractmethod
    def advance(self, held: Tensor, steps: int) -> Tensor:
        """A^steps of a state (G, B, S), with at most q steps."""


@dataclass(frozen=True)
class DenseSystem:
    """Full transition matrices: A (G, S, S), B (G, S), C (G, M, S), real and discrete."""

    A: Tensor
    B: Tensor
    C: Tensor

    def block(self, length: int) -> DenseBlock:
        """The tables over `length` tokens."""
        return DenseBlock(self, length)


class DenseBlock(Block):
    """Tables of a `DenseSystem`; powers by squaring, what they are applied to by doubling."""

    def __init__(self, system: DenseSystem, length: int) -> None:
        self.length, self.C = length, system.C
        self.squares = [system.A]  # A^1, A^2, A^4, …
        for _ in range(length.bit_length() - 1):
            self.squares.append(self.squares[-1] @ self.squares[-1])
        turned = [square.mT for square in self.squares]
        self.inputs = _doubled(system.B[:, None], turned, length)[:, :, 0]
        self.kernel = system.C @ self.inputs.mT
        self._outputs: Tensor | None = None

    def outputs(self) -> Tensor:
        if self._outputs is not None:
            return self._outputs
        return _doubled(self.C @ self.squares[0], self.squares, self.length)

    def advance(self, held: Tensor, steps: int) -> Tensor:
        for bit, square in enumerate(self.squares):
            if steps >> bit & 1:
                held = held @ square.mT
        return held

    def to(self, dtype: torch.dtype, device: torch.device) -> DenseBlock:
        """All tables as `dtype` on `device`."""
        moved = copy.copy(self)
        moved.C = self.C.to(device, dtype)
        moved.squares = [square.to(device, dtype) for square in self.squares]
        moved.inputs = self.inputs.to(device, dtype)
        moved.kernel = self.kernel.to(device, dtype)
        if self.length <= _TOEPLITZ:  # longer ones are large: taken again when needed
            moved._outputs = self.outputs().to(device, dtype)
        return moved


def _doubled(rows: Tensor, squares: list[Tensor], length: int) -> Tensor:
    """(G, length, M, S): rows A^i for `rows` (G, M, S), doubling their number with every square."""
    width = rows.shape[1]
    for square in squares:
        if rows.shape[1] >= width * length:
            break
        rows = torch.cat([rows, rows @ square], dim=1)
    return rows.unflatten(1, (-1, width))[:, :length]


def check_block(block: int | None) -> None:
    """Raise InputError unless `block` is a length or None."""
    if block is not None and block < 1:
        raise InputError(f"block must be at least 1 token or None, not {block}")


def check_steps(low: float, high: float) -> None:
    """Raise InputError unless 0 < dt_min <= dt_max."""
    if not (0 < low <= high and math.isfinite(high)):
        raise InputError(f"0 < dt_min <= dt_max must hold, not {low} and {high}")


def silenced(x: Tensor, valid: Tensor | None, state: object) -> Tensor:
    """`x` (B, L, D) with zeros at padded tokens: at the edges of a sequence that skips them.

    Before the first real token zeros leave a zero state zero; after the last nothing is read.

    Raises:
        InputError: padding where a state comes in: zeros would let that state decay.
    """
    if valid is None:
        return x
    if state is not None:
        raise InputError("a sequence that continues a state takes no padding: give real tokens")
    return x.masked_fill(~valid[..., None], 0)


def convolve(
    u: Tensor,
    tables: Callable[[int], Block],
    state: Tensor | None = None,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The outputs of the systems by convolutions over blocks of tokens.

    Args:
        u: (B, L, G) inputs, a feature a system; any number of features where one system serves all.
        tables: makes the tables over a number of tokens, as `DenseSystem.block`.
        state: (B, G, S) before the first token, zeros when None.
        block: tokens of a block, None for about sqrt(L) (16 to 128); speed and memory only.

    Returns:
        y (B, L, G, M) and the state after the last token (B, G, S), float32 at least.
    """
    length = u.shape[1]
    size = min(block or _usual_block(length), length)
    exact = torch.promote_types(u.dtype, torch.float32)
    with torch.autocast(u.device.type, enabled=False):
        made = tables(size)
        v = u.to(exact).permute(2, 0, 1)
        held = None if state is None else state.to(exact).transpose(0, 1)
        shared = made.inputs.shape[0] == 1 < v.shape[0]
        if shared:  # one system for all features: they are rows of its batch
            shape = v.shape[:2]
            v = v.flatten(0, 1)[None]
            held = None if held is None else held.flatten(0, 1)[None]
        shown = made.outputs() if held is not None or length > size else None
        rest = length % size  # tokens before the first whole block
        parts = []
        if rest:
            y, held = _run(v[:, :, None, :rest], made, held, shown)
            parts.append(y)
        y, held = _run(v[..., rest:].unflatten(-1, (-1, size)), made, held, shown)
        y = torch.cat([*parts, y], dim=2) if parts else y
        if shared:
            y, held = y[0].unflatten(0, shape), held[0].unflatten(0, shape)
    return y.permute(1, 2, 0, 3), held.transpose(0, 1)


def _usual_block(length: int) -> int:
    near = 2 ** round(math.log2(max(length, 1)) / 2)
    return max(_SHORTEST, min(_TOEPLITZ, near))


def _run(
    v: Tensor, tables: Block, held: Tensor | None, shown: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Blocks (G, B, n, r) after the state `held` (G, B, S): outputs (G, B, n r, M) and state.

    `shown` is `tables.outputs()`, None where there is one block and no state.
    """
    groups, batch, count, size = v.shape
    y = _inside(v, tables.kernel[..., :size])
    added = v.flatten(1, 2) @ tables.inputs[:, :size].flip(1)
    added = added.view(groups, batch, count, -1)
    if shown is None or (count == 1 and held is None):
        return y.flatten(2, 3), added[:, :, 0]
    held = torch.zeros_like(added[:, :, 0]) if held is None else held
    before = []
    for i in range(count):
        before.append(held)
        held = tables.advance(held, size) + added[:, :, i]
    old = torch.stack(before, dim=2).flatten(1, 2) @ shown[:, :size].flatten(1, 2).mT
    return (y + old.view(y.shape)).flatten(2, 3), held


def _inside(v: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of every block: v (G, B, n, r) with (G, M, r) to (G, B, n, r, M)."""
    groups, batch, count, size = v.shape
    if size > _TOEPLITZ:
        waves = torch.fft.rfft(v, 2 * size)[..., None, :]
        waves = waves * torch.fft.rfft(kernel, 2 * size)[:, None, None]
        return torch.fft.irfft(waves, 2 * size)[..., :size].transpose(-1, -2)
    matrix = F.pad(kernel, (size - 1, 0)).unfold(-1, size, 1).flip(-2)  # (G, M, from, to)
    matrix = matrix.permute(0, 2, 3, 1).reshape(groups, size, -1)
    return (v.flatten(1, 2) @ matrix).view(groups, batch, count, size, -1)


def fir(x: Tensor, taps: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal convolution with a few taps a feature: y_t = sum_k taps_k x_(t-k).

    It is the state space whose A shifts the last K inputs by one and whose C are the taps.

    Args:
        x: (B, L, D). taps: (D, K). tail: (B, K-1, D) the inputs before, zeros when None.

    Returns:
        (B, L, D) and the tail for what follows, float32 at least.
    """
    batch, length, dim = x.shape
    count = taps.shape[1]
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, taps = x.to(exact), taps.to(exact)
        if tail is None:
            tail = x.new_zeros(batch, count - 1, dim)
        x = torch.cat([tail.to(exact), x], dim=1)
        size = min(max(count, _SHORTEST), length)
        width = size + count - 1  # inputs that a block of `size` outputs reads
        windows = F.pad(x, (0, 0, 0, -length % size)).permute(2, 0, 1).unfold(-1, width, size)
        matrix = F.pad(taps, (size - 1, size - 1)).unfold(-1, size, 1).flip(-2)
        y = windows.reshape(dim, -1, width) @ matrix  # (D, B n, size)
        y = y.view(dim, batch, -1)[..., :length].permute(1, 2, 0)
    return y, x[:, length:].clone()
