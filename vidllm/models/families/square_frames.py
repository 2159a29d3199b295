"""Families whose tower sees square frames of one size, each for itself, as LLaVA's do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from ..hooks.vision_tower import Sight, dense_signals
from .family import Adapter


class SquareFrames(Adapter):
    """Base of these families, whose config names the layer of the tower that is read."""

    tower_name = "vision_tower"
    merging = "pooled"

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def attention(self) -> nn.Module:
        """Of the last layer; of the last but one where the tower has a CLS token."""
        layers = [m for m in self.tower.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
        layers = [m for m in layers if hasattr(m, "num_heads")]
        # An attention pooling head has fused projections, so it is not among them.
        cls = self.config.vision_feature_select_strategy == "default"
        return layers[max(-2 if cls else -1, -len(layers))]

    def whole_grid(self) -> str:
        """Empty but for checkpoints that read their tower in another way."""
        layer = self.config.vision_feature_layer
        if layer != -1:
            return f"reads layer {layer} of its tower, not the last"
        full = self.config.vision_feature_select_strategy == "full"
        return "" if full else "leaves out the CLS token of its tower"

    @abstractmethod
    def pooled(self, planes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of patches (F, side², ...) to tokens (F * cells², ...), as the features are."""

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Pooled as the features are."""
        return self.pooled(dense_signals(sight, self.side**2))
