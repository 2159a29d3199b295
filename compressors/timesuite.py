"""TimeSuite (arXiv 2410.19702): token shuffle, and positions that adapt to the video's length.

`shuffle`, `average_init` and `Tape` are the authors' arithmetic; `TimeSuite` is the method on
`VideoTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens

from .registry import register
from .shared.learned import Learned, place

# Each of the two steps down, and up again, is by this factor.
_STEP = 4


def shuffle(x: Tensor, weight: Tensor, bias: Tensor | None = None, group: int = 4) -> Tensor:
    """Join every `group` consecutive tokens on their channels and project them.

    Args:
        x: (B, L, D). weight: (E, group * D). bias: (E,) or None.

    Returns:
        (B, L / group, E) float32.

    Raises:
        InputError: a length that `group` does not divide, or weights for another width.
    """
    if x.dim() != 3 or group < 1 or x.shape[1] % group or weight.shape[1] != group * x.shape[2]:
        raise InputError(
            f"groups of {group} need x (B, L, D) with L a multiple of it and weight (E, "
            f"{group} D), not {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    joined = x.float().reshape(x.shape[0], x.shape[1] // group, group * x.shape[2])
    return F.linear(joined, weight.float(), None if bias is None else bias.float())


def average_init(proj_w: Tensor, group: int = 4) -> Tensor:
    """(E, group * D) weights with which `shuffle` is the mean of a group, then proj_w (E, D)."""
    return proj_w.repeat(1, group) / group


def _active(x: Tensor, norm: nn.Module) -> Tensor:
    return F.gelu(norm(x.transpose(1, 2))).transpose(1, 2)


class _Block(nn.Module):
    """Depthwise and pointwise convolution of (B, C, n), normalised over C, exact GELU."""

    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.left, self.right = (kernel - 1) // 2, kernel // 2
        self.depthwise = nn.Conv1d(width, width, kernel, stride, groups=width)
        self.pointwise = nn.Conv1d(width, width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.left, self.right))
        return _active(self.pointwise(self.depthwise(padded)), self.norm)


class Tape(nn.Module):
    """Temporal adaptive position encoding: a small U-Net over time, to add to shuffled tokens.

    Tokens are projected to d_in / 4 channels and averaged by `group`; two steps down by 4 (kernel
    2 group + 1), a convolution over clips + 1 places, two steps up by nearest neighbour (kernel
    group + 1) with the tokens of the way down added, and a projection that starts at zero. The
    zero padding at both ends is what tells places apart.

    The authors' version needs a length that is a multiple of 16 * group and an even number of
    clips, and gives exactly this output there. Here any length and number goes: the pooled
    tokens (the last pool may hold fewer) are padded with zeros on the right to a multiple of 16
    and the output is cut; an even kernel has its extra place of padding on the right.

    Args:
        d_in: width of the tokens. d_out: width of the output.
        clips: sets the kernel in the middle; it does not bind the number of frames.
        group: tokens that become one.
    """

    def __init__(self, d_in: int, d_out: int, clips: int = 16, group: int = 4) -> None:
        super().__init__()
        if min(d_in, d_out, clips, group) < 1:
            raise InputError("Tape: d_in, d_out, clips and group must be at least 1")
        self.group, width = group, max(1, d_in // 4)
        self.enter = nn.Linear(d_in, width)
        self.down1 = _Block(width, 2 * group + 1, _STEP)
        self.down2 = _Block(width, 2 * group + 1, _STEP)
        self.middle = nn.Conv1d(width, width, clips + 1)
        self.middle_norm = nn.LayerNorm(width)
        self.up1 = _Block(width, group + 1, 1)
        self.up0 = _Block(width, group + 1, 1)
        self.leave = nn.Linear(width, d_out)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d_in) -> (B, ceil(L / group), d_out)."""
        if x.dim() != 3 or x.shape[1] == 0:
            raise InputError(f"Tape needs tokens (B, L, D), not {tuple(x.shape)}")
        pooled = F.avg_pool1d(self.enter(x).transpose(1, 2), self.group, ceil_mode=True)
        count = pooled.shape[2]
        pooled = F.pad(pooled, (0, -count % _STEP**2))
        first = self.down1(pooled)
        clips = self.middle.kernel_size[0] - 1
        second = F.pad(self.down2(first), (clips // 2, clips - clips // 2))
        second = _active(self.middle(second), self.middle_norm)
        up = self.up1(second.repeat_interleave(_STEP, dim=2) + first)
        up = self.up0(up.repeat_interleave(_STEP, dim=2) + pooled)
        return self.leave(up.transpose(1, 2)[:, :count])


def resample(x: Tensor, start: Tensor, end: Tensor, group: int = 4) -> Tensor:
    """Bring every run of tokens to `group` rows, each the mean over an equal stretch of the run.

    A run of `group` tokens is left as it is, one token is repeated (as the authors do with a
    single image), and of eight tokens two neighbours make a row.

    Args:
        x: (L, D) tokens. start, end: (R,) the bounds of the runs, in order.

    Returns:
        (R * group, D).
    """
    size = (end - start)[:, None, None]
    token = torch.arange(int(size.max()))
    row = torch.arange(group)[:, None]
    high = torch.minimum(token + 1, (row + 1) * size / group)
    weight = (high - torch.maximum(token, row * size / group)).clamp(min=0) * group / size
    index = (start[:, None] + token).clamp(max=len(x) - 1)
    return (weight.to(x) @ x[index.to(x.device)]).flatten(0, 1)


class TokenShuffle(nn.Module):
    """Projection, shuffle and Tape on x (1, L, D); untrained it is the mean of every group."""

    def __init__(self, width: int, clips: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.clip = nn.Linear(width, width)
        self.merge = nn.Linear(group * width, width)
        self.tape = Tape(width, width, clips, group)
        with torch.no_grad():
            self.clip.weight.copy_(torch.eye(width))
            self.merge.weight.copy_(average_init(torch.eye(width), group))
            self.clip.bias.zero_()
            self.merge.bias.zero_()

    def forward(self, x: Tensor, tape: bool = True) -> Tensor:
        x = self.clip(x)
        joined = shuffle(x, self.merge.weight, self.merge.bias, self.group)
        return joined + self.tape(x) if tape else joined


@register("timesuite")
@dataclass
class TimeSuite(Learned):
    """Join neighbouring tokens on their channels, project, and add adaptive positions (TimeSuite).

    The authors join exactly `group` tokens. For any other budget the tokens, in time and raster
    order, are cut into `budget` nearly equal runs, and each run is brought to `group` rows (see
    `resample`) before it is joined; at a share of 1 / group this is exactly theirs. Untrained a
    new token is the plain mean of its run.

    Attributes:
        group: rows that are joined.
        clips: clips of the video in training, the authors' 16; sets a kernel of Tape.
        tape: add the adaptive positions; the paper's ablation leaves them out.
    """

    group: int = field(default=4, metadata={"help": "rows joined into a token"})
    clips: int = field(default=16, metadata={"help": "sets the kernel in the middle of Tape"})
    tape: bool = field(default=True, metadata={"help": "add the adaptive positions"})

    paper = "TimeSuite, arXiv 2410.19702"
    summary = "neighbouring tokens join on their channels, with adaptive positions"
    same_as = "a mean of neighbours without trained weights: `spatial-pool` where a run is a frame"
    untrained = "every token is the plain mean of its neighbours (as spatial-pool on a 2 × 2 grid)"
    width_of = ("clip.weight", 1)

    def __post_init__(self) -> None:
        if self.group < 1 or self.clips < 1:
            raise InputError("timesuite: group and clips must be at least 1")
        super().__post_init__()

    def make(self, width: int) -> nn.Module:
        """The mean of a group, and nothing from Tape."""
        return TokenShuffle(width, self.clips, self.group)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """All runs at once."""
        module = self.ready(tokens)
        order = torch.argsort(tokens.position, stable=True)
        bounds = torch.arange(budget + 1) * len(tokens) // budget
        start, end = bounds[:-1], bounds[1:]
        x = tokens.features[order.to(tokens.features.device)].float()
        out = module(resample(x, start, end, self.group)[None], self.tape)[0]
        run = torch.arange(budget).repeat_interleave(end - start)
        return place(tokens, order, out, (start + end - 1) // 2, run)
