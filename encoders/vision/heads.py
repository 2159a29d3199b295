"""Recognition heads: the features of a clip to the logits of its classes.

`mean` is the head of SqueezeTime (and of any encoder), `query` that of DiST.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import ClipFeatures, VisionEncoder


class MeanHead(nn.Module):
    """Mean over cells and frames, dropout, and a linear layer (SqueezeTime).

    A slot counts for as many frames as it stands for: padding counts for nothing, a last chunk of
    5 frames for 5/16 of a full one.
    """

    def __init__(self, width: int, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(width, classes)

    def forward(self, clip: ClipFeatures) -> Tensor:
        """Logits (B, classes)."""
        weight = clip.frames[..., None].to(clip.features.dtype)
        pooled = (clip.features.mean(2) * weight).sum(1) / weight.sum(1)
        return self.classes(self.dropout(pooled))


class CrossAttention(nn.Module):
    """A query looks at tokens, and an MLP; both pre-norm with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_query, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, query: Tensor, tokens: Tensor, absent: Tensor | None = None) -> Tensor:
        """Query (B, 1, D), tokens (B, n, D), absent (B, n) bool: True at what is not to be seen."""
        keys = self.norm_tokens(tokens)
        seen = self.attention(
            self.norm_query(query), keys, keys, key_padding_mask=absent, need_weights=False
        )
        query = query + seen[0]
        return query + self.mlp(query)


class QueryHead(nn.Module):
    """DiST's pooling: a query over the tokens of a frame, a query over the frames.

    In every layer a learned query looks at the tokens of each slot (CLS and registers included),
    and the clip's query at what came of it, with a learned place in time. What the clip's query
    has gathered and the mean of the image model's CLS, projected, are compared by cosine with one
    learned row a class.

    Args:
        width: of the features; cls_width: of the image model's CLS.
        output: width of the rows (CLIP's text space).
        frames: places in time that are learned; clips of another number of slots take what lies
            between them.
    """

    def __init__(
        self,
        width: int,
        cls_width: int,
        classes: int,
        output: int = 512,
        layers: int = 4,
        heads: int | None = None,
        frames: int = 8,
    ) -> None:
        super().__init__()
        heads = heads or max(1, width // 64)
        if width % heads:
            raise InputError(f"{heads} heads do not divide features of width {width}")
        self.cell = nn.Parameter(torch.empty(1, 1, width))
        self.clip = nn.Parameter(torch.empty(1, 1, width))
        self.place = nn.Parameter(torch.empty(frames, width))
        self.over_cells = nn.ModuleList(CrossAttention(width, heads) for _ in range(layers))
        self.over_time = nn.ModuleList(CrossAttention(width, heads) for _ in range(layers))
        self.image = nn.Linear(cls_width, width)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, output, bias=False)
        self.classes = nn.Parameter(torch.empty(classes, output))
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restore the initial values of the head's own; the scale starts at 1/0.07 as CLIP's.

        Ours: queries and classes start large, since a small row turns too far in a step and a
        small query sees the same mean of all tokens for long; the image model's CLS starts at 0.
        """
        for rows, std in ((self.cell, 1.0), (self.clip, 1.0), (self.place, 0.5)):
            nn.init.normal_(rows, std=std)
        nn.init.normal_(self.classes, std=0.5)
        nn.init.zeros_(self.image.weight)
        nn.init.zeros_(self.image.bias)
        nn.init.constant_(self.scale, math.log(1 / 0.07))

    def places(self, clip: ClipFeatures) -> Tensor:
        """(B, S, width): the learned places stretched over the real slots of every clip."""
        number, last = int(clip.frames.shape[1]), len(self.place) - 1
        count = clip.mask.sum(1, keepdim=True)
        at = torch.arange(number, device=count.device) * last / (count - 1).clamp(min=1)
        at = at.clamp(max=last)
        low = at.floor().long()
        share = (at - low)[..., None].to(self.place.dtype)
        return torch.lerp(self.place[low], self.place[(low + 1).clamp(max=last)], share)

    def forward(self, clip: ClipFeatures) -> Tensor:
        """Logits (B, classes).

        Raises:
            InputError: features that come without the image model's CLS.
        """
        if clip.cls is None:
            raise InputError("the query head needs the image model's CLS: use the mean head")
        tokens = clip.features
        if clip.special is not None:
            tokens = torch.cat([clip.special, tokens], dim=2)
        batch, slots = tokens.shape[:2]
        tokens = tokens.flatten(0, 1)
        absent, place = ~clip.mask, self.places(clip)
        cell = self.cell.expand(batch * slots, -1, -1)
        query = self.clip.expand(batch, -1, -1)
        for over_cells, over_time in zip(self.over_cells, self.over_time, strict=True):
            cell = over_cells(cell, tokens)
            query = over_time(query, cell.unflatten(0, (batch, slots))[:, :, 0] + place, absent)
        real = clip.mask[..., None].to(query.dtype)
        image = self.image(clip.cls.to(self.image.weight.dtype))
        image = (image * real).sum(1) / real.sum(1)
        out = self.project(self.norm(query[:, 0] + image))
        rows = F.normalize(self.classes, dim=-1).to(out.dtype)
        return self.scale.exp().clamp(max=100) * F.normalize(out, dim=-1) @ rows.T


def build_head(encoder: VisionEncoder, classes: int, name: str = "") -> MeanHead | QueryHead:
    """The head that belongs to an encoder, or the one called `name` ("mean" or "query").

    Raises:
        InputError: no head of that name, or one that needs more than the encoder gives.
    """
    name = name or encoder.head
    if name == "mean":
        return MeanHead(encoder.hidden_size, classes)
    if name != "query":
        raise InputError(f"no recognition head {name!r}: use mean or query")
    if not encoder.cls_size:
        raise InputError(f"{encoder.name} has no CLS for the query head: use the mean head")
    return QueryHead(encoder.hidden_size, encoder.cls_size, classes)
