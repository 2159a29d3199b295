"""Pixels of hub models without torchvision: what transformers' video processors make, bit by bit.

transformers refuses to make any video processor where torchvision is missing or does not fit
torch. Frames that are already decoded and chosen need only a resize, a rescale and a
normalisation, each of which torch has. The sizes are those of the processors (`target_sizes`), and
so is the rounding: bytes are resized as bytes on a CPU, with antialiasing; rescale and
normalisation are one step in float32.

Frames are worked on a few at a time, so that memory is the frames' and the result's own.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vidllm.errors import InputError

from .pixel_files import FILTERS, complete
from .served import FAMILIES

_BATCH = 1 << 22  # values that are worked on together
_CHANGE = 0.1  # of normalised pixels, times 255: VideoLLaMA3's choice of tokens


def video_pixels(family: str, frames: Tensor, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """A clip as the model takes it: equal to the family's video processor in transformers.

    As `VideoProcessor(frames, do_sample_frames=False)` with tensors out, under the names that
    the model itself takes. One video; `torch.cat` of several along the first axis is a batch.

    | family | names and shapes |
    |---|---|
    | qwen2_5_vl, qwen3_vl | pixel_values_videos (N, D), video_grid_thw (1, 3) |
    | video_llama_3 | the same, video_merge_sizes (1,), video_compression_mask (N / merge²,) |
    | llava_onevision | pixel_values_videos (1, T, 3, H, W) |
    | internvl | pixel_values (T, 3, H, W) |
    | smolvlm | pixel_values (1, T, 3, H, W), pixel_attention_mask (1, T, H, W) |

    Args:
        family: a model type of `FAMILIES`.
        frames: (T, H, W, 3) uint8, the frames that the model shall see, in time order.
        options: of `pixel_options`, or what differs from the family's defaults.

    Raises:
        InputError: frames or options that the family does not take.
    """
    return pixels_of(family, frames, complete(family, options))


def pixels_of(family: str, frames: Tensor, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """As `video_pixels`, from settings that are `complete` already.

    Raises:
        InputError: frames that the family does not take.
    """
    if frames.dim() != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise InputError(
            "frames are (T, H, W, 3) bytes (uint8), "
            f"not {tuple(frames.shape)} of {str(frames.dtype).removeprefix('torch.')}"
        )
    count, height, width, _ = frames.shape
    sizes = target_sizes(family, height, width, count, settings)
    if "patch_size" not in settings:
        pixels = frames.new_empty((count, 3, *sizes[-1]), dtype=torch.float32)
        for first, part in _prepared(frames, sizes, settings):
            pixels[first : first + len(part)] = part
        if family == "internvl":
            return {"pixel_values": pixels}
        if family == "llava_onevision":
            return {"pixel_values_videos": pixels[None]}
        if not settings["do_pad"]:
            return {"pixel_values": pixels[None]}
        mask = torch.ones((1, count, *sizes[-1]), dtype=torch.int64, device=frames.device)
        return {"pixel_values": pixels[None], "pixel_attention_mask": mask}
    patches, grid = _patches(frames, sizes, settings)
    made = {"pixel_values_videos": patches.flatten(0, 2), "video_grid_thw": grid}
    if family == "video_llama_3":
        merge = int(settings["merge_size"])
        made["video_merge_sizes"] = torch.tensor([merge], device=frames.device)
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=frames.device)
        if settings["use_token_compression"]:
            mask = _changing(patches.flatten(2))
        made["video_compression_mask"] = mask.flatten()
    return made


def _prepared(
    frames: Tensor, sizes: Sequence[tuple[int, int]], settings: Mapping[str, Any]
) -> Iterator[tuple[int, Tensor]]:
    """Parts of a clip, resized and normalised: (its first frame, (n, 3, H, W) float32)."""
    together = int(settings.get("temporal_patch_size", 1))
    largest = max(rows * columns for rows, columns in [*sizes, tuple(frames.shape[1:3])])
    step = together * max(1, _BATCH // (3 * largest * together))
    filter_name = FILTERS[settings["resample"]]
    scale, mean, std = float(settings["rescale_factor"]), None, None
    if settings["do_normalize"]:
        # float32 from here on: the order of these roundings is the library's.
        unit = 1.0 / scale if settings["do_rescale"] else 1.0
        mean, std = (
            (torch.tensor(settings[name], dtype=torch.float32) * unit)
            .view(3, 1, 1)
            .to(frames.device)
            for name in ("image_mean", "image_std")
        )
    for first in range(0, len(frames), step):
        part = frames[first : first + step].movedim(-1, 1).contiguous()
        for size in sizes:
            part = _resize(part, size, filter_name)
        if mean is not None and std is not None:
            yield first, part.to(torch.float32).sub_(mean).div_(std)
        else:
            yield first, part * scale


def _resize(frames: Tensor, size: tuple[int, int], filter_name: str) -> Tensor:
    """(n, 3, h, w) bytes to (n, 3, H, W) bytes, as torchvision does it for torch."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    if filter_name == "nearest-exact":
        return F.interpolate(frames, size, mode=filter_name)
    if filter_name == "lanczos":
        # On a CPU whatever the device: there is no other kernel, and bicubic is not the same.
        near = frames.cpu()
        made = _torch_lanczos(near, size) if _has_lanczos() else _pillow_lanczos(near, size)
        return made.to(frames.device)
    if frames.device.type == "cpu" and (filter_name == "bicubic" or _fast_bilinear()):
        return F.interpolate(frames, size, mode=filter_name, align_corners=False, antialias=True)
    wide = frames.to(torch.float32)
    wide = F.interpolate(wide, size, mode=filter_name, align_corners=False, antialias=True)
    return wide.clamp_(0, 255).round_().to(torch.uint8)


