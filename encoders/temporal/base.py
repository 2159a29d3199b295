"""What every temporal encoder promises, and residual stacks of layers that mix a sequence.

Encoders that read a clip as sequences give one `Mixer` a layer; reading order, residual layers,
true seconds, padding and streaming stand here (`StackEncoder`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError


class TemporalEncoder(nn.Module, ABC):
    """Mix the tokens of a clip over time; the number of tokens does not change.

    The valid outputs never depend on what stands at padded frames.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    @abstractmethod
    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a batch of clips.

        Args:
            x: (B, T, N, D) tokens, N of them a frame in raster order.
            seconds: (B, T) float, the time of every frame in seconds.
            mask: (B, T) bool, True at real frames; None when no frame is padding. The
                padding stands before or after the real frames of a clip.

        Returns:
            (B, T, N, D); padded frames come back as they were given.
        """

    @property
    def causal(self) -> bool:
        """Whether a frame's output depends on earlier frames alone."""
        return False

    @property
    def streams(self) -> bool:
        """Whether `stream` works, as this encoder was built."""
        return False

    def reset_parameters(self) -> None:
        """Initialise again, after a general initialiser went over the model."""

    def stream(self, x: Tensor, seconds: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Encode the next frames of a video whose earlier frames are behind `state`.

        Chunks of any size give what `forward` gives for the whole clip; the state does not grow.

        Args:
            x: (B, T, N, D) the next T frames. seconds: (B, T), later than those before.
            state: what the last call returned, None at the start of a video.

        Returns:
            (B, T, N, D) and the state after these frames.

        Raises:
            InputError: this encoder reads the clip backwards too, or needs all of it.
        """
        raise InputError(f"{self.name} needs the whole clip and cannot stream")

    def check(self, x: Tensor, seconds: Tensor, mask: Tensor | None) -> None:
        """Raise InputError when the shapes do not fit together."""
        if x.dim() != 4:
            raise InputError(f"a temporal encoder takes (B, T, N, D) tokens, not {tuple(x.shape)}")
        batch = tuple(x.shape[:2])
        if tuple(seconds.shape) != batch:
            raise InputError(
                f"seconds must be {batch} for these tokens, not {tuple(seconds.shape)}"
            )
        if mask is not None and (tuple(mask.shape) != batch or mask.dtype != torch.bool):
            raise InputError(
                f"mask must be bool {batch} for these tokens, not {mask.dtype} {tuple(mask.shape)}"
            )


Scan = Literal["raster", "slot"]
Time = Literal["none", "step", "embedding"]
#: What a mixer hands on to the next chunk: tensors in tuples, lists or dicts, or None.
State = Any
_SHORTEST, _LONGEST = 0.25, 3600.0  # seconds: periods of the time embedding
_BLOCK = 1024  # tokens that a mixer has in work at once, so that they stay in a processor's cache

Projected = TypeVar("Projected")


class Mixer(nn.Module, ABC):
    """One layer's mixing along a sequence; the residual and the norm stand around it.

    `ways` is 2 where it reads the sequence backwards too; such a mixer cannot stream.
    """

    ways: int = 1

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        """Mix a sequence.

        Args:
            x: (B, L, D), normed. valid: (B, L) bool, True at real tokens, or None; what stands
                at the others must not change the result at real ones.
            scale: (B, L, ways) float32 step sizes relative to the usual one, or None; given only
                under `time="step"`.
            state: of the tokens before (`ways` 1 only), None at the start.

        Returns:
            (B, L, D), the change to be added, and the state after the last token (None where
            `ways` is 2).
        """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise again, after a general initialiser went over the model."""


class BothWays(Mixer):
    """Two causal mixers with weights of their own, one of them reading backwards; summed."""

    ways = 2

    def __init__(self, make: Callable[[], Mixer]) -> None:
        super().__init__()
        self.ahead, self.back = make(), make()

    def reset_parameters(self) -> None:
        self.ahead.reset_parameters()
        self.back.reset_parameters()

    def forward(
        self,
        x: Tensor,
        valid: Tensor | None = None,
        scale: Tensor | None = None,
        state: State = None,
    ) -> tuple[Tensor, State]:
        ahead, _ = self.ahead(x, valid, None if scale is None else scale[..., :1])
        back, _ = self.back(
            x.flip(1),
            None if valid is None else valid.flip(1),
            None if scale is None else scale[..., 1:].flip(1),
        )
        return ahead + back.flip(1), None


class TimeEmbedding(nn.Module):
    """Sines and cosines of the seconds, periods from 0.25 s to an hour, through a linear layer."""

    def __init__(self, dim: int, zero_init: bool) -> None:
        super().__init__()
        self.zero_init = zero_init
        self.out = nn.Linear(2 * (dim // 2), dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.zero_init:
            nn.init.zeros_(self.out.weight)
        else:
            nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, seconds: Tensor) -> Tensor:
        """(B, T) seconds to (B, T, D)."""
        count = self.out.in_features // 2
        low, high = math.log(_SHORTEST), math.log(_LONGEST)
        periods = torch.linspace(low, high, count, dtype=torch.float64).exp().to(seconds.device)
        angle = 2 * math.pi * seconds.double()[..., None] / periods
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.out.weight.dtype)
        made: Tensor = self.out(waves)
        return made


@dataclass
class StackState:
    """What a stacked encoder carries from one chunk of frames to the next."""

    last: Tensor  # (B,) seconds of the last frame
    layers: list[State]


@dataclass(frozen=True)
class StackOptions:
    """What every stacked encoder is asked for; see `StackEncoder`."""

    layers: int
    scan: Scan
    bidirectional: bool
    time: Time
    gap: float | None
    zero_init: bool


class StackEncoder(TemporalEncoder):
    """Residual layers x + Mixer(LayerNorm(x)) over a clip read as sequences.

    Args:
        dim: token width D.
        make: builds one causal mixer, or with `own_ways` one that reads both ways itself.
        layers: number of mixers.
        scan: "raster" reads a clip as one sequence of T * N tokens (STORM); "slot" reads each
            spatial slot over time alone (cheaper, mixes nothing in space).
        bidirectional: also read the clip backwards.
        time: "none"; "step" scales the steps of a frame by its true gap to the frame read before
            it (held in [0.1, 10]), so that the state decays by seconds and not by frames;
            "embedding" adds an embedding of the seconds to the tokens.
        gap: seconds that count as one step under `time="step"`; None takes the mean gap of the
            clip, which a stream cannot know.
        zero_init: of the time embedding (the mixers take their own).
        steps: whether the mixer understands `scale`.

    Raises:
        InputError: an unknown scan or time, or a mixer without steps under `time="step"`.
    """

    def __init__(
        self,
        dim: int,
        make: Callable[[], Mixer],
        options: StackOptions,
        *,
        own_ways: bool = False,
        steps: bool = True,
    ) -> None:
        super().__init__()
        layers, bidirectional = options.layers, options.bidirectional
        scan, time, gap = options.scan, options.time, options.gap
        if scan not in ("raster", "slot"):
            raise InputError(f"scan must be 'raster' or 'slot', not {scan!r}")
        if time not in ("none", "step", "embedding"):
            raise InputError(f"time must be 'none', 'step' or 'embedding', not {time!r}")
        if time == "step" and not steps:
            raise InputError(f"{self.name} has no step to scale: use time='embedding'")
        if gap is not None and not gap > 0:
            raise InputError(f"gap must be positive seconds, not {gap}")
        if layers < 1:
            raise InputError(f"layers must be at least 1, not {layers}")
        self.dim, self.scan, self.time, self.gap = dim, scan, time, gap
        self.bidirectional = bidirectional
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        two = bidirectional and not own_ways
        self.mixers = nn.ModuleList(BothWays(make) if two else make() for _ in range(layers))
        self.times = TimeEmbedding(dim, options.zero_init) if time == "embedding" else None

    @property
    def causal(self) -> bool:
        return not self.bidirectional

    @property
    def streams(self) -> bool:
        return self.causal and not (self.time == "step" and self.gap is None)

    def reset_parameters(self) -> None:
        """Give every layer its own initialisation again (after a general initialiser)."""
        for module in (*self.norms, *self.mixers, self.times):
            if module is not None:
                module.reset_parameters()

    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode (B, T, N, D) at `seconds` (B, T), real where `mask` (B, T); same shape out."""
        self.check(x, seconds, mask)
        # Zeros instead of whatever stands there: NaN would reach the gradients of the norms.
        tokens = x if mask is None else x.masked_fill(~mask[..., None, None], 0)
        scale = self._scale(seconds, mask) if self.time == "step" else None
        out, _ = self._layers(self._timed(tokens, seconds, mask), mask, scale, None)
        return out if mask is None else torch.where(mask[..., None, None], out, x)

    def stream(
        self, x: Tensor, seconds: Tensor, state: StackState | None = None
    ) -> tuple[Tensor, StackState]:
        """The next frames of a video; see `TemporalEncoder.stream`."""
        self.check(x, seconds, None)
        if not self.streams:
            why = "bidirectional=False" if self.bidirectional else "gap=SECONDS"
            raise InputError(f"{self.name} cannot stream as it was built: give {why}")
        scale = None
        if self.time == "step":
            scale = self._scale(seconds, None)
            if state is not None:
                since = (seconds[:, 0].double() - state.last) / float(self.gap or 1.0)
                scale[:, 0, 0] = since.clamp(0.1, 10).float()
        before = None if state is None else state.layers
        out, after = self._layers(self._timed(x, seconds, None), None, scale, before)
        return out, StackState(seconds[:, -1].double(), after)

    def _layers(
        self,
        x: Tensor,
        mask: Tensor | None,
        scale: Tensor | None,
        before: Sequence[State] | None,
    ) -> tuple[Tensor, list[State]]:
        """All layers over (B, T, N, D), and the state of each after the last frame."""
        tokens, valid, scale = self._laid_out(x, mask, scale)
        after: list[State] = []
        for i, (norm, mixer) in enumerate(zip(self.norms, self.mixers, strict=True)):
            held = None if before is None else before[i]
            change, held = mixer(norm(tokens), valid, scale, held)
            if valid is not None:  # what padding would become stays out of the next layer
                change = change.masked_fill(~valid[..., None], 0)
            after.append(held)
            tokens = tokens + change.to(tokens.dtype)
        return self._back(tokens, x.shape), after

    def _timed(self, x: Tensor, seconds: Tensor, mask: Tensor | None) -> Tensor:
        if self.times is None:
            return x
        told = self.times(seconds)[:, :, None].to(x.dtype)
        return x + (told if mask is None else told.masked_fill(~mask[..., None, None], 0))

    def _laid_out(
        self, x: Tensor, mask: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sequences (B', L, D), and per token what was told per frame."""
        batch, frames, slots, dim = x.shape
        axis = 0 if self.scan == "slot" else 1
        if self.scan == "slot":
            tokens = x.transpose(1, 2).reshape(batch * slots, frames, dim)
        else:
            tokens = x.reshape(batch, frames * slots, dim)
        spread = [None if v is None else v.repeat_interleave(slots, axis) for v in (mask, scale)]
        return tokens, spread[0], spread[1]

    def _back(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        batch, frames, slots, dim = shape
        if self.scan == "slot":
            return tokens.view(batch, slots, frames, dim).transpose(1, 2)
        return tokens.view(batch, frames, slots, dim)

    def _scale(self, seconds: Tensor, mask: Tensor | None) -> Tensor:
        """Gap to the frame read before, over the usual gap: (B, T, ways) float32.

        The first frame of a direction has no gap and gets 1.
        """
        gap = seconds.double().diff(dim=1)
        real = torch.ones_like(gap, dtype=torch.bool)
        if mask is not None:
            real = mask[:, 1:] & mask[:, :-1]
        gap = gap.masked_fill(~real, 0)
        usual = gap.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        if self.gap is not None:
            usual = torch.full_like(usual, self.gap)
        ratio = torch.where(real & (usual > 0), gap / usual.clamp(min=1e-9), 1.0)
        ratio = ratio.clamp(0.1, 10).float()
        ways = [F.pad(ratio, (1, 0), value=1.0)]
        if self.bidirectional:
            ways.append(F.pad(ratio, (0, 1), value=1.0))
        return torch.stack(ways, dim=-1)


def block_by_block(
    x: Tensor,
    ways: int,
    project: Callable[[slice], Projected],
    read: Callable[[int, Projected, State], tuple[Tensor, State]],
    join: Callable[[Tensor, Projected], Tensor],
    state: State = None,
    *,
    whole: bool = False,
) -> tuple[Tensor, State]:
    """Mix (B, L, D) by a scan in one direction, or in both and their sum, in blocks.

    The way back comes first and leaves what it made for the way ahead. With gradients all is one
    block: the gradient of a block's place in the whole would cost more than blocks gain.

    Args:
        x: its length and device count. ways: 1 or 2.
        project: what both directions share, of some tokens.
        read: one direction (0 ahead, 1 back) over a block, (B, n, E) in the order of the sequence,
            from the state that its last block left; None at its start.
        join: the output (B, n, D) from the sum of the directions.
        state: before the first token, with one direction. whole: one block in any case.

    Returns:
        (B, L, D), and with one direction the state after the last token, else None.
    """
    length = x.shape[1]
    size = length if whole or torch.is_grad_enabled() else _BLOCK
    spans = [slice(at, at + size) for at in range(0, length, max(1, size))]
    held: list[tuple[Projected, Tensor | None]] = []
    if ways == 2:
        before: State = None
        for span in reversed(spans):
            shared = project(span)
            back, before = read(1, shared, before)
            held.append((shared, back))
        state = None
    out = []
    for span in spans:
        shared, other = held.pop() if held else (project(span), None)
        y, state = read(0, shared, state)
        out.append(join(y if other is None else y + other, shared))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1), state if ways == 1 else None


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The short depthwise convolution that stands before a scan.

    Shift, multiply, add: for four taps faster than a depthwise Conv1d, and no transpose.

    Args:
        x: (B, L, C); weight: (taps, C), the last tap at the token itself; bias: (C,).
        tail: (B, taps - 1, C), the tokens before, zeros when None.

    Returns:
        (B, L, C) and the tail for the tokens that follow.
    """
    if tail is None:
        tail = x.new_zeros(x.shape[0], weight.shape[0] - 1, x.shape[-1])
    padded = torch.cat([tail.to(x.dtype), x], dim=1)
    out: Tensor = _Taps.apply(padded, weight.to(x.dtype), bias.to(x.dtype))
    return out, padded[:, x.shape[1] :].clone()


class _Taps(torch.autograd.Function):
    """bias + sum_k weight_k x shifted by k, (B, taps - 1 + L, C) to (B, L, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        taps = weight.shape[0]
        size = x.shape[1] - taps + 1
        out = bias + x[:, taps - 1 :] * weight[-1]
        for k in range(taps - 1):
            out.addcmul_(x[:, k : k + size], weight[k])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx, size = torch.zeros_like(x), dy.shape[1]
        dweight = torch.empty_like(weight)
        for k, tap in enumerate(weight):
            dx[:, k : k + size].addcmul_(dy, tap)
            dweight[k] = (dy * x[:, k : k + size]).sum((0, 1))
        return dx, dweight, dy.sum((0, 1))
