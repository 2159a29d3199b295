"""S-Mamba's layer over a clip: two independent Mambas, one each way, and a feed-forward layer.

Source: S-Mamba (arXiv 2403.11144), the encoder layer: x + M_f(x) + flip(M_b(flip(x))), then
x + FFN(x). Its tokens are the variates of a time series; here they are those of a video, so its
instance norm, its embedding of whole series and its forecasting head have no place.

The paper normalises after each sum. Then no initialisation makes the module the identity, and so
the norm stands before each part here, as in every encoder of this family; `post_norm=True` gives
the paper's order.
"""

from __future__ import annotations

from torch import Tensor, nn

from vidllm.errors import InputError

from .attention import FeedForward
from .base import BothWays, Mixer, Scan, StackEncoder, StackOptions, State, Time
from .mamba import Mamba1Mixer
from .registry import register_temporal


class Dropped(Mixer):
    """Another mixer and dropout on what it gives."""

    def __init__(self, mixer: Mixer, dropout: float) -> None:
        super().__init__()
        self.mixer, self.dropout, self.ways = mixer, nn.Dropout(dropout), mixer.ways

    def reset_parameters(self) -> None:
        self.mixer.reset_parameters()

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`."""
        change, state = self.mixer(x, valid, scale, state)
        return self.dropout(change), state


class PostNorm(Mixer):
    """Another mixer in the order LayerNorm(x + mixer(x)), given as the change to x."""

    def __init__(self, mixer: Mixer, dim: int) -> None:
        super().__init__()
        self.mixer, self.norm, self.ways = mixer, nn.LayerNorm(dim), mixer.ways

    def reset_parameters(self) -> None:
        self.mixer.reset_parameters()
        self.norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`."""
        change, state = self.mixer(x, valid, scale, state)
        return self.norm(x + change) - x, state


class _NoNorm(nn.Identity):
    def reset_parameters(self) -> None:
        """Nothing to reset."""


@register_temporal("s-mamba")
class SMambaEncoder(StackEncoder):
    """S-Mamba's layers over a clip, each x + M_f(x) + flip(M_b(flip(x))), then x + FFN(x).

    Args:
        dim, scan, bidirectional, time, gap: see `StackEncoder`; the directions share nothing.
        layers: pairs of Mamba and feed-forward layer.
        state, expand, conv: see `Mamba1Mixer`; expand 1 and conv 2 are the authors', state 16 is
            Mamba's.
        hidden: width of the feed-forward layer, None for 4 * dim.
        dropout: after the Mambas and in the feed-forward layer.
        post_norm: the paper's order, LayerNorm(x + part(x)); not the identity at step 0.
        zero_init: start with projections of zeros at the end of every part, so that step 0 is the
            identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "S-Mamba, arXiv 2403.11144"
    summary = "two independent Mambas, one each way, and a feed-forward layer"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        state: int = 16,
        expand: int = 1,
        conv: int = 2,
        hidden: int | None = None,
        dropout: float = 0.0,
        scan: Scan = "raster",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        post_norm: bool = False,
        zero_init: bool = True,
    ) -> None:
        width = 4 * dim if hidden is None else hidden
        if width < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"hidden must be at least 1 and dropout in [0, 1), not {width} and {dropout}"
            )

        def mamba() -> Mixer:
            return Mamba1Mixer(dim, state, expand, conv, zero_init=zero_init)

        count = 0

        def make() -> Mixer:  # in turn: both ways of Mamba, the feed-forward layer
            nonlocal count
            count += 1
            part: Mixer
            if count % 2 == 0:
                part = FeedForward(dim, width, zero_init, dropout)
            else:
                part = Dropped(BothWays(mamba) if bidirectional else mamba(), dropout)
            return PostNorm(part, dim) if post_norm else part

        super().__init__(
            dim,
            make,
            StackOptions(2 * layers, scan, bidirectional, time, gap, zero_init),
            own_ways=True,
        )
        if post_norm:
            self.norms = nn.ModuleList(_NoNorm() for _ in self.mixers)