def _torch_lanczos(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(frames, size, mode="lanczos", align_corners=False, antialias=True)


def _pillow_lanczos(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frame by frame, for torch before 2.12: one grey level off in about 1 of 100 values."""
    made = torch.empty((*frames.shape[:2], *size), dtype=torch.uint8)
    for frame, out in zip(frames, made, strict=True):
        picture = Image.fromarray(frame.movedim(0, -1).contiguous().numpy())
        small = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
        out.copy_(torch.from_numpy(np.array(small)).movedim(-1, 0))
    return made


@cache
def _has_lanczos() -> bool:
    try:
        _torch_lanczos(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (2, 2))
    except (NotImplementedError, ValueError):
        return False
    return True


@cache
def _fast_bilinear() -> bool:
    """Whether bytes are resized as bytes here: elsewhere torchvision goes through float32."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return fast or platform.machine() in ("aarch64", "arm64")


def _patches(
    frames: Tensor, sizes: Sequence[tuple[int, int]], settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Pixels by patches, those of a token side by side.

    Returns:
        (T', tokens of a frame, patches of a token, values of a patch) float32, and the grid of
        patches, (1, 3) long.
    """
    side, merge = int(settings["patch_size"]), int(settings["merge_size"])
    together = int(settings["temporal_patch_size"])
    rows, columns = (length // (side * merge) for length in sizes[-1])
    steps = -(-len(frames) // together)
    values = 3 * together * side * side
    made = frames.new_empty((steps, rows * columns, merge**2, values), dtype=torch.float32)
    for first, part in _prepared(frames, sizes, settings):
        if short := -len(part) % together:  # the last frame stands still
            part = torch.cat([part, part[-1:].expand(short, -1, -1, -1)])
        split = (-1, together, 3, rows, merge, side, columns, merge, side)
        # (step, token row, column, patch row, column, colour, frame of the step, y, x)
        tokens = part.view(split).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        place = made[first // together : first // together + len(tokens)]
        place.view(tokens.shape).copy_(tokens)
    grid = torch.tensor([[steps, rows * merge, columns * merge]], device=frames.device)
    return made, grid


def _changing(tokens: Tensor) -> Tensor:
    """VideoLLaMA3's own choice: tokens whose pixels differ from those of the frame before.

    Zhang et al., VideoLLaMA 3 (arXiv 2501.13106), the differential frame pruner: the mean absolute
    difference of normalised pixels, times 255, is above 0.1. Every frame keeps at least one token,
    the first where none has changed.

    Args:
        tokens: (T, N, D), the pixels of every token.

    Returns:
        (T, N) bool.
    """
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    for frame in range(1, len(tokens)):
        change = (tokens[frame] - tokens[frame - 1]).abs().mean(-1) * 255
        mask[frame] = change > _CHANGE
        mask[frame, 0] |= ~mask[frame].any()
    return mask


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
