"""DiST (arXiv 2309.07911): a light temporal network beside a frozen image transformer.

The frozen ViT sees one frame of every `alpha`, the temporal network all of them, and an
integration branch joins the two after every layer of the ViT. No gradient goes through the ViT:
its layers' outputs come without a graph, so that training costs the memory of the side nets.

From the equations of the paper. With the ViT's tokens v_l (CLS included) and x_0 = stem(frames):

    x_l  = gelu(x_{l-1} + conv1×3×3(qgelu(conv3×1×1(LN x_{l-1}))))
    m_l  = Linear(v_l) + z_{l-1}
    m'_l = m_l + conv_{alpha×1×1, stride alpha}(x_l)       (a learned slot for CLS and registers)
    x_l  = x_l + upsample_alpha(Linear(patches of m_l))
    z_l  = FFN(LN m'_l) + bottleneck_{3 in time}(LN m'_l)

The features are z of the last layer (where x needs no way back). Not told, and ours: the FFN is 4
times as wide and it and the bottleneck (one convolution over time between two linear layers) use
the quick GELU of CLIP, the ViT's frame is the middle one of its `alpha` (the earlier of two), a
last group that is not full repeats its last frame, and before a convolution over time what is no
real frame is zero, as beyond the ends of the clip.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError

from .base import ClipFeatures, VisionEncoder, group, register_vision
from .frame_tower import HUB_TYPES, HubTower, build_tower, load_vision

#: CLIP's ViT-B/16, which the paper starts from; `DistEncoder.from_pretrained` brings its weights.
VIT_B16: dict[str, Any] = {
    "type": "clip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": 224,
}
_FRAMES = 64  # so many frames go through the ViT at once


class QuickGELU(nn.Module):
    """x · σ(1.702 x), as CLIP's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TemporalBlock(nn.Module):
    """One layer of the temporal network: (B, C, T, h, w) → same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.over_time = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        self.over_space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.act = QuickGELU()

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """`real` (B, 1, T, 1, 1) is 1 at frames that there are."""
        hidden = self.norm(x.movedim(1, -1)).movedim(-1, 1) * real.to(x.dtype)
        return F.gelu(x + self.over_space(self.act(self.over_time(hidden))))


class Integration(nn.Module):
    """One layer of the integration branch: the ViT's tokens and the temporal network's meet.

    Args:
        special: CLS and register tokens of the ViT, which the temporal network has none of.
        back: whether the temporal network hears of it (all layers but the last).
    """

    def __init__(
        self,
        vit: int,
        temporal: int,
        width: int,
        alpha: int,
        special: int,
        back: bool,
        ratio: float,
    ) -> None:
        super().__init__()
        self.alpha, self.special = alpha, special
        self.inward = nn.Linear(vit, width)
        self.fuse = nn.Conv3d(temporal, width, (alpha, 1, 1), stride=(alpha, 1, 1))
        self.slot = nn.Parameter(torch.empty(special, width))
        self.back = nn.Linear(width, temporal) if back else None
        self.norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width)
        )
        narrow = max(1, int(ratio * width))
        self.down = nn.Linear(width, narrow)
        self.over_time = nn.Conv1d(narrow, narrow, 3, padding=1)
        self.act = QuickGELU()
        self.up = nn.Linear(narrow, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restore the learned slots; the parts restore themselves."""
        nn.init.normal_(self.slot, std=0.02)

    def forward(
        self, tokens: Tensor, x: Tensor, carry: Tensor | None, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, S, n, C) of the ViT, x (B, c, alpha·S, h, w), carry (B, S, n, width) or None.

        `real` (B, S) is True at groups of frames that there are. Returns the next x and carry.
        """
        middle = self.inward(tokens.to(self.inward.weight.dtype))
        if carry is not None:
            middle = middle + carry
        fused = self.fuse(x).flatten(3).permute(0, 2, 3, 1)
        slot = self.slot.to(fused.dtype).expand(*fused.shape[:2], -1, -1)
        mixed = self.norm(middle + torch.cat([slot, fused], dim=2))
        if self.back is not None:
            patches = self.back(middle[:, :, self.special :]).permute(0, 3, 1, 2)
            told = patches.repeat_interleave(self.alpha, dim=2)
            x = x + told.unflatten(3, (int(x.shape[3]), int(x.shape[4])))
        narrow = self.down(mixed) * real[:, :, None, None].to(mixed.dtype)
        batch, _, count = narrow.shape[:3]
        rows = self.over_time(narrow.permute(0, 2, 3, 1).flatten(0, 1))
        moved = rows.unflatten(0, (batch, count)).permute(0, 3, 1, 2)
        return x, self.ffn(mixed) + self.up(self.act(moved))


@register_vision("dist")
class DistEncoder(VisionEncoder):
    """Frozen ViT and temporal side network: one slot for `alpha` frames, the ViT's own patches.

    Args:
        vit: config of a tower of transformers, frozen here whatever it says; CLIP's ViT-B/16 by
            default (with random weights: see `from_pretrained`).
        alpha: frames that the temporal network sees for one of the ViT.
        temporal: width of the temporal network.
        width: of the integration branch, and of the features.
        stem: frames that the stem's convolution sees.
        ratio: of the bottleneck's width to `width`.

    Raises:
        InputError: a tower that is not one of transformers, or options that do not fit.
    """

    paper = "DiST, arXiv 2309.07911"
    summary = "temporal side network on a frozen image transformer; one slot for two frames"
    head = "query"

    def __init__(
        self,
        vit: dict[str, Any] | None = None,
        alpha: int = 2,
        temporal: int = 96,
        width: int = 384,
        stem: int = 5,
        ratio: float = 0.25,
    ) -> None:
        super().__init__()
        config = dict(VIT_B16 if vit is None else vit)
        if config.get("type") not in HUB_TYPES:
            raise InputError(
                f"dist needs an image transformer, not {config.get('type')!r}: "
                f"use one of {', '.join(HUB_TYPES)}"
            )
        if min(alpha, temporal, width, stem) < 1 or not stem % 2 or not 0 < ratio <= 1:
            raise InputError(
                "dist: alpha, temporal and width must be at least 1, stem odd, ratio in (0, 1]"
            )
        self.vit = cast(HubTower, build_tower({**config, "frozen": True}))
        if not self.vit.left:
            raise InputError("dist needs one layer of the image transformer or more")
        self.alpha, self.stride, self.hidden_size = alpha, alpha, width
        self.image_size, self.side = self.vit.image_size, self.vit.side
        self.cls_size = self.vit.hidden_size
        patch = self.image_size // self.side
        self.stem = nn.Conv3d(
            3, temporal, (stem, patch, patch), stride=(1, patch, patch), padding=(stem // 2, 0, 0)
        )
        self.temporal = nn.ModuleList(TemporalBlock(temporal) for _ in range(self.vit.left))
        self.integration = nn.ModuleList(
            Integration(self.cls_size, temporal, width, alpha, self.vit.special, back, ratio)
            for back in [True] * (self.vit.left - 1) + [False]
        )

    @classmethod
    def from_pretrained(cls, name: str, layer: int | None = None, **options: Any) -> DistEncoder:
        """A fresh side network on a pretrained tower: a name on the hub or a folder."""
        tower, config = load_vision(name, layer, frozen=True)
        encoder = cls(config, **options)
        encoder.vit.load_state_dict(tower.state_dict())
        return encoder

    def forward(self, frames: Tensor, seconds: Tensor, mask: Tensor | None = None) -> ClipFeatures:
        """Frames (B, T, 3, S, S) in 0..1 → features (B, ⌈T/alpha⌉, side², width)."""
        self.check(frames, seconds, mask)
        slots = group(seconds, mask, self.alpha)
        real = slots.frames > 0
        dense = slots.take(frames)
        sparse = dense[:, (self.alpha - 1) // 2 :: self.alpha]
        seen = [self.vit.every_layer(part) for part in sparse.flatten(0, 1).split(_FRAMES)]
        states = [torch.cat(parts).unflatten(0, real.shape) for parts in zip(*seen, strict=True)]
        near = real.repeat_interleave(self.alpha, dim=1)[:, None, :, None, None]
        pixels = self.vit.normalise(dense.flatten(0, 1)).unflatten(0, dense.shape[:2])
        moving = pixels.transpose(1, 2).to(self.stem.weight.dtype)
        x, carry = self.stem(moving * near.to(moving.dtype)), None
        for state, block, join in zip(states, self.temporal, self.integration, strict=True):
            x, carry = join(state, block(x, near), carry, real)
        special, own = self.vit.special, cast(Tensor, carry)
        last = states[-1]
        return ClipFeatures(
            own[:, :, special:],
            slots.seconds,
            slots.span,
            slots.frames,
            (self.side, self.side),
            special=own[:, :, :special] if special else None,
            cls=last[:, :, 0] if special else last.mean(2),
        )
