"""MambaMixer over a clip: selective mixing of tokens over time, and of channels in every frame.

Source: MambaMixer (arXiv 2403.19888); no official code was published. Its block is a selective
token mixer (an S6 over the tokens), a selective channel mixer (a bidirectional S6 over the
transposed matrix: channels are the sequence, tokens the features), and inputs that are learned
averages of what earlier layers gave, with x_T^0 = x_C^0 = the input and layers l = 1..L:

    token mixer's input    sum_{i<l}  alpha_{l,i} yT_i + sum_{i<l} beta_{l,i}  yC_i
    channel mixer's input  sum_{i<=l} theta_{l,i} yT_i + sum_{i<l} gamma_{l,i} yC_i

These equations are taken from the paper's summaries, not read in its full text. Ours:

- Each mixer keeps a residual, y = input + Mixer(LayerNorm(input)), and the averages start as a
  chain (beta_{l,l-1} = theta_{l,l} = 1, all others 0), so that step 0 is the identity.
- The features of the channel mixer are the tokens of one frame, so that their number does not
  depend on the clip and no frame sees another; with one direction over time the whole is causal
  and streams. Its width `slots` is fixed with the weights: a frame of another number of tokens is
  resampled to it in raster order, and the change is resampled back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import Scan, StackEncoder, StackOptions, State, Time
from .mamba import Mamba1Mixer
from .mambamixer_across import mix_across, tiles
from .registry import register_temporal


class ChannelMixer(nn.Module):
    """Bidirectional S6 over the channels of a frame; its tokens are the features.

    Args:
        slots: tokens a frame that are the features; state, expand, conv: see `Mamba1Mixer`.
    """

    def __init__(self, slots: int, state: int, expand: int, conv: int, zero_init: bool) -> None:
        super().__init__()
        self.slots = slots
        self.mixer = Mamba1Mixer(
            slots, state, expand, conv, bidirectional=True, zero_init=zero_init
        )

    def forward(self, x: Tensor) -> Tensor:
        """The change (B, T, N, D) for normed tokens (B, T, N, D), every frame for itself."""
        batch, frames, count, dim = x.shape
        across = x.reshape(batch * frames, count, dim).transpose(1, 2)
        change = self._mixed(_resampled(across, self.slots))
        return _resampled(change, count).transpose(1, 2).view(batch, frames, count, dim)

    def _mixed(self, x: Tensor) -> Tensor:
        """The mixer over sequences (M, D, slots), in the layout that is faster."""
        parts = tiles(x, self.mixer)
        if not parts:
            change: Tensor = self.mixer(x)[0]
            return change
        given = x.permute(2, 1, 0).chunk(parts, dim=2)
        return torch.cat([mix_across(self.mixer, part) for part in given], dim=2).permute(2, 1, 0)


def _resampled(x: Tensor, count: int) -> Tensor:
    """(B, D, N) to (B, D, count): means of neighbours for fewer, linear between them for more."""
    if x.shape[-1] == count:
        return x
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    if count < x.shape[-1]:
        return F.adaptive_avg_pool1d(exact, count).to(x.dtype)
    return F.interpolate(exact, size=count, mode="linear", align_corners=False).to(x.dtype)


def _averaged(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the outputs."""
    return sum(
        (w.to(y.dtype) * y for w, y in zip(weights[1:], outputs[1:], strict=True)),
        start=weights[0].to(outputs[0].dtype) * outputs[0],
    )


@register_temporal("mambamixer")
class MambaMixerEncoder(StackEncoder):
    """Layers of a selective token mixer over the clip and a selective channel mixer in a frame.

    Args:
        dim, layers, scan, bidirectional, time, gap: see `StackEncoder`; they are the token
            mixer's. The channels are always mixed both ways.
        slots: width of the channel mixer, the tokens of a frame; give your frames' own number for
            the paper's form, others are resampled.
        state, expand, conv: see `Mamba1Mixer`, for both mixers.
        zero_init: start with out projections of zeros, so that step 0 is the identity.

    Raises:
        InputError: sizes that do not fit, or an unknown scan or time.
    """

    paper = "MambaMixer, arXiv 2403.19888"
    summary = "selective mixing of tokens over time and of channels in a frame, layers averaged"

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        slots: int = 64,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        scan: Scan = "raster",
        bidirectional: bool = True,
        time: Time = "none",
        gap: float | None = None,
        zero_init: bool = True,
    ) -> None:
        if slots < 1:
            raise InputError(f"slots must be at least 1, not {slots}")
        super().__init__(
            dim,
            lambda: Mamba1Mixer(
                dim, state, expand, conv, bidirectional=bidirectional, zero_init=zero_init
            ),
            StackOptions(layers, scan, bidirectional, time, gap, zero_init),
            own_ways=True,
        )
        self.channel_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.channel_mixers = nn.ModuleList(
            ChannelMixer(slots, state, expand, conv, zero_init) for _ in range(layers)
        )
        # For layer l (from 0) over the outputs 0..l, the input being output 0.
        self.alpha, self.beta, self.theta, self.gamma = (
            nn.ParameterList(nn.Parameter(torch.empty(i + 1 + more)) for i in range(layers))
            for more in (0, 0, 1, 0)
        )
        self._chain()

    @torch.no_grad()
    def _chain(self) -> None:
        """Averages that pass on what came last."""
        for group, last in ((self.alpha, 0), (self.beta, 1), (self.theta, 1), (self.gamma, 0)):
            for weights in group:
                weights.zero_()
                weights[-1] = last

    def reset_parameters(self) -> None:
        """Give every part its own initialisation again (after a general initialiser)."""
        super().reset_parameters()
        for norm, channels in zip(self.channel_norms, self.channel_mixers, strict=True):
            norm.reset_parameters()  # type: ignore[operator]
            channels.mixer.reset_parameters()  # type: ignore[union-attr, operator]
        self._chain()

    def _layers(
        self,
        x: Tensor,
        mask: Tensor | None,
        scale: Tensor | None,
        before: Sequence[State] | None,
    ) -> tuple[Tensor, list[State]]:
        by_token, by_channel = [x], [x]
        after: list[State] = []
        for i, (norm, mixer) in enumerate(zip(self.norms, self.mixers, strict=True)):
            given = _averaged(self.alpha[i], by_token) + _averaged(self.beta[i], by_channel)
            tokens, valid, told = self._laid_out(norm(given), mask, scale)
            change, held = mixer(tokens, valid, told, None if before is None else before[i])
            after.append(held)
            by_token.append(given + self._back(change, x.shape).to(x.dtype))
            given = _averaged(self.theta[i], by_token) + _averaged(self.gamma[i], by_channel)
            change = self.channel_mixers[i](self.channel_norms[i](given))
            by_channel.append(given + change.to(x.dtype))
        return by_channel[-1], after
