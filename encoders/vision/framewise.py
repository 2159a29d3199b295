"""Any tower of single frames as a vision encoder: the control for those that see time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vidllm.errors import InputError

from .base import ClipFeatures, VisionEncoder, group, register_vision, vision_names
from .frame_tower import HubTower, build_tower


@register_vision("framewise")
class FramewiseEncoder(VisionEncoder):
    """Every frame by itself: one slot a frame, tokens as the tower gives them.

    Args:
        tower: config of `build_vision`: {"type": "conv", …} or a type of transformers.

    Raises:
        InputError: a tower that sees whole clips.
    """

    summary = "a tower of single frames, no mixing over time"

    def __init__(self, tower: dict[str, Any] | None = None) -> None:
        super().__init__()
        config = tower or {"type": "conv"}
        if config.get("type") in vision_names():
            raise InputError(f"framewise needs a tower of single frames, not {config['type']}")
        self.tower = build_tower(config)
        self.hidden_size = int(self.tower.hidden_size)
        self.image_size = int(self.tower.image_size)
        self.side = int(self.tower.side)
        if isinstance(self.tower, HubTower) and self.tower.special:
            self.cls_size = self.hidden_size

    def forward(self, frames: Tensor, seconds: Tensor, mask: Tensor | None = None) -> ClipFeatures:
        """Frames (B, T, 3, S, S) in 0..1 → features (B, T, side², D)."""
        self.check(frames, seconds, mask)
        slots = group(seconds, mask, 1)
        real = slots.frames > 0
        # Only real frames are run: batch normalisation must not learn from padding.
        pixels, cls = slots.take(frames)[real], None
        if isinstance(self.tower, HubTower):
            hidden = self.tower.run(pixels).last_hidden_state
            cells = hidden[:, hidden.shape[1] - self.side**2 :]
            if self.cls_size:
                cls = hidden.new_zeros(*real.shape, self.cls_size)
                cls[real] = hidden[:, 0]
        else:
            cells = self.tower(pixels)
        features = cells.new_zeros(*real.shape, *cells.shape[1:])
        features[real] = cells
        grid = (self.side, self.side)
        return ClipFeatures(features, slots.seconds, slots.span, slots.frames, grid, cls=cls)
