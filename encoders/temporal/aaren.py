"""Aaren: softmax attention of one learned query to every prefix, computed as a scan.

Source: "Attention as an RNN" (arXiv 2405.13956). With scores s_t = q . k_t / sqrt(d) the output
at t is the softmax-weighted mean of v_1 .. v_t. What a stretch of tokens adds is (m, u, w) =
(max s, sum e^(s - m), sum e^(s - m) v), and two stretches merge by

    m = max(m_A, m_B),  u = u_A e^(m_A - m) + u_B e^(m_B - m),  w likewise,

which is associative, so all prefixes come from a scan, and a stream needs one (m, u, w) a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .attention import heads_of, with_feed_forward
from .base import BothWays, Mixer, Scan, StackEncoder, StackOptions, State, Time
from .registry import register_temporal

#: Maximum (...), denominator (...) and numerator (..., d) of one or many stretches of tokens.
Summary = tuple[Tensor, Tensor, Tensor]


def _floor(m: Tensor) -> Tensor:
    """Maxima with 0 for the -inf of a stretch without any real token: -inf - -inf is NaN."""
    return m.masked_fill(m == -math.inf, 0)


def _merge(a: Summary, b: Summary) -> Summary:
    m = torch.maximum(a[0], b[0])
    # Any m gives the same w / u, so no gradient need go through it.
    top = _floor(m).detach()
    left, right = torch.exp(a[0] - top), torch.exp(b[0] - top)
    return m, a[1] * left + b[1] * right, a[2] * left[..., None] + b[2] * right[..., None]


def _prefixes(s: Tensor, u: Tensor, w: Tensor, chunk: int) -> Summary:
    """Summaries of all prefixes of a row of stretches: s, u (..., L), w (..., L, d).

    Chunks by products with the weights e^(s_j - m_i), j <= i; then what stands before a chunk,
    by the same function over the chunks' own summaries. O(L * chunk), log_chunk(L) deep.
    """
    length = s.shape[-1]
    size = min(chunk, length)
    tail = -length % size
    if tail:
        s, u = F.pad(s, (0, tail), value=-math.inf), F.pad(u, (0, tail))
        w = F.pad(w, (0, 0, 0, tail))
    s, u, w = (t.unflatten(s.dim() - 1, (-1, size)) for t in (s, u, w))
    m = s.detach().cummax(-1).values
    later = torch.ones(size, size, dtype=torch.bool, device=s.device).triu(1)
    exponent = s[..., None, :] - _floor(m)[..., None]
    weights = exponent.masked_fill(later, -math.inf).exp()  # (..., chunks, size, size)
    own = m, torch.matmul(weights, u[..., None])[..., 0], torch.matmul(weights, w)
    if length > size:
        last = own[0][..., -1], own[1][..., -1], own[2][..., -1, :]
        m0, u0, w0 = _prefixes(*last, chunk)
        before = (
            F.pad(m0[..., :-1], (1, 0), value=-math.inf)[..., None],
            F.pad(u0[..., :-1], (1, 0))[..., None],
            F.pad(w0[..., :-1, :], (0, 0, 1, 0))[..., None, :],
        )
        own = _merge(before, own)
    at = s.dim() - 2
    m, u, w = (t.flatten(at, at + 1) for t in own)
    return m[..., :length], u[..., :length], w[..., :length, :]


def prefix_attention(
    scores: Tensor, values: Tensor, chunk: int = 64, state: Summary | None = None
) -> tuple[Tensor, Summary]:
    """Softmax-weighted mean of the values of every prefix.

    Args:
        scores: (B, H, L), -inf at tokens that do not count. values: (B, H, L, d).
        chunk: length of the chunks, at least 2; speed only.
        state: summary of the tokens before, as returned here.

    Returns:
        (B, H, L, d), 0 where nothing counts yet, and the summary after the last token: m and u
        (B, H), w (B, H, d) in float64, so that a long stream goes on counting.

    Raises:
        InputError: shapes that do not fit, or a chunk below 2.
    """
    if scores.dim() != 3 or values.shape[:-1] != scores.shape or not scores.shape[-1]:
        raise InputError(
            "scores must be (B, H, L) and values (B, H, L, d) with L > 0, not "
            f"{tuple(scores.shape)} and {tuple(values.shape)}"
        )
    if chunk < 2:
        raise InputError(f"chunk must be at least 2, not {chunk}")
    exact = torch.promote_types(torch.promote_types(scores.dtype, values.dtype), torch.float32)
    with torch.autocast(scores.device.type, enabled=False):
        s, v = scores.to(exact), values.to(exact)
        m, u, w = _prefixes(s, torch.ones_like(s), v, chunk)
        after = m[..., -1].double(), u[..., -1].double(), w[..., -1, :].double()
        if state is not None:
            after = _merge(state, after)
            m0, u0, w0 = (t.to(exact) for t in state)
            m, u, w = _merge((m0[..., None], u0[..., None], w0[..., None, :]), (m, u, w))
        mean = w / u.masked_fill(u == 0, 1)[..., None]
    return mean.to(values.dtype), after


class AarenMixer(Mixer):
    """Prefix attention with one learned query a head."""

    def __init__(self, dim: int, head_dim: int, chunk: int, zero_init: bool) -> None:
        super().__init__()
        if chunk < 2:
            raise InputError(f"chunk must be at least 2, not {chunk}")
        self.heads, self.chunk, self.zero_init = heads_of(dim, head_dim), chunk, zero_init
        self.query = nn.Parameter(torch.empty(self.heads, head_dim))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.query)
        for layer in (self.key, self.value, self.out_proj):
            layer.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.out_proj.weight)

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`. The state is (m, u, w) of the tokens so far, D + 2 * heads numbers.

        A token of step size a counts a times: log a is added to its score (ours).
        """
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0)
        # The query is the same for all tokens, so q . (W x) is (q W) . x: one row a head.
        width = self.query.shape[1]
        row = (self.query[..., None] * self.key.weight.unflatten(0, (-1, width))).sum(1)
        scores = F.linear(x, row / math.sqrt(width)).transpose(1, 2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if scale is not None:
            scores = scores + scale[..., 0].log()[:, None].to(scores.dtype)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None], -math.inf)
        values = self.value(x).unflatten(-1, (self.heads, width)).transpose(1, 2)
        mean, after = prefix_attention(scores, values, self.chunk, state)
        change: Tensor = self.out_proj(mean.transpose(1, 2).flatten(2))
        return change, after


