"""VTG-LLM (arXiv 2405.13382): tokens told their frame and second, then mixed into slots.

The functions give the authors' arithmetic; `VtgLlm` is the method on `VideoTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens

from .registry import register
from .shared.learned import Learned, place


def slot_weights(x: Tensor, weights: Tensor) -> Tensor:
    """(B, N, K) the softmax over the N tokens of x (B, N, D) times weights (D, K), unscaled."""
    return (x.float() @ weights.float()).softmax(dim=1)


def slots(x: Tensor, weights: Tensor) -> Tensor:
    """Mix tokens into slots in one pass (VTG-LLM, slot-based compression).

    Args:
        x: (B, N, D) tokens. weights: (D, K) a direction a slot, drawn from a standard normal.

    Returns:
        (B, K, D) float32: out_k = sum_n softmax_n(x S)_nk x_n. Nothing is scaled or repeated.

    Raises:
        InputError: shapes that do not fit.
    """
    if x.dim() != 3 or weights.dim() != 2 or x.shape[2] != weights.shape[0] or x.shape[1] == 0:
        shapes = f"{tuple(x.shape)} and {tuple(weights.shape)}"
        raise InputError(f"x and weights must be (B, N, D) and (D, K), not {shapes}")
    return slot_weights(x, weights).transpose(1, 2) @ x.float()


def cross_attention(
    x: Tensor, queries: Tensor, attend: nn.MultiheadAttention
) -> tuple[Tensor, Tensor]:
    """The alternative with learned queries (K, D): (B, K, D), and weights (B, N, K) over tokens.

    The authors' fails for B > 1, as the queries are not repeated for the batch; here they are.
    """
    exact = x.float()
    out, weights = attend(queries.float().expand(len(x), -1, -1), exact, exact)
    return out, weights.transpose(1, 2)


def codebook(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The alternative with codes (K, D): each takes the token of x (B, N, D) nearest to it.

    Straight-through: a slot has the value of its token and passes its gradient to the code too.
    Returns (B, K, D) slots, (B, K) indices of their tokens, and the loss: the mean squared
    distance twice, once moving the codes and once the tokens.
    """
    exact = x.float()
    rows = codes.float().expand(len(x), -1, -1)
    nearest = torch.cdist(rows.detach(), exact.detach()).argmin(dim=2)
    token = exact.gather(1, nearest[..., None].expand(-1, -1, x.shape[2]))
    loss = F.mse_loss(rows, token.detach()) + F.mse_loss(token, rows.detach())
    return token + rows - rows.detach(), nearest, loss


def frame_rows(frame_emb: Tensor, frames: int) -> Tensor:
    """(frames, H) rows of the frame table (T, H), by nearest neighbour where the counts differ."""
    if frame_emb.shape[0] == frames:
        return frame_emb
    return F.interpolate(frame_emb.T[None], size=frames, mode="nearest")[0].T


def sequence_time(
    qformer_out: Tensor, frame_emb: Tensor, time_emb: Tensor, absolute_timestamps: Tensor
) -> Tensor:
    """Add to every token the rows of its frame and of its second (sequence-time embedding).

    Args:
        qformer_out: (B * T, Q, H) tokens, frame by frame. frame_emb: (T, H), see `frame_rows`.
        time_emb: (S, H), a row a second. absolute_timestamps: (B, T) seconds, rounded half to
            even here if they are not whole.

    Returns:
        (B, T * Q, H) float32, time-major.

    Raises:
        InputError: shapes that do not fit, or a second that is not in the table.
    """
    if absolute_timestamps.dim() != 2 or len(qformer_out) != absolute_timestamps.numel():
        shape = tuple(absolute_timestamps.shape)
        raise InputError(f"{len(qformer_out)} frames need their seconds as (B, T), not {shape}")
    batch, frames = absolute_timestamps.shape
    second = absolute_timestamps.round().long().to(time_emb.device)
    if second.numel() and not 0 <= int(second.min()) <= int(second.max()) < len(time_emb):
        raise InputError(
            f"the time table covers seconds 0 to {len(time_emb) - 1}, not {int(second.min())} to "
            f"{int(second.max())}: cut the video or use a longer table"
        )
    h = qformer_out.float().unflatten(0, (batch, frames))
    h = h + frame_rows(frame_emb, frames)[:, None] + time_emb[second][:, :, None]
    return h.flatten(1, 2)


