"""No temporal encoder: the control that every other one is compared with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import TemporalEncoder
from .registry import register_temporal


@register_temporal("identity")
class IdentityEncoder(TemporalEncoder):
    """Give the tokens back untouched (the same tensor)."""

    summary = "no mixing over time"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def reset_parameters(self) -> None:
        """Nothing to reset; here so that every encoder can be asked."""

    @property
    def causal(self) -> bool:
        return True

    @property
    def streams(self) -> bool:
        return True

    def stream(self, x: Tensor, seconds: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Give the frames back; there is no state."""
        return self(x, seconds), None

    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `x` (B, T, N, D)."""
        self.check(x, seconds, mask)
        return x
