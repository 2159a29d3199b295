"""Tiny configs of more families of Qwen, whose inputs are those of Qwen2.5-VL or Qwen3-VL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
#: Whose prompts and pixels theirs are like.
LAYOUTS = {
    "qwen2_vl": "qwen2_5_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "qwen3_5": "qwen3_vl",
    "qwen3_5_moe": "qwen3_vl",
    "qwen2_5_omni_thinker": "qwen2_5_vl",
    "qwen3_omni_moe_thinker": "qwen2_5_vl",
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_DELTA = {
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}
_PATCHES = {"depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 1e4, **more}


def config_of(
    family: str, text: Callable[..., dict[str, Any]], small: dict[str, Any], ids: dict[str, int]
) -> Any:
    """A tiny config; `text` and `small` as `hf_tiny` has them."""
    windows = {**small, **_PATCHES, "window_size": 16, "fullatt_block_indexes": [1]}
    windows["out_hidden_size"] = 32
    deep = {**small, **_PATCHES, "out_hidden_size": 32, "num_position_embeddings": 64}
    if family == "qwen2_vl":
        vision = {**_PATCHES, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        text_config = text("qwen2_vl_text", rope_parameters=_rope(1, 1, 2))
        return transformers.Qwen2VLConfig(text_config=text_config, vision_config=vision, **ids)
    if family == "qwen3_vl_moe":
        vision = {**deep, "deepstack_visual_indexes": [0]}
        options = {"rope_parameters": _rope(2, 1, 1), "head_dim": 8, **_EXPERTS}
        text_config = text("qwen3_vl_moe_text", **options)
        return transformers.Qwen3VLMoeConfig(text_config=text_config, vision_config=vision, **ids)
    if family in ("qwen3_5", "qwen3_5_moe"):
        options = {"rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.5), **_DELTA}
        if family == "qwen3_5_moe":
            options |= {**_EXPERTS, "shared_expert_intermediate_size": 16}
        text_config = text(f"{family}_text", **options)
        kind = transformers.Qwen3_5MoeConfig if "moe" in family else transformers.Qwen3_5Config
        return kind(text_config=text_config, vision_config=deep, **ids)
    audio = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
        "num_mel_bins": 16,
        "output_dim": 32,
        "max_source_positions": 16,
    }
    ids = {**ids, "position_id_per_seconds": 2, "audio_start_token_id": 106}
    names = {
        name.replace("_id", "_index"): ids.pop(name)
        for name in list(ids)
        if "start" not in name and name.endswith("token_id")
    }
    if family == "qwen2_5_omni_thinker":
        text_config = text("qwen2_5_omni_text", rope_parameters=_rope(1, 1, 2))
        return transformers.Qwen2_5OmniThinkerConfig(
            text_config=text_config,
            vision_config=windows,
            audio_config=audio,
            audio_token_index=107,
            **names,
            **ids,
        )
    options = {"rope_parameters": _rope(2, 1, 1), "head_dim": 8, **_EXPERTS}
    return transformers.Qwen3OmniMoeThinkerConfig(
        text_config=text("qwen3_omni_moe_text", **options),
        vision_config={**deep, "deepstack_visual_indexes": [0]},
        audio_config={**audio, "downsample_hidden_size": 16},
        audio_token_id=107,
        **{name.replace("_index", "_id"): value for name, value in names.items()},
        **ids,
    )


def renamed(family: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of the family that this one is like, by its own names."""
    pace = inputs.pop("second_per_grid_ts", None) if family in LAYOUTS else None
    if "omni" in family and family in LAYOUTS:
        inputs.pop("mm_token_type_ids")
        if pace is not None:
            inputs["video_second_per_grid"] = pace
    return inputs