def time_table(time_emb: Tensor, faithful: bool = False) -> Tensor:
    """Fill the rows of the time table (S, H) that training left at zero, from its neighbours.

    Linear between the nearest trained rows l < i < r; outside of them the nearest. With
    `faithful` what the authors' code does: the weights are swapped, E[l] (i - l) / (r - l) +
    E[r] (r - i) / (r - l), and the table is filled in place from its last row to its first. A row
    without a trained one behind it takes r = -1, the last row as it then stands: empty for the
    last row itself, filled for those before it (all become negative multiples). A row without one
    before it takes l = 0, row 0 as it stands: still empty. A table without any trained row comes
    back as it is.
    """
    trained = (time_emb != 0).any(dim=1)
    if not bool(trained.any()):
        return time_emb
    total = len(time_emb)
    row = torch.arange(total, device=time_emb.device)
    left = torch.where(trained, row, -1).cummax(0).values
    right = torch.where(trained, row, total).flip(0).cummin(0).values.flip(0)
    if faithful:
        return _filled_in_place(time_emb, trained, left.clamp(min=0), right)
    left = torch.where(left < 0, right, left)
    right = torch.where(right == total, left, right)
    b = torch.where(right == left, 0, (row - left) / (right - left).clamp(min=1))
    filled = time_emb[left] * (1 - b)[:, None] + time_emb[right] * b[:, None]
    return torch.where(trained[:, None], time_emb, filled.to(time_emb.dtype))


