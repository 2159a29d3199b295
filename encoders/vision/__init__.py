"""Vision towers behind one call: frames (F, 3, H, W) in 0..1 to cells (F, N, D).

`conv` is the project's small tower; every other type is a SigLIP, SigLIP2, CLIP or DINOv2 vision
model of transformers, by its config or by its name on the hub. Towers that see whole clips
(`dist`, `squeezetime`) are `VisionEncoder`s: `get_vision("squeezetime")`.
"""

from __future__ import annotations

from typing import Any

from vidllm.errors import InputError

from .base import (
    ClipFeatures,
    VisionEncoder,
    find_vision,
    get_vision,
    register_vision,
    vision_names,
    vision_packages,
)
from .dist import DistEncoder
from .frame_tower import HUB_TYPES, ConvTower, HubTower, build_tower, load_vision, to_pixels
from .framewise import FramewiseEncoder
from .squeezetime import SqueezeTimeEncoder

__all__ = [
    "HUB_TYPES",
    "ClipFeatures",
    "ConvTower",
    "DistEncoder",
    "FramewiseEncoder",
    "HubTower",
    "SqueezeTimeEncoder",
    "VisionEncoder",
    "build_vision",
    "find_vision",
    "get_vision",
    "load_vision",
    "register_vision",
    "to_pixels",
    "vision_names",
    "vision_packages",
]


def build_vision(config: dict[str, Any]) -> ConvTower | HubTower | VisionEncoder:
    """The tower of a config dict: as `build_tower`, or {"type": name, …} of `vision_names`.

    Raises:
        InputError: for a type that is not known.
    """
    kind = config.get("type")
    if kind in vision_names():
        return get_vision(kind, **{k: v for k, v in config.items() if k != "type"})
    if kind != "conv" and kind not in HUB_TYPES:
        known = ", ".join((*HUB_TYPES, *vision_names()))
        raise InputError(f"no vision tower '{kind}': use conv or one of {known}")
    return build_tower(config)
