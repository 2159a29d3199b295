"""What a hub model's files say of its pixels, and the family's defaults where they are silent.

The numbers are those of transformers' video processors, which cannot be made without
torchvision. A model's own files count before them. See `pixels`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.utils.hub import cached_file

from vidllm.errors import InputError

from ..hub import unreachable
from .served import FAMILIES, OWN_PIXELS
from .unserved import refusal

#: Files that may hold the settings, first come first served.
FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
#: Filters of `resample`, by Pillow's numbers.
FILTERS = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

_CLIP = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
_HALF = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
_PATCHES: dict[str, Any] = {
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_SQUARE = {"size": {"height": 384, "width": 384}}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        **_PATCHES,
        **_CLIP,
        "cap_pixels_per_frame": False,
        "max_video_tokens": 128000,
    },
    "qwen3_vl": {
        **_PATCHES,
        **_HALF,
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32},
        "patch_size": 16,
        "cap_pixels_per_frame": False,
        "max_video_tokens": 768,
    },
    "llava_onevision": {**_SQUARE, **_CLIP},
    "internvl": {**_SQUARE, **_CLIP},
    "smolvlm": {
        **_HALF,
        "resample": 1,
        "size": {"longest_edge": 4 * 364},
        "max_image_size": {"longest_edge": 364},
        "do_pad": True,
    },
    "video_llama_3": {
        **_PATCHES,
        **_HALF,
        "temporal_patch_size": 1,
        "use_token_compression": True,
    },
}
_EDGES = {"shortest_edge", "longest_edge"}
_SIDES = {"height", "width"}
_LONGEST = 2**14  # pixels of a side, far more than models take
#: What `size` must hold, one of these.
_SIZES: dict[str, tuple[set[str], ...]] = {
    **dict.fromkeys(("qwen2_5_vl", "qwen3_vl", "video_llama_3"), (_EDGES,)),
    **dict.fromkeys(("llava_onevision", "internvl"), (_SIDES,)),
    "smolvlm": ({"longest_edge"}, _SIDES),
}


def pixel_options(folder_or_name: str, family: str | None = None, **hub: Any) -> dict[str, Any]:
    """What a model's own files say of its pixels, the family's defaults where they are silent.

    The first of `processor_config.json` (its `video_processor`), `video_preprocessor_config.json`
    and `preprocessor_config.json` counts, as in transformers.

    Args:
        folder_or_name: a folder, or a model's name on the hub.
        family: its model type; read from `config.json` where it is not given.
        hub: for transformers' `cached_file`: revision, token, local_files_only, subfolder, ...

    Raises:
        InputError: no such model, no such file, an unreadable one, a family that is not served.
    """
    if family is None:
        config = _read(folder_or_name, "config.json", hub)
        if config is None and not Path(folder_or_name).is_dir():
            raise InputError(
                f"no model '{folder_or_name}': it is no folder, and on the hub it has no config"
            )
        if config is None:
            raise InputError(f"'{folder_or_name}' has no config.json: give a model's own folder")
        family = str(config.get("model_type"))
    _known(family)
    for name in FILES:
        found = _read(folder_or_name, name, hub)
        if name == FILES[0] and found is not None:
            found = found.get("video_processor")
        if isinstance(found, dict):
            return complete(family, found)
    raise InputError(
        f"'{folder_or_name}' has no {FILES[1]} and no {FILES[2]}: "
        "without them its pixels cannot be made; put the published ones beside its weights"
    )


def _read(folder_or_name: str, name: str, hub: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        path = cached_file(folder_or_name, name, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise unreachable(folder_or_name, error, bool(hub.get("local_files_only"))) from error
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name} of '{folder_or_name}' cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{name} of '{folder_or_name}' holds no settings: get the file again")
    return found


def complete(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the family's defaults where they say nothing, checked.

    A null is a no for what is done or not, as in transformers, and elsewhere says nothing.
    `min_pixels` and `max_pixels` become `size`; SmolVLM2's `video_sampling.video_size` counts
    where `size` is not given.

    Raises:
        InputError: a family that is not served, a value that cannot be used.
    """
    _known(family)
    given = {key: value for key, value in options.items() if value is not None}
    given.update((key, False) for key in options if key[:3] == "do_" and options[key] is None)
    base = {**_COMMON, **_DEFAULTS[family]}
    made = {key: given.get(key, value) for key, value in base.items()}
    if family in ("qwen2_5_vl", "video_llama_3") and isinstance(made["size"], Mapping):
        named = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
        known = {key: given[name] for key, name in named.items() if name in given}
        made["size"] = {**made["size"], **known}
    if family == "smolvlm" and "size" not in given:
        sampling = given.get("video_sampling")
        if isinstance(sampling, Mapping) and "video_size" in sampling:
            made["size"] = sampling["video_size"]
    if isinstance(made["size"], int) and _SIDES in _SIZES[family]:
        made["size"] = {"height": made["size"], "width": made["size"]}
    size = made["size"]
    if not (isinstance(size, Mapping) and set(size) in _SIZES[family] and _counts(*size.values())):
        raise InputError(
            f"size of {FAMILIES[family][0]} is {_named(_SIZES[family])} in pixels, not {size!r}"
        )
    if set(size) == _SIDES and max(size.values()) > _LONGEST:
        raise InputError(f"size is at most {_LONGEST} pixels a side, not {dict(size)!r:.80}")
    for key in ("patch_size", "temporal_patch_size", "merge_size", "max_video_tokens"):
        if key in made and not _counts(made[key]):
            raise InputError(f"{key} is a positive whole number, not {made[key]!r}")
    if "max_image_size" in made:
        largest = made["max_image_size"]
        if not (isinstance(largest, Mapping) and _counts(largest.get("longest_edge"))):
            raise InputError(f"max_image_size is {{'longest_edge': pixels}}, not {largest!r}")
    for key in ("image_mean", "image_std"):
        value = made[key]
        if not (isinstance(value, list | tuple) and len(value) == 3):
            raise InputError(f"{key} is three numbers, one a colour, not {value!r}")
    if made["resample"] not in FILTERS:
        raise InputError(f"resample is one of {sorted(FILTERS)}, not {made['resample']!r}")
    if not made["rescale_factor"] or not all(made["image_std"]):
        raise InputError("rescale_factor and image_std must not be 0")
    if not (made["do_rescale"] or made["do_normalize"]):
        raise InputError("do_rescale and do_normalize are both off: a model takes no raw bytes")
    if given.get("do_center_crop"):
        raise InputError(f"{FAMILIES[family][0]} does not crop frames: set do_center_crop to false")
    return made


def _known(family: str) -> None:
    if family not in FAMILIES:
        raise InputError(refusal(family))
    if family not in OWN_PIXELS:
        raise InputError(
            f"the pixels of {FAMILIES[family][0]} are made by its own processor, not here"
        )


def _counts(*values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < 2**40 for v in values)


def _named(sizes: tuple[set[str], ...]) -> str:
    return " or ".join("{" + ", ".join(sorted(names)) + "}" for names in sizes)
