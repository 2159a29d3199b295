"""Legendre memory units: a sliding window of a few signals, kept as Legendre coefficients.

Sources: LMU (Voelker, Kajic and Eliasmith, NeurIPS 2019); Chilkuri and Eliasmith (arXiv
2102.11417: nothing is fed back into the memory, so that it is a convolution); LMUFormer (arXiv
2402.04882: ReLU, memory and window of 128). LMUFormer writes one scalar a token, a severe
bottleneck for the tokens of a ViT: here several heads write, each into a memory of its own. Its
batch norms and its convolutional channel mixer are left out; a layer norm stands before.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Mixer, Scan, StackEncoder, StackOptions, State, Time
from .longconv import DenseBlock, DenseSystem, check_block, convolve, silenced
from .registry import register_temporal


def legendre_memory(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """The memory of a window of `theta` tokens, by exact zero-order hold over one token.

    Continuous, A_ij = (2i+1)/theta * (-1 if i < j else (-1)^(i-j+1)) and B_i = (2i+1)(-1)^i/theta;
    discrete, exp(A) and A^-1 (exp(A) - I) B, here both from the exponential of one matrix, which
    needs no inverse.

    Returns:
        The discrete A (order, order) and B (order,), float64 on the CPU.
    """
    with torch.inference_mode(False), torch.no_grad():
        n = torch.arange(order, dtype=torch.float64, device="cpu")
        sign = 1 - 2 * (n % 2)
        below = -sign[:, None] * sign
        joint = torch.zeros(order + 1, order + 1, dtype=torch.float64, device="cpu")
        joint[:-1, :-1] = torch.where(n[:, None] < n, -torch.ones_like(below), below)
        joint[:-1, -1] = sign
        joint[:-1] *= ((2 * n + 1) / theta)[:, None]
        held = torch.linalg.matrix_exp(joint)
        return held[:-1, :-1].clone(), held[:-1, -1].clone()


@functools.lru_cache(maxsize=32)
def _tables(
    order: int, theta: float, length: int, dtype: torch.dtype, device: torch.device
) -> DenseBlock:
    """Tables over a block: constants, so their powers are taken once, and in float64."""
    with torch.inference_mode(False), torch.no_grad():
        A, B = legendre_memory(order, theta)
        reads = torch.eye(order, dtype=torch.float64, device="cpu")
        return DenseSystem(A[None], B[None], reads[None]).block(length).to(dtype, device)


class LMUMixer(Mixer):
    """u = ReLU(W_u x), memories m_t = A m_(t-1) + B u_t, out = W_o ReLU(W_m m + W_x x)."""

    def __init__(
        self,
        dim: int,
        memory: int,
        theta: float,
        heads: int,
        block: int | None,
        zero_init: bool,
    ) -> None:
        super().__init__()
        if min(memory, heads) < 1:
            raise InputError("memory and heads must be at least 1")
        if not (theta > 0 and math.isfinite(theta)):
            raise InputError(f"theta must be a positive number of tokens, not {theta}")
        check_block(block)
        self.memory, self.theta, self.block, self.zero_init = memory, float(theta), block, zero_init
        self.write = nn.Linear(dim, heads)
        self.read = nn.Linear(heads * memory, dim)
        self.direct = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's initialisation of linear layers, and an out projection of zeros."""
        for linear in (self.write, self.read, self.direct, self.out_proj):
            linear.reset_parameters()
        if self.zero_init:
            self.out_proj.weight.zero_()

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`. The state is the memories (B, heads, memory), float32 at least."""
        u = silenced(F.relu(self.write(x)), valid, state)
        exact = torch.promote_types(u.dtype, torch.float32)

        def tables(length: int) -> DenseBlock:
            return _tables(self.memory, self.theta, length, exact, u.device)

        m, state = convolve(u, tables, state, self.block)
        h = F.relu(self.read(m.flatten(2).to(u.dtype)) + self.direct(x))
        out: Tensor = self.out_proj(h)
        return out, state


@register_temporal("lmu")
class LMUEncoder(StackEncoder):
    """Legendre memories over a clip, each layer x + Mixer(LayerNorm(x)) (LMUFormer).

    Args:
        dim, layers, scan, bidirectional, time, gap: see `StackEncoder`; `time="step"` is refused,
            for the memory is made for one step.
        memory: Legendre coefficients of a head's window. theta: length of the window in tokens,
            which are frames under `scan="slot"` (the default here) and T * N of them under
            "raster": give theta = seconds * fps * N there.
        heads: signals that are written, each with a memory of its own (LMUFormer: 1).
        block: see `longconv.convolve`.
        zero_init: start with an out projection of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "LMUFormer, arXiv 2402.04882; LMU, NeurIPS 2019; parallel LMU, arXiv 2102.11417"
    summary = "Legendre coefficients of a sliding window, several signals side by side"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        memory: int = 128,
        theta: float = 128.0,
        heads: int = 8,
        block: int | None = None,
        scan: Scan = "slot",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__(
            dim,
            lambda: LMUMixer(dim, memory, theta, heads, block, zero_init),
            StackOptions(layers, scan, bidirectional, time, gap, zero_init),
            steps=False,
        )
