"""The shapes of published models and what papers measured, for ``vidllm cost``; data only.

Each preset is the part of the model's published ``config.json`` on the hub that decides its cost,
written in the words of transformers; `parameters` is the size that its card gives, against which
the tests weigh the shape. STORM published no code and no sizes of its temporal module: its preset
takes SigLIP at 448 pixels and Qwen2-7B from the paper and this project's own temporal sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        hub: its name on the hub, "" where there is none. source: where the numbers are from.
        parameters: in billions. config: model_type and sizes, as transformers names them.
        size: pixels of a side of a frame where the model takes any (our choice), else 0.
    """

    hub: str
    source: str
    parameters: float
    config: dict[str, Any]
    size: int = 0


def _text(
    kind: str, layers: int, width: int, inner: int, heads: tuple[int, int], vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        **more,
    }


def _qwen2_7b(kind: str = "qwen2", vocab: int = 152064) -> dict[str, Any]:
    return _text(kind, 28, 3584, 18944, (28, 4), vocab)


#: SigLIP-so400m of patch 14: 27 layers, and 384 pixels in its usual form.
_SIGLIP: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_QWEN25_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_ON_HUB = "config.json on the hub"

PRESETS: dict[str, Preset] = {
    "llava-onevision-7b": Preset(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        f"{_ON_HUB}; the last of SigLIP's 27 layers is left out there",
        8.03,
        {
            "model_type": "llava_onevision",
            "text_config": _qwen2_7b(vocab=152000),
            "vision_config": {
                **_SIGLIP,
                "model_type": "siglip_vision_model",
                "num_hidden_layers": 26,
                "image_size": 384,
                "vision_use_head": False,
            },
        },
    ),
    "qwen2.5-vl-7b": Preset(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        _ON_HUB,
        8.29,
        {
            "model_type": "qwen2_5_vl",
            "text_config": _qwen2_7b("qwen2_5_vl_text"),
            "vision_config": {**_QWEN25_VISION, "out_hidden_size": 3584},
        },
        size=448,
    ),
    "qwen2.5-vl-3b": Preset(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        _ON_HUB,
        3.75,
        {
            "model_type": "qwen2_5_vl",
            "text_config": _text(
                "qwen2_5_vl_text", 36, 2048, 11008, (16, 2), 151936, tie_word_embeddings=True
            ),
            "vision_config": {**_QWEN25_VISION, "out_hidden_size": 2048},
        },
        size=448,
    ),
    "qwen3-vl-8b": Preset(
        "Qwen/Qwen3-VL-8B-Instruct",
        _ON_HUB,
        8.77,
        {
            "model_type": "qwen3_vl",
            "text_config": _text("qwen3_vl_text", 36, 4096, 12288, (32, 8), 151936, head_dim=128),
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "patch_size": 16,
                "temporal_patch_size": 2,
                "spatial_merge_size": 2,
                "out_hidden_size": 4096,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        },
        size=448,
    ),
    "internvl3-8b": Preset(
        "OpenGVLab/InternVL3-8B-hf",
        f"{_ON_HUB} (Qwen2.5-7B behind InternViT-300M)",
        7.94,
        {
            "model_type": "internvl",
            "text_config": _qwen2_7b(vocab=151674),
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
            "downsample_ratio": 0.5,
            "tie_word_embeddings": False,
        },
    ),
    "smolvlm2-2.2b": Preset(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        f"{_ON_HUB} (SmolLM2-1.7B behind SigLIP-so400m)",
        2.25,
        {
            "model_type": "smolvlm",
            "text_config": _text("llama", 24, 2048, 8192, (32, 32), 49280, head_dim=64),
            "vision_config": {**_SIGLIP, "image_size": 384},
            "scale_factor": 3,
        },
    ),
    "videollama3-7b": Preset(
        "lkhl/VideoLLaMA3-7B-Image-HF",
        f"{_ON_HUB} (Qwen2.5-7B behind SigLIP-so400m of any resolution)",
        8.04,
        {
            "model_type": "video_llama_3",
            "text_config": _qwen2_7b(),
            "vision_config": {**_SIGLIP, "model_type": "video_llama_3_vision"},
        },
        size=448,
    ),
    "storm-qwen2-7b": Preset(
        "",
        "arXiv 2503.04130 (448 pixels, 256 tokens a frame, Qwen2-VL-7B's language model); the "
        "temporal module's sizes are ours",
        8.2,
        {
            "model_type": "vidllm-native",
            "vision": {
                **_SIGLIP,
                "type": "siglip_vision_model",
                "image_size": 448,
                "vision_use_head": False,
            },
            "text": _qwen2_7b(),
            "temporal": [{"name": "storm"}],
            "downsample": 2,
            "time_embedding": False,
            "frames": 128,
        },
    ),
}

#: STORM, Table 13: milliseconds on one A100-80G by (frames, tokens kept 1 in …): total, LLM,
#: vision tower, projector with the temporal module. Its totals are rounded.
STORM_MS: dict[tuple[int, int], tuple[float, float, float, float]] = {
    (32, 1): (934, 623, 269, 41),
    (128, 1): (4270, 3090, 1020, 163),
    (128, 4): (1800, 622, 1010, 163),
    (128, 8): (1500, 323, 1020, 163),
    (256, 1): (10340, 7960, 2030, 348),
    (256, 4): (3680, 1310, 2020, 349),
    (256, 8): (3000, 623, 2030, 349),
    (512, 1): (28620, 23710, 4080, 812),
    (512, 4): (7950, 3080, 4080, 812),
    (512, 8): (6200, 1310, 4080, 812),
}