def _filled_in_place(table: Tensor, trained: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The authors' interpolation; `left` and `right` are the trained rows beside each, or 0, S."""
    total, row = len(table), torch.arange(len(table), device=table.device)
    right = torch.where(right == total, -1, right)
    gap = torch.where(trained, 1, right - left)
    a, b = ((row - left) / gap)[:, None], ((right - row) / gap)[:, None]
    # The last row is filled first, from row -1, which is itself and still as it was.
    filled = table[left] * a + table[right] * b
    last = torch.where(trained[-1], table[-1], filled[-1])
    filled = table[left] * a + torch.where((right < 0)[:, None], last, table[right]) * b
    filled[-1] = last
    return torch.where(trained[:, None], table, filled.to(table.dtype))


class SlotSampler(nn.Module):
    """The slots with the two tables; `loss` holds the codebook's loss of the last call, or 0."""

    def __init__(
        self, width: int, slots: int, sampler: str = "slots", frames: int = 96, seconds: int = 8192
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.slots = nn.Parameter(torch.randn(width, slots))
        self.frame = nn.Parameter(torch.zeros(frames, width))
        self.time = nn.Parameter(torch.zeros(seconds, width))
        if sampler == "cross-attention":
            self.attend = nn.MultiheadAttention(width, gcd(8, width), batch_first=True)
        self.loss = torch.zeros(())

    def forward(
        self,
        x: Tensor,
        frame: Tensor,
        seconds: Tensor,
        frames: int,
        count: int,
        timed: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slots (count, D), the token that each weighs most (count,), and the carriers (N,).

        Args:
            x: (N, D) tokens in time order. frame, seconds: (N,) of each; `frames` in the clip.
            timed: add the rows of frame and second.
        """
        h = x[None]
        if timed:
            rows = frame_rows(self.frame, frames)[frame]
            h = sequence_time(x[:, None], rows, self.time, seconds[None])
        parts = -(-count // self.slots.shape[1])
        made, prefer, carrier, first, done = [], [], [], 0, 0
        self.loss = torch.zeros((), device=x.device)
        for part in range(parts):
            size = len(x) // parts + (part < len(x) % parts)
            wanted = count // parts + (part < count % parts)
            out, weights = self._sample(h[:, first : first + size], self.slots[:, :wanted])
            peak, slot = weights[0].max(dim=1)
            made.append(out[0])
            prefer.append(weights[0].argmax(dim=0) + first)
            carrier.append(torch.where(peak >= 0.999 / size, slot + done, -1))
            first, done = first + size, done + wanted
        return torch.cat(made), torch.cat(prefer), torch.cat(carrier)

    def _sample(self, h: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self.sampler == "slots":
            return slots(h, weights), slot_weights(h, weights)
        if self.sampler == "cross-attention":
            return cross_attention(h, weights.T, self.attend)
        out, nearest, loss = codebook(h, weights.T)
        self.loss = self.loss + loss
        return out, F.one_hot(nearest, h.shape[1]).transpose(1, 2).float()


@register("vtg-llm")
@dataclass
class VtgLlm(Learned):
    """Mix the tokens into learned slots, after adding rows for their frame and second (VTG-LLM).

    A budget below the number of slots takes the first ones; a budget above it, which the
    authors' code has no answer to, cuts the tokens into as few equal runs as need at most
    `slots` each and mixes every run by itself. A token's second is the middle of its span.

    A slot stands at the token that it weighs most. A token is carried by the slot in which it
    weighs most, or by none where it weighs less than the average in all of them.

    Attributes:
        slots: how many there are; the authors' 256.
        sampler: "slots", or the authors' alternatives "cross-attention" and "codebook".
        timed: add the rows of frame and second; the paper's ablation leaves them out.
        interpolate: fill the seconds that training never met when weights are loaded.
        faithful: the authors' defects. Slots stand in the order of the parameter, not of time;
            interpolation has its weights swapped (see `time_table`); a second beyond the table
            (8,191) is refused, where the last row serves by default.
    """

    slots: int = field(default=256, metadata={"help": "learned slots; more tokens go in runs"})
    sampler: Literal["slots", "cross-attention", "codebook"] = field(
        default="slots", metadata={"help": "slots, cross-attention or codebook"}
    )
    timed: bool = field(default=True, metadata={"help": "tokens know their frame and second"})
    interpolate: bool = field(default=False, metadata={"help": "fill unseen seconds on loading"})
    faithful: bool = field(default=False, metadata={"help": "the authors' order and defects"})

    paper = "VTG-LLM, arXiv 2405.13382"
    summary = "tokens mix into learned slots that know frame and second"
    width_of = ("slots", 0)

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise InputError(f"vtg-llm: slots must be at least 1, not {self.slots}")
        if self.sampler not in ("slots", "cross-attention", "codebook"):
            known = "'slots', 'cross-attention' or 'codebook'"
            raise InputError(f"vtg-llm: sampler must be {known}, not {self.sampler!r}")
        super().__post_init__()

    def make(self, width: int) -> nn.Module:
        """Slots from a standard normal, tables of zeros."""
        return SlotSampler(width, self.slots, self.sampler)

    def load(self, path: str) -> None:
        """As `Learned.load`; with `interpolate` unseen seconds are filled."""
        super().load(path)
        if self.interpolate and self.module is not None:
            table = self.module.get_parameter("time")
            table.data = time_table(table.data, self.faithful)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """All slots at once."""
        module = self.ready(tokens)
        device = tokens.features.device
        order = torch.argsort(tokens.position, stable=True)
        seconds = tokens.span[order].mean(dim=1).round(decimals=1).round()
        if not self.faithful:
            seconds = seconds.clamp(0, len(module.get_parameter("time")) - 1)
        x, frame = tokens.features[order.to(device)].float(), tokens.frame[order].to(device)
        out, prefer, carrier = module(
            x, frame, seconds.to(device), tokens.grid[0], budget, self.timed
        )
        return place(tokens, order, out, prefer.cpu(), carrier.cpu(), faithful=self.faithful)
