"""What transformers' own video processors make of made-up clips, as a program of its own.

    python tests/kit/hf_pixels_library.py FOLDER

writes FOLDER/pixels_FAMILY.npz. It needs torchvision, in a process where nothing else depends on
it. A torchvision that was built for another torch than the one here cannot be imported, for the
operators of its compiled part are missing; video processors use none of these, so two of them
are declared and the import works.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSES = {
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
    "video_llama_3": "VideoLlama3VideoProcessor",
}
PACKED = ("qwen2_5_vl", "qwen3_vl", "video_llama_3")
_SHOWN = 600  # values of every tensor that are kept


@dataclass(frozen=True)
class Case:
    """A clip (frames, height, width) and what differs from the family's defaults."""

    clip: tuple[int, int, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def frames(self) -> Tensor:
        """(T, H, W, 3) uint8: noise; a third of it stands still, and every third frame repeats.

        The legacy generator, whose numbers are the same in every version of NumPy.
        """
        count, height, width = self.clip
        random = np.random.RandomState(count * height + width)
        made = random.randint(0, 256, (*self.clip, 3), dtype=np.uint8)
        made[:, : height // 3] = made[:1, : height // 3]
        made[2::3] = made[1::3][: len(made[2::3])]
        return torch.from_numpy(made)


_LIMITS = {"min_pixels": 3136, "max_pixels": 100352}
_EDGES = {"size": {"shortest_edge": 4096, "longest_edge": 200704}}
_FIT = {"patch_size": 5, "merge_size": 2}
_HUB = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}}
_PLAIN: dict[str, dict[str, Case]] = {
    "qwen2_5_vl": {
        "hub": Case((4, 90, 160), {"min_pixels": 3136, "max_pixels": 12845056}),
        "tall": Case((3, 301, 40), _LIMITS),
        "wide": Case((2, 21, 803), _LIMITS),
        "many": Case((41, 60, 57), {**_LIMITS, "cap_pixels_per_frame": True}),
        "capped": Case((6, 300, 300), {"cap_pixels_per_frame": True, "max_video_tokens": 400}),
        "null": Case((2, 70, 90), {"size": None, "min_pixels": None, "do_resize": None, **_FIT}),
        "three": Case((4, 40, 40), {**_LIMITS, "temporal_patch_size": 3, "merge_size": 1}),
    },
    "qwen3_vl": {
        "hub": Case((4, 90, 160), _HUB),
        "tall": Case((3, 301, 40), _EDGES),
        "wide": Case((2, 21, 803), _EDGES),
        "many": Case((37, 70, 45), _EDGES),
        "capped": Case((6, 300, 300), {"cap_pixels_per_frame": True, "max_video_tokens": 20}),
        "five": Case((5, 200, 130), {**_EDGES, "patch_size": 14, "max_pixels": 1}),
    },
    "llava_onevision": {
        "hub": Case((3, 90, 160), {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
        "tall": Case((1, 401, 30)),
        "wide": Case((2, 21, 803)),
        "same": Case((2, 384, 384)),
        "number": Case((2, 70, 71), {"size": {"height": 56, "width": 42}}),
    },
    "internvl": {
        "hub": Case((3, 90, 160), {"size": {"height": 448, "width": 448}}),
        "tall": Case((1, 401, 30)),
        "nearest": Case((2, 21, 803), {"resample": 0}),
        "bilinear": Case((2, 120, 80), {"resample": 2}),
    },
    "smolvlm": {
        "hub": Case(
            (2, 90, 160),
            {
                "size": {"longest_edge": 2048},
                "max_image_size": {"longest_edge": 512},
                "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
            },
        ),
        "sampling": Case(
            (3, 200, 131),
            {
                "max_image_size": {"longest_edge": 384},
                "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 384}},
            },
        ),
        "tall": Case((1, 401, 30), {"size": {"longest_edge": 5000}}),
        "wide": Case((2, 21, 803), {"do_pad": False}),
        "sides": Case((2, 70, 71), {"size": {"height": 90, "width": 50}, "resample": 3}),
    },
    "video_llama_3": {
        "hub": Case((4, 90, 160), {"min_pixels": 784, "max_pixels": 12845056}),
        "tall": Case((3, 301, 40)),
        "wide": Case((2, 21, 803), _LIMITS),
        "many": Case((16, 120, 90), {"max_pixels": 200704, "min_pixels": 784}),
        "all": Case((5, 60, 57), {**_LIMITS, "use_token_compression": False}),
    },
}
_BYTES = {"do_normalize": False}
_UNSCALED = {"do_rescale": False, "image_mean": [120.0, 100, 90], "image_std": [60.0, 50, 40]}
CASES = {
    family: {
        **own,
        "one": Case((2 if family == "qwen3_vl" else 1, 66, 50)),
        "tiny": Case((3, 2, 3)),
        "huge": Case((2, 1080, 1921)),
        "unnormalised": Case((2, 50, 64), _BYTES),
        "unscaled": Case((2, 50, 64), _UNSCALED),
    }
    for family, own in _PLAIN.items()
}


#: Files of made-up models, by the name of the layout: their family, and what each file says.
_OURS: dict[str, Any] = {"size": {"longest_edge": 640}, "max_image_size": {"longest_edge": 320}}
_VIDEO = {"video_size": {"longest_edge": 480}, "fps": 1, "max_frames": 8}
FOLDERS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "image-only": ("qwen2_5_vl", {"preprocessor_config": {**_LIMITS, "image_mean": [0.1] * 3}}),
    "nested": (
        "qwen2_5_vl",
        {
            "processor_config": {"video_processor": {"max_pixels": 90000, "do_resize": None}},
            "video_preprocessor_config": {"max_pixels": 1},
        },
    ),
    "video-first": (
        "qwen3_vl",
        {
            "processor_config": {"processor_class": "Qwen3VLProcessor"},
            "video_preprocessor_config": {**_HUB, "image_mean": [0.2] * 3, "max_pixels": 1},
            "preprocessor_config": {"patch_size": 99},
        },
    ),
    "square": (
        "llava_onevision",
        {"video_preprocessor_config": {"size": {"height": 336, "width": 336}, "resample": 2}},
    ),
    "empty": ("internvl", {"video_preprocessor_config": {}}),
    "size-and-sampling": ("smolvlm", {"preprocessor_config": {**_OURS, "video_sampling": _VIDEO}}),
    "sampling": ("smolvlm", {"preprocessor_config": {"video_sampling": _VIDEO, "do_pad": None}}),
    "compression": (
        "video_llama_3",
        {"video_preprocessor_config": {**_LIMITS, "use_token_compression": False}},
    ),
}
KEYS = ("size", "resample", "rescale_factor", "image_mean", "image_std", "patch_size")
KEYS += ("temporal_patch_size", "merge_size", "do_resize", "do_rescale", "do_normalize")
KEYS += ("max_image_size", "do_pad", "use_token_compression", "max_video_tokens")


def write_folder(layout: str, folder: Path) -> None:
    """The files of a made-up model."""
    family, files = FOLDERS[layout]
    folder.mkdir()
    for name, content in {"config": {"model_type": family}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def plain(options: Mapping[str, Any]) -> str:
    """Settings that are on or have a value, as text that can be compared."""
    named = {key: options[key] for key in KEYS if options.get(key)}
    for key in ("size", "max_image_size"):
        if key in named:
            named[key] = {k: v for k, v in dict(named[key]).items() if v is not None}
    return json.dumps(named, sort_keys=True)


def clips(family: str) -> list[tuple[tuple[int, int, int], dict[str, Any]]]:
    """Many sizes of clips, (T, H, W), with options; frames of every shape."""
    random = np.random.RandomState(7)
    made: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
    for _ in range(240 if family in PACKED else 0):
        sides = np.exp(random.uniform(0.1, 8.3, 2)).astype(int).tolist()
        frames = int(np.exp(random.uniform(0.7, 6)))
        most = int(np.exp(random.uniform(11, 17)))
        options: dict[str, Any] = {"size": {"shortest_edge": most // 40, "longest_edge": most}}
        if family != "video_llama_3":
            options["cap_pixels_per_frame"] = bool(random.randint(2))
            options["max_video_tokens"] = int(np.exp(random.uniform(4, 11)))
        made.append(((frames, *sides), options))
    return made


def shown(tensors: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Shape, type, hash and some values of every tensor: enough to tell whether two are equal."""
    for name, value in sorted(tensors.items()):
        array = np.ascontiguousarray(torch.as_tensor(value).numpy())
        step = max(1, array.size // _SHOWN) | 1
        yield f"{name}/shape", np.array(array.shape)
        yield f"{name}/hash", np.array(f"{array.dtype} {hashlib.sha256(array).hexdigest()}")
        yield f"{name}/values", array.reshape(-1)[::step]


def environment() -> str:
    """What decides the last bit: the kernels of torch."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__.split('+')[0]} {capability.rstrip('0123456789')}"


def declare_operators() -> None:
    # Kept alive in the module: what a Library declares is gone with it.
    declare_operators.kept = library = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _size(family: str, clip: tuple[int, int, int], options: Mapping[str, Any]) -> list[int]:
    """Height and width after the resize; zeros where the library refuses."""
    made = _processor(family, options)
    count, height, width = clip
    try:
        video = made.resize(
            torch.empty((1, count, 3, height, width), device="meta"),
            size=made.size,
            resample=3,
            factor=made.patch_size * made.merge_size,
            temporal_factor=made.temporal_patch_size,
            cap_pixels_per_frame=options.get("cap_pixels_per_frame"),
        )
    except ValueError:
        return [0, 0]
    return list(video.shape[-2:])


def _processor(family: str, options: Mapping[str, Any]) -> Any:
    import transformers

    return getattr(transformers, CLASSES[family])(**deepcopy(dict(options)))


def main(folder: Path) -> None:
    """Write one file a family."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        declare_operators()
        importlib.import_module("torchvision")
    import transformers

    for family, cases in CASES.items():
        found: dict[str, np.ndarray[Any, Any]] = {"environment": np.array(environment())}
        for name, case in cases.items():
            made = _processor(family, case.options)(
                [case.frames().numpy()],
                do_sample_frames=False,
                input_data_format="channels_last",
                return_tensors="pt",
            )
            tensors = {key: value for key, value in made.items() if key != "video_metadata"}
            if family == "internvl":  # as its processor does for the model
                tensors = {"pixel_values": tensors["pixel_values_videos"].flatten(0, 1)}
            found.update({f"{name}/{key}": value for key, value in shown(tensors)})
        for layout, (kind, _) in FOLDERS.items():
            if kind == family:
                write_folder(layout, folder / layout)
                made = getattr(transformers, CLASSES[family]).from_pretrained(folder / layout)
                found[f"files/{layout}"] = np.array(plain(vars(made)))
        found["sizes"] = np.array([_size(family, *clip) for clip in clips(family)])
        np.savez_compressed(folder / f"pixels_{family}.npz", allow_pickle=False, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
