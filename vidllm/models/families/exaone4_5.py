"""EXAONE 4.5: 1D positions, a windowed vision tower, sliding windows in the decoder."""

from __future__ import annotations

from .qwen2_5_vl import Qwen25VL


class Exaone45(Qwen25VL):
    """The tower is that of Qwen2.5-VL, with fewer keys than queries; seconds are not told."""

    mrope = token_types = False
    pace = ""
