"""Vision towers behind one call: frames (F, 3, H, W) in 0..1 to cells (F, N, D).

`conv` is the project's small tower; every other type is a SigLIP, SigLIP2, CLIP or DINOv2 vision
model of transformers, by its config or by its name on the hub.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidllm.errors import InputError

from .conv import ConvTower
from .signals import SIGNALS, watch

#: Types of transformers vision configs that are known to work here.
HUB_TYPES: tuple[str, ...] = (
    "siglip_vision_model",
    "siglip2_vision_model",
    "clip_vision_model",
    "dinov2",
    "dinov2_with_registers",
)
_CLIP_STATS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class HubTower(nn.Module):
    """A vision model of transformers: normalises its own way, drops CLS and register tokens."""

    #: What `with_signals` can tell beside the cells.
    provides: tuple[str, ...] = SIGNALS

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.hidden_size = int(config.hidden_size)
        self.image_size = int(config.image_size)
        self.side = self.image_size // int(config.patch_size)
        kind = str(config.model_type)
        stats = ((0.5,) * 3, (0.5,) * 3) if kind.startswith("siglip") else _CLIP_STATS
        mean, std = _IMAGENET_STATS if kind.startswith("dinov2") else stats
        # Plain numbers, not buffers: loading builds modules without data and would lose them.
        self.mean, self.std = mean, std

    def forward(self, frames: Tensor) -> Tensor:
        mean = frames.new_tensor(self.mean).view(1, 3, 1, 1)
        std = frames.new_tensor(self.std).view(1, 3, 1, 1)
        pixels = ((frames - mean) / std).to(next(self.model.parameters()).dtype)
        hidden = self.model(pixel_values=pixels).last_hidden_state
        return hidden[:, hidden.shape[1] - self.side**2 :]

    def with_signals(self, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, and what the tower thinks of every cell (see `signals.Watch.read`).

        Attention is read in the last layer but one where there is a CLS token (as VisionZip does),
        else in the last.
        """
        # A CLS token: every tower here but SigLIP has one.
        last = -1 if str(self.model.config.model_type).startswith("siglip") else -2  # type: ignore[union-attr]
        with watch(self.model, last) as seen:
            cells = self(frames)
        return cells, seen.read(self.side**2)


def build_vision(config: dict[str, Any]) -> ConvTower | HubTower:
    """The tower of a config dict: {"type": "conv", …} or {"type": "<transformers type>", …}.

    Raises:
        InputError: for a type that is not known.
    """
    options = dict(config)
    kind = options.pop("type", None)
    if kind == "conv":
        return ConvTower(**options)
    if kind not in HUB_TYPES:
        raise InputError(f"no vision tower '{kind}': use conv or one of {', '.join(HUB_TYPES)}")
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.for_model(kind, **options)
    # The towers are called through `HubTower`, which needs no attention pooling head.
    return HubTower(AutoModel.from_config(settings))


def load_vision(name: str) -> tuple[HubTower, dict[str, Any]]:
    """A pretrained tower by its name on the hub (or a folder), with its config dict."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(name)
    config = getattr(config, "vision_config", config)
    if config.model_type not in HUB_TYPES:
        raise InputError(
            f"'{name}' is a {config.model_type}, not a vision tower: "
            f"use one of {', '.join(HUB_TYPES)}"
        )
    model = AutoModel.from_pretrained(name, config=config)
    settings = {k: v for k, v in config.to_diff_dict().items() if k != "model_type"}
    return HubTower(model), {"type": config.model_type, **settings}


def to_pixels(frames: Tensor, size: int) -> Tensor:
    """Frames (F, H, W, 3) uint8 to (F, 3, size, size) float32 in 0..1, resized with antialiasing.

    The aspect ratio is not kept: every frame fills the square, as the tower was trained.
    """
    pixels = frames.permute(0, 3, 1, 2).to(torch.float32) / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(
        pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    ).clamp_(0, 1)
