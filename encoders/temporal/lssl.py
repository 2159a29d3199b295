"""Linear state-space layers: every feature through a state space that starts as HiPPO-LegS.

Source: LSSL (Gu et al., arXiv 2110.13985): x' = A x + B u, y = C x + D u per feature, discretised
by the generalised bilinear transform, M outputs a feature, GELU, one linear layer over all of
them. HiPPO-LegS: Gu et al., arXiv 2008.07669.

The paper trains A within a family of structured matrices around HiPPO. Here A is any matrix whose
symmetric part is minus a diagonal minus a rank-one matrix, both positive: LegS is one, and all
are stable, so that no power of the discrete A grows whatever is learned. A and B are shared by the
features of a layer, which have steps of their own. Sizes are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Mixer, Scan, StackEncoder, StackOptions, State, Time
from .longconv import DenseSystem, check_block, check_steps, convolve, silenced
from .registry import register_temporal


def hippo_legs(size: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS as a time-invariant system.

    A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, 0 above; B_n = sqrt(2n+1).

    Returns:
        A (size, size) and B (size,), float64.
    """
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    return -(torch.outer(root, root).tril(-1) + torch.diag(n + 1)), root


def bilinear(A: Tensor, B: Tensor, step: Tensor, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
    """Generalised bilinear transform of x' = A x + B u.

    (I - alpha step A)^-1 (I + (1 - alpha) step A) and (I - alpha step A)^-1 step B; alpha 0 is
    Euler's method, 1 the backward one, 1/2 the bilinear transform.

    Args:
        A: (S, S). B: (S,). step: (G,) > 0.

    Returns:
        The discrete A (G, S, S) and B (G, S).
    """
    eye = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
    scaled = step[:, None, None] * A
    right = torch.cat([eye + (1 - alpha) * scaled, step[:, None, None] * B[:, None]], dim=-1)
    solved = torch.linalg.solve(eye - alpha * scaled, right)
    return solved[..., :-1], solved[..., -1]


class LSSLMixer(Mixer):
    """State space, skip, GELU and out projection; content-independent."""

    A_skew: Tensor
    A_rank: Tensor
    A_decay: Tensor
    B: Tensor
    log_step: Tensor

    def __init__(
        self,
        dim: int,
        state: int,
        channels: int,
        alpha: float,
        fixed: bool,
        dt_min: float,
        dt_max: float,
        block: int | None,
        zero_init: bool,
    ) -> None:
        super().__init__()
        if min(state, channels) < 1:
            raise InputError("state and channels must be at least 1")
        if not 0.5 <= alpha <= 1:
            raise InputError(f"alpha must be in [0.5, 1], where the layer is stable, not {alpha}")
        check_steps(dt_min, dt_max)
        check_block(block)
        self.alpha, self.block, self.zero_init = alpha, block, zero_init
        self.dt_min, self.dt_max = dt_min, dt_max
        for name, shape in (
            ("A_skew", (state, state)),  # read below its diagonal
            ("A_rank", (state,)),
            ("A_decay", (state,)),
            ("B", (state,)),
            ("log_step", (dim,)),
        ):
            self._own(name, torch.empty(shape), trained=not fixed)
        self.C = nn.Parameter(torch.empty(dim, channels, state))
        self.D = nn.Parameter(torch.empty(dim, channels))
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.out_proj = nn.Linear(dim * channels, dim, bias=False)
        self.reset_parameters()

    def _own(self, name: str, value: Tensor, trained: bool) -> None:
        if trained:
            weight = nn.Parameter(value)
            weight._no_weight_decay = True  # type: ignore[attr-defined]
            self.register_parameter(name, weight)
        else:
            self.register_buffer(name, value)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """HiPPO-LegS, steps log-uniform in [dt_min, dt_max], C and D normal, no output."""
        _, root = hippo_legs(self.B.shape[0])
        self.A_skew.copy_(-torch.outer(root, root).tril(-1) / 2)
        self.A_rank.copy_(root / math.sqrt(2))
        self.A_decay.fill_(math.log(0.5))
        self.B.copy_(root)
        self.log_step.uniform_(math.log(self.dt_min), math.log(self.dt_max))
        nn.init.normal_(self.C)
        nn.init.normal_(self.D)
        if self.zero_init:
            self.out_proj.weight.zero_()
        else:
            self.out_proj.reset_parameters()

    def system(self, dtype: torch.dtype) -> DenseSystem:
        """The discrete state spaces of all features, in `dtype`."""
        rank = self.A_rank.to(dtype)
        below = self.A_skew.to(dtype).tril(-1)
        A = below - below.mT - torch.outer(rank, rank) - torch.diag(self.A_decay.to(dtype).exp())
        made = bilinear(A, self.B.to(dtype), self.log_step.to(dtype).exp(), self.alpha)
        return DenseSystem(*made, self.C.to(dtype))

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`. The state is the features' states (B, D, S), float32 at least."""
        u = silenced(x, valid, state)
        exact = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            y, state = convolve(u, self.system(exact).block, state, self.block)
            y = F.gelu(y + self.D.to(exact) * u.to(exact)[..., None])
        out: Tensor = self.out_proj(y.flatten(2).to(x.dtype))
        return out, state


@register_temporal("lssl")
class LSSLEncoder(StackEncoder):
    """Linear state-space layers over a clip, each x + Mixer(LayerNorm(x)).

    Args:
        dim, layers, scan, bidirectional, time, gap: see `StackEncoder`; `time="step"` is refused,
            for every new step would be a matrix to invert.
        state: width S of a feature's state. channels: outputs M a feature.
        alpha: of the generalised bilinear transform, 1/2 to 1.
        fixed: keep A, B and the steps as they start (the paper's LSSL-f); else all is trained.
        dt_min, dt_max: range of the steps at the start; a feature remembers about 1/step tokens.
        block: see `longconv.convolve`.
        zero_init: start with an out projection of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "LSSL, arXiv 2110.13985"
    summary = "time-invariant state space from HiPPO-LegS, a convolution per feature"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        state: int = 64,
        channels: int = 1,
        alpha: float = 0.5,
        fixed: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        block: int | None = None,
        scan: Scan = "raster",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__(
            dim,
            lambda: LSSLMixer(dim, state, channels, alpha, fixed, dt_min, dt_max, block, zero_init),
            StackOptions(layers, scan, bidirectional, time, gap, zero_init),
            steps=False,
        )
