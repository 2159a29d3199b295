"""SmolVLM2: 1D positions, frames as images, each behind "Frame from 00:01:"."""

from __future__ import annotations

from torch import Tensor

from ..hooks.vision_tower import Sight, dense_signals, fold_square
from .frame_images import FramesAsImages


class SmolVLM(FramesAsImages):
    """Frames become `image_seq_len` tokens. Seconds as the prompt writes them."""

    family = "SmolVLM2"
    decoder_name = "text_model"
    tower_name = "vision_model"
    label = r"Framefrom(\d+):(\d+):"
    stamp = r"Frame\s*from\s*(\d+)\s*:\s*(\d+)\s*:"

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def fold(self) -> int:
        """Patches along a side of a token."""
        return int(self.config.scale_factor)

    def signals(self, sight: Sight) -> dict[str, Tensor]:
        """Mean over the patches that the pixel shuffle puts into a token."""
        return fold_square(dense_signals(sight, self.side**2), self.fold)
