"""InternVL 3 and 3.5: 1D positions, frames as images that are numbered "Frame1: "."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from ..hooks.tower_merger import MaskedLayer
from ..hooks.vision_tower import Sight, dense_signals, fold_square
from .frame_images import FramesAsImages


class InternVL(FramesAsImages):
    """Frames of 32 x 32 patches become 16 x 16 tokens. Seconds are not told."""

    family = "InternVL"
    tower_name = "vision_tower"
    special = 1
    label = r"Frame(\d+):"

    @property
    def fold(self) -> int:
        """Patches along a side of a token."""
        return round(1 / float(self.config.downsample_ratio))

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        vision = self.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0])

    @property
    def attention(self) -> nn.Module:
        """Of the last layer but one, whose CLS token sees the patches (as VisionZip has it)."""
        layers = cast(Any, self.tower).encoder.layer
        return cast(nn.Module, layers[max(-2, -len(layers))].attention)

    def whole_grid(self) -> str:
        """Empty but for checkpoints that read another layer than the last."""
        layer = self.config.vision_feature_layer
        return "" if layer == -1 else f"reads layer {layer} of its tower, not the last"

    def merging_layer(self, layer: nn.Module) -> Any:
        """As SigLIP's layers, which take a mask and name their norm otherwise."""
        return MaskedLayer(layer)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches that the pixel shuffle puts into a token."""
        return fold_square(dense_signals(sight, self.side**2), self.fold)
