"""What the parts of the six hub families cost, from their transformers configs.

Each family gives its tower, the grid of its tokens, and the products of its projector, as fields of
`vidllm.models.cost.shapes.Shape`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vidllm.errors import InputError

from .flops import VisionTransformer


def transformer(config: Any, *, layers: int | None = None) -> VisionTransformer:
    """A SigLIP, SigLIP2, CLIP, DINOv2 or InternViT vision tower, from its transformers config."""
    kind, width = str(config.model_type), int(config.hidden_size)
    patch = _side(config.patch_size)
    if kind == "siglip2_vision_model":
        side = int(config.num_patches**0.5)
    else:
        side = _side(config.image_size) // patch
    plain = kind.startswith("siglip") or kind in ("smolvlm_vision", "idefics3_vision")
    gated = bool(getattr(config, "use_swiglu_ffn", False))
    inner = int(getattr(config, "intermediate_size", 0) or width * config.mlp_ratio)
    if gated:  # DINOv2's giant rounds two thirds up to a multiple of 8
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
    return VisionTransformer(
        layers=int(config.num_hidden_layers) if layers is None else layers,
        width=width,
        inner=inner,
        rows=side,
        columns=side,
        patch=3 * patch * patch,
        special=0 if plain else 1 + int(getattr(config, "num_register_tokens", 0)),
        gated=gated,
        head=kind.startswith("siglip") and bool(getattr(config, "vision_use_head", True)),
    )


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _llava_onevision(config: Any, _size: int) -> dict[str, Any]:
    tower = transformer(config.vision_config)
    side, dim = -(-tower.rows // 2), int(config.get_text_config().hidden_size)
    patches = tower.rows * tower.columns
    return {
        "tower": tower.flops,
        "rows": side,
        "columns": side,
        "projector": ((patches, tower.width, dim), (patches, dim, dim)),
        "notes": ("the projector runs before 2 × 2 pooling; the newline token counts as text",),
    }


def _any_size(config: Any, size: int) -> tuple[int, int]:
    """Patches of a side, and tokens of a side, of square frames of `size` pixels."""
    patch, merge = int(config.patch_size), int(getattr(config, "spatial_merge_size", 2))
    unit = patch * merge
    if size < 1 or size % unit:
        near = max(unit, round(size / unit) * unit)
        raise InputError(f"--size must be a multiple of {unit} for this model: try {near}")
    return size // patch, size // unit


def _qwen_vl(config: Any, size: int) -> dict[str, Any]:
    vision = config.vision_config
    patches, side = _any_size(vision, size)
    first = config.model_type == "qwen2_vl"  # its tower names the width of its outputs otherwise
    width, merge = int(vision.embed_dim if first else vision.hidden_size), vision.spatial_merge_size
    depth, frames, patch = int(vision.depth), int(vision.temporal_patch_size), vision.patch_size
    window = int(getattr(vision, "window_size", 0) or 0) // (patch * merge) * merge
    tower = VisionTransformer(
        layers=depth,
        width=width,
        inner=int(width * vision.mlp_ratio if first else vision.intermediate_size),
        rows=patches,
        columns=patches,
        patch=3 * frames * patch * patch,
        gated=config.model_type in ("qwen2_5_vl", "qwen2_5_omni_thinker"),
        window=window,
        whole=tuple(getattr(vision, "fullatt_block_indexes", ())),
    )
    folded, cells = width * merge * merge, side * side
    out = int(vision.hidden_size if first else vision.out_hidden_size)
    merger = ((cells, folded, folded), (cells, folded, out))
    deep = len(getattr(vision, "deepstack_visual_indexes", ()))
    return {
        "tower": tower.flops,
        "rows": side,
        "columns": side,
        "per_slot": frames,
        "projector": merger * (1 + deep),
        "notes": (f"{frames} frames make one slot of tokens",),
    }


def _internvl(config: Any, _size: int) -> dict[str, Any]:
    tower = transformer(config.vision_config)
    fold, dim = int(1 / config.downsample_ratio), int(config.get_text_config().hidden_size)
    side = tower.rows // fold
    return {
        "tower": tower.flops,
        "rows": side,
        "columns": side,
        "projector": ((side**2, tower.width * fold**2, dim), (side**2, dim, dim)),
        "notes": ("one tile a frame; the frames' labels count as text",),
    }


def _smolvlm(config: Any, _size: int) -> dict[str, Any]:
    tower = transformer(config.vision_config)
    fold, dim = int(config.scale_factor), int(config.get_text_config().hidden_size)
    side = tower.rows // fold
    return {
        "tower": tower.flops,
        "rows": side,
        "columns": side,
        "projector": ((side**2, tower.width * fold**2, dim),),
        "notes": ("one tile a frame; the frames' times count as text",),
    }


def _video_llama(config: Any, size: int) -> dict[str, Any]:
    vision = config.vision_config
    patches, side = _any_size(vision, size)
    dim = int(config.get_text_config().hidden_size)
    tower = VisionTransformer(
        layers=int(vision.num_hidden_layers),
        width=int(vision.hidden_size),
        inner=int(vision.intermediate_size),
        rows=patches,
        columns=patches,
        patch=3 * int(vision.patch_size) ** 2,
    )
    return {
        "tower": tower.flops,
        "rows": side,
        "columns": side,
        "projector": ((side**2, tower.width, dim), (side**2, dim, dim)),
        "notes": ("2 × 2 patches merge into a token; its own frame difference filter is off",),
    }


_LIKE_QWEN3 = (
    "qwen2_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
)
#: transformers' model type → its parts, from the config and the pixels of a side of a frame.
PARTS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen_vl,
    "qwen3_vl": _qwen_vl,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "video_llama_3": _video_llama,
    **dict.fromkeys(_LIKE_QWEN3, _qwen_vl),
}
#: Those that take frames of any size.
ANY_SIZE = ("qwen2_5_vl", "qwen3_vl", "video_llama_3", *_LIKE_QWEN3)
