"""How large frames become before a hub model sees them, and how many tokens they then make.

The rules are those of transformers' video processors. See `pixels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vidllm.errors import InputError

from . import FAMILIES
from .pixel_files import complete

_LIMIT = 200  # of the longer side over the shorter one
_LARGEST = 4096  # pixels of SmolVLM2's longer side


def target_sizes(
    family: str, height: int, width: int, frames: int, settings: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Heights and widths that a frame is brought to, one after the other.

    Args:
        height, width: of the frames, in pixels. frames: how many.
        settings: of `complete`.

    Raises:
        InputError: frames that the family does not take.
    """
    if min(height, width, frames) < 1:
        raise InputError(f"a video of {frames} frames of {height} x {width} pixels has no pixels")
    if not settings["do_resize"]:
        sizes = [(height, width)]
    elif family == "smolvlm":
        side = int(settings["max_image_size"]["longest_edge"])
        sizes = [_longest(height, width, settings["size"]), (side, side)]
    elif set(settings["size"]) == {"height", "width"}:
        sizes = [(int(settings["size"]["height"]), int(settings["size"]["width"]))]
    else:
        sizes = [_smart(family, height, width, frames, settings)]
    if "patch_size" in settings:
        factor = int(settings["patch_size"]) * int(settings["merge_size"])
        if sizes[-1][0] % factor or sizes[-1][1] % factor:
            raise InputError(
                f"{FAMILIES[family][0]} takes sides of a multiple of {factor} pixels, "
                f"not {sizes[-1][0]} x {sizes[-1][1]}: leave do_resize on"
            )
    return sizes


def _longest(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The longer side as asked; the other in proportion, rounded down, then up to an even one."""
    if "longest_edge" not in size:
        return int(size["height"]), int(size["width"])
    longest, ratio = min(_LARGEST, int(size["longest_edge"])), width / height
    other = int(longest / ratio) if width >= height else int(longest * ratio)
    other = max(other + other % 2, 1)
    return (other, longest) if width >= height else (longest, other)


def _smart(
    family: str, height: int, width: int, frames: int, settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Multiples of a token's side, near the frame's shape, within the family's pixel limits."""
    factor = int(settings["patch_size"]) * int(settings["merge_size"])
    together = int(settings["temporal_patch_size"])
    least, most = (int(settings["size"][edge]) for edge in ("shortest_edge", "longest_edge"))
    floor = int(least * 1.05)
    count, steps = 1, 1  # frames that share the limits, and the same as a whole number of patches
    if family == "qwen3_vl":
        # The limits are for the whole clip.
        frames = max(frames, together)
        count, steps = frames, round(frames / together) * together
        if settings["cap_pixels_per_frame"]:
            limit = int(settings["max_video_tokens"]) * factor**2
            most = max(min(limit, most // frames), floor) * frames
        if height < factor or width < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
    elif family == "video_llama_3":
        # The upper limit is for the whole clip, the lower one for a frame.
        most = max(1, most // frames)
    elif settings["cap_pixels_per_frame"]:
        total = int(int(settings["max_video_tokens"]) * factor * factor * 0.9)
        most = max(min(most, total * together // frames), floor)
    if max(height, width) > _LIMIT * min(height, width):
        raise InputError(
            f"frames of {height} x {width} pixels are too narrow for {FAMILIES[family][0]}, "
            f"whose longer side is at most {_LIMIT} times the shorter one: crop the video"
        )
    rows, columns = round(height / factor), round(width / factor)
    if steps * rows * columns * factor**2 > most:
        shrink = math.sqrt(count * height * width / most)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif steps * rows * columns * factor**2 < least:
        grow = math.sqrt(least / (count * height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def tokens_per_frame(
    family: str,
    height: int,
    width: int,
    frames: int,
    options: Mapping[str, Any],
    model_config: Any,
) -> tuple[int, int, int]:
    """The grid of video tokens that a clip becomes: (T', rows, columns), before anything runs.

    T' counts pairs of frames in the Qwen families (an odd last frame is a pair of its own), and
    frames elsewhere. LLaVA-OneVision adds one newline behind each video, which is never touched.
    VideoLLaMA3 leaves some of these tokens out by its own `video_compression_mask`: an upper
    bound there, for what is left depends on the pictures.

    Args:
        height, width: of the decoded frames, in pixels. frames: how many.
        options: as for `video_pixels`. model_config: the model's `config`.

    Raises:
        InputError: options that do not fit the model, frames that the family does not take.
    """
    settings = complete(family, options)
    high, wide = target_sizes(family, height, width, frames, settings)[-1]
    vision = model_config.vision_config
    if "patch_size" in settings:
        own = {
            "patch_size": vision.patch_size,
            "merge_size": getattr(vision, "spatial_merge_size", settings["merge_size"]),
            "temporal_patch_size": getattr(vision, "temporal_patch_size", 1),
        }
        for name, value in own.items():
            if int(value) != int(settings[name]):
                raise InputError(
                    f"{name} is {settings[name]} in the options and {value} in the model's config: "
                    "use the files of one model"
                )
        factor = int(settings["patch_size"]) * int(settings["merge_size"])
        together = int(settings["temporal_patch_size"])
        return -(-frames // together), high // factor, wide // factor
    patch, side = (_side(getattr(vision, name)) for name in ("patch_size", "image_size"))
    if high != wide or (high != side and family != "internvl"):
        raise InputError(
            f"{FAMILIES[family][0]} takes frames of {side} x {side} pixels, not {high} x {wide}: "
            "use the files of one model"
        )
    cells = high // patch
    if family == "llava_onevision":
        cells = math.ceil(cells / 2)
    elif family == "internvl":
        cells = int(cells * float(model_config.downsample_ratio))
    else:
        cells //= int(model_config.scale_factor)
    return frames, cells, cells


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)