@register_temporal("aaren")
class AarenEncoder(StackEncoder):
    """Layers of prefix attention and feed-forward, x + Aaren(LN(x)) and x + FFN(LN(x)).

    The query is learned and the same at every token, so a layer is a running summary of the
    clip: cheap and streamable, but less choosy than attention; hence the feed-forward layers.

    Args:
        dim, layers, time, gap: see `StackEncoder`; under `time="step"` a frame counts by its gap.
        head_dim: width of a head, a divisor of `dim`.
        ffn: hidden width of the feed-forward layer as a multiple of `dim`; 0 for none.
        chunk: length of the chunks of the scan, at least 2; speed only.
        scan: see `StackEncoder`.
        bidirectional: a second scan with weights of its own reads backwards (the paper's, which
            is an RNN, reads forwards only).
        zero_init: start with out projections of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "Attention as an RNN, arXiv 2405.13956"
    summary = "softmax attention of a learned query to every prefix, as a scan"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        head_dim: int = 64,
        ffn: int = 4,
        chunk: int = 64,
        scan: Scan = "slot",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        def mixer() -> Mixer:
            return AarenMixer(dim, head_dim, chunk, zero_init)

        make, count = with_feed_forward(
            (lambda: BothWays(mixer)) if bidirectional else mixer, dim, layers, ffn, zero_init
        )
        super().__init__(
            dim,
            make,
            StackOptions(count, scan, bidirectional, time, gap, zero_init),
            own_ways=True,
        )
