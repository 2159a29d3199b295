"""Softmax attention over time, the strong baseline: per slot or over whole frames, and windowed.

The layer is the Transformer's (Vaswani et al., 2017): attention, then a feed-forward layer, each
behind a LayerNorm and a residual. Positions are rotary (RoFormer, arXiv 2104.09864), one a frame;
without them attention that reads both ways could not tell a clip from the reversed one. The
products themselves stand in `band.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .band import band_attention, full_attention, rotate
from .base import Mixer, Scan, StackEncoder, StackOptions, StackState, State, Time
from .registry import register_temporal

Position = Literal["rotary", "none"]


class FeedForward(Mixer):
    """Two linear layers with a GELU between them; looks at every token alone."""

    def __init__(self, dim: int, hidden: int, zero_init: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout, self.zero_init = nn.Dropout(dropout), zero_init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.up.reset_parameters()
        self.down.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`; nothing is carried."""
        out: Tensor = self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))
        return out, None


def with_feed_forward(
    make: Callable[[], Mixer], dim: int, layers: int, ffn: int, zero_init: bool
) -> tuple[Callable[[], Mixer], int]:
    """What a `StackEncoder` needs for mixer and feed-forward layers in turn: `make`, `layers`.

    `ffn` is the hidden width as a multiple of `dim`; 0 leaves the feed-forward layers out.
    """
    if ffn < 0:
        raise InputError(f"ffn must be 0 or more times the token width, not {ffn}")
    if ffn == 0 or layers < 1:
        return make, layers
    turns = itertools.cycle((make, lambda: FeedForward(dim, ffn * dim, zero_init)))
    return lambda: next(turns)(), 2 * layers


def heads_of(dim: int, head_dim: int) -> int:
    """How many heads of `head_dim` make up `dim`; InputError where they do not."""
    if head_dim < 1 or dim % head_dim:
        raise InputError(f"head_dim {head_dim} must divide the token width {dim}")
    return dim // head_dim


class AttentionMixer(Mixer):
    """Multi-head attention over frames; its encoder hands it (B, T, N, D), frame by frame.

    Slots apart are as good as heads: they share the mask. `valid` is (B, T, 1) and `scale`
    (B, T, ways). The state is the rotated keys and the values of the last `window` - 1 frames
    and the position of the last frame.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        window: int | None,
        rotary: bool,
        together: bool,
        bidirectional: bool,
        zero_init: bool,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise InputError(f"window must be at least 1 frame, not {window}")
        if rotary and head_dim % 2:
            raise InputError(f"rotary positions need an even head_dim, not {head_dim}")
        self.heads, self.window = heads_of(dim, head_dim), window
        self.rotary, self.together = rotary, together
        self.ways, self.zero_init = 1 + bidirectional, zero_init
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in_proj.in_features)
        nn.init.uniform_(self.in_proj.weight, -bound, bound)
        if self.zero_init:
            nn.init.zeros_(self.out_proj.weight)
        else:
            self.out_proj.reset_parameters()

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer` and the head of this class. Padded frames are no keys."""
        batch, frames, slots, _ = x.shape
        real = None if valid is None else valid[..., 0]
        if real is not None:
            x = x.masked_fill(~real[..., None, None], 0)
        made = self.in_proj(x).unflatten(-1, (3, self.heads, -1))  # (B, T, N, 3, heads, d)
        if self.together:
            q, k, v = made.permute(3, 0, 4, 1, 2, 5).unbind(0)
        else:
            q, k, v = made.permute(3, 0, 2, 4, 1, 5).flatten(2, 3)[..., None, :].unbind(0)

        step = x.new_ones(1, frames, dtype=torch.float64) if scale is None else scale[..., 0]
        position = step.double().cumsum(1).expand(batch, -1)
        if state is not None:
            position = position + state[2][:, None]
        if self.rotary:
            q, k = rotate(q, position), rotate(k, position)
        if state is not None:
            k, v = torch.cat([state[0].to(k), k], 2), torch.cat([state[1].to(v), v], 2)

        causal, after = self.ways == 1, None
        if self.window is None:
            out = full_attention(q, k, v, causal=causal, valid=real)
        else:
            out = band_attention(q, k, v, self.window, causal=causal, valid=real)
            if causal:
                gone = max(0, k.shape[2] - self.window + 1)
                after = (k[:, :, gone:].clone(), v[:, :, gone:].clone(), position[:, -1].clone())
        if self.together:
            out = out.permute(0, 2, 3, 1, 4).flatten(3)
        else:
            out = out[..., 0, :].unflatten(1, (slots, self.heads)).permute(0, 3, 1, 2, 4).flatten(3)
        change: Tensor = self.out_proj(out)
        return change, after


@register_temporal("attention")
class AttentionEncoder(StackEncoder):
    """Transformer layers over time, x + Attention(LN(x)) and x + FFN(LN(x)).

    Causal attention with a window streams with the keys and values of `window` - 1 frames. Causal
    attention without one does not stream: every frame stays visible, so its state would grow.

    Args:
        dim, layers, time, gap: see `StackEncoder`; under `time="step"` the rotary position
            advances by a frame's gap instead of by 1, so that attention sees true seconds.
        head_dim: width of a head, a divisor of `dim`; even under rotary positions.
        window: frames seen in a direction, the frame itself among them (so 2 * window - 1 when
            `bidirectional`); None sees the whole clip.
        ffn: hidden width of the feed-forward layer as a multiple of `dim`; 0 for none.
        position: "rotary", or "none", which sees a clip as a set of frames.
        scan: "slot" lets a spatial slot see itself over time; "raster" lets every token of a
            frame see every token of the frames in its reach.
        bidirectional: see later frames too; else a frame sees its own and earlier ones.
        zero_init: start with out projections of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, an unknown scan, time or position, or `time="step"`
            without rotary positions.
    """

    paper = "arXiv 1706.03762 (attention); 2104.09864 (rotary positions)"
    summary = "softmax attention per slot over time or over whole frames, full or windowed"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        head_dim: int = 64,
        window: int | None = None,
        ffn: int = 4,
        position: Position = "rotary",
        scan: Scan = "slot",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        if position not in ("rotary", "none"):
            raise InputError(f"position must be 'rotary' or 'none', not {position!r}")
        rotary, together = position == "rotary", scan == "raster"
        make, count = with_feed_forward(
            lambda: AttentionMixer(
                dim, head_dim, window, rotary, together, bidirectional, zero_init
            ),
            dim,
            layers,
            ffn,
            zero_init,
        )
        super().__init__(
            dim,
            make,
            StackOptions(count, scan, bidirectional, time, gap, zero_init),
            own_ways=True,
            steps=rotary,
        )
        self.window = window

    @property
    def streams(self) -> bool:
        return super().streams and self.window is not None

    def stream(
        self, x: Tensor, seconds: Tensor, state: StackState | None = None
    ) -> tuple[Tensor, StackState]:
        """The next frames of a video; see `TemporalEncoder.stream`."""
        if self.causal and self.window is None:
            raise InputError(
                f"{self.name} without a window keeps every frame and cannot stream with a state "
                "that does not grow: give window=FRAMES"
            )
        return super().stream(x, seconds, state)

    # The mixer needs to know frames from slots, so the tokens stay as they are.
    def _laid_out(
        self, x: Tensor, mask: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return x, None if mask is None else mask[..., None], scale

    def _back(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        return tokens
