"""Tiny configs of the families of other houses than Qwen, and their inputs made by hand.

Names with a plus are further forms of a family: Gemma 4 with keys that layers share and a row of
embeddings for every layer, as its small models have; MiniCPM-V 4.7 on the decoder of Qwen3.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

CLASSES = {
    "glm4v": "Glm4vForConditionalGeneration",
    "glm4v_moe": "Glm4vMoeForConditionalGeneration",
    "glm46v": "Glm46VForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4+shared": "Gemma4ForConditionalGeneration",
    "minicpmv4_6": "MiniCPMV4_6ForConditionalGeneration",
    "minicpmv4_7": "MiniCPMV4_7ForConditionalGeneration",
    "minicpmv4_7+hybrid": "MiniCPMV4_7ForConditionalGeneration",
    "molmo2": "Molmo2ForConditionalGeneration",
    "llava_next_video": "LlavaNextVideoForConditionalGeneration",
    "video_llava": "VideoLlavaForConditionalGeneration",
    "perception_lm": "PerceptionLMForConditionalGeneration",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeForConditionalGeneration",
    "exaone4_5": "Exaone4_5_ForConditionalGeneration",
    "cosmos3_omni": "Cosmos3OmniForConditionalGeneration",
    "cosmos3_edge": "Cosmos3EdgeForConditionalGeneration",
}
#: Whose prompts and pixels theirs are like.
LAYOUTS = {"exaone4_5": "qwen2_5_vl", "cosmos3_omni": "qwen3_vl", "cosmos3_edge": "qwen3_vl"}
#: The library takes no picture beside a video.
ALONE = ("glm4v", "glm4v_moe", "glm46v", "molmo2")
_IMAGE, _VIDEO, _START, _END, _NEWLINE = 101, 102, 103, 104, 105
_SIDE, _PATCH = 32, 8


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 1e4, **more}


def config_of(
    family: str, text: Callable[..., dict[str, Any]], small: dict[str, Any], ids: dict[str, int]
) -> Any:
    """A tiny config; `text` and `small` as `hf_tiny` has them."""
    packed = {**small, "depth": 2, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32}
    square = {
        **small,
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    make = _MAKERS[family.partition("_")[0]]
    return make(family, text, {"packed": packed, "square": square, "small": small}, ids)


def _glm(family: str, text: Any, parts: Any, ids: Any) -> Any:
    vision = {**parts["packed"], "image_size": _SIDE}
    if family == "glm4v":
        words = text("glm4v_text", rope_parameters=_rope(1, 1, 2))
        return transformers.Glm4vConfig(text_config=words, vision_config=vision, **ids)
    words = text(
        "glm4v_moe_text",
        rope_parameters=_rope(1, 1, 2, partial_rotary_factor=0.5),
        head_dim=16,
        moe_intermediate_size=16,
        num_experts_per_tok=2,
        n_routed_experts=4,
    )
    if family == "glm4v_moe":
        return transformers.Glm4vMoeConfig(text_config=words, vision_config=vision, **ids)
    vision["model_type"] = "glm4v_moe_vision"  # the big GLM-4.6V; the small one is all GLM-4.1V's
    return transformers.Glm46VConfig(text_config=words, vision_config=vision, **ids)


def _gemma(family: str, text: Any, parts: Any, ids: Any) -> Any:
    shared = family.endswith("+shared")
    kinds = ["sliding_attention", "full_attention"] * 2
    more: dict[str, Any] = (
        {
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", *kinds, "full_attention"],
            "num_hidden_layers": 6,
        }
        if shared
        else {
            "hidden_size_per_layer_input": 0,
            "use_bidirectional_attention": "vision",
            "layer_types": kinds,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "attention_k_eq_v": True,
        }
    )
    words = text("gemma4_text", head_dim=8, global_head_dim=16, sliding_window=12)
    words["max_position_embeddings"] = 1024
    words |= {"vocab_size_per_layer_input": words["vocab_size"], **more}
    vision = {
        **parts["square"],
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    return transformers.Gemma4Config(
        text_config=words,
        vision_config=vision,
        audio_config=None,
        boi_token_id=_START,
        eoi_token_id=_END,
        tie_word_embeddings=False,
        **ids,
    )


def _minicpm(family: str, text: Any, parts: Any, ids: Any) -> Any:
    vision = {**parts["square"], "patch_size": 4}
    if family == "minicpmv4_6":
        words = text("qwen3", head_dim=8)
        return transformers.MiniCPMV4_6Config(
            text_config=words, vision_config=vision, insert_layer_id=0, **ids
        )
    words = text("qwen3_vl_text", rope_parameters=_rope(2, 1, 1), head_dim=8)
    if family.endswith("+hybrid"):
        rope = _rope(2, 1, 1, partial_rotary_factor=0.5)
        words = text("qwen3_5_text", rope_parameters=rope, full_attention_interval=2, head_dim=16)
        words |= {f"linear_num_{name}_heads": count for name, count in (("key", 2), ("value", 4))}
        words |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    return transformers.MiniCPMV4_7Config(
        text_config=words,
        vision_config=vision,
        insert_layer_id=0,
        image_start_id=_START,
        image_end_id=_END,
        slice_start_id=106,
        slice_end_id=107,
        newline_id=_NEWLINE,
        **ids,
    )


def _molmo(_family: str, text: Any, parts: Any, _ids: Any) -> Any:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    square = {k: v for k, v in parts["square"].items() if k != "image_size"}
    return transformers.Molmo2Config(
        text_config=text("molmo2_text", head_dim=8, additional_vocab_size=2),
        vision_config={**square, **heads, "image_size": [_SIDE, _SIDE]},
        adapter_config={
            **parts["small"],
            **heads,
            "text_hidden_size": 32,
            "vision_feature_layer": [1, 0],
        },
        image_patch_id=_IMAGE,
        frame_start_token_id=_START,
        frame_end_token_id=_END,
    )


def _llava(family: str, text: Any, parts: Any, ids: Any) -> Any:
    made = transformers.LlavaNextVideoConfig if "next" in family else transformers.VideoLlavaConfig
    more = {"image_grid_pinpoints": [[_SIDE, _SIDE]]} if "next" in family else {}
    return made(
        text_config=text("llama"),
        vision_config={**parts["square"], "model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=_IMAGE,
        video_token_index=_VIDEO,
        vision_feature_layer=-2,
        **more,
    )


def _perception(_family: str, text: Any, parts: Any, ids: Any) -> Any:
    """With SigLIP in the place of timm's tower, which is not installed here."""
    vision = transformers.SiglipVisionConfig(**parts["square"], vision_use_head=False)
    vision.model_args = {"embed_dim": 32}
    return transformers.PerceptionLMConfig(
        text_config=text("llama"),
        vision_config=vision,
        vision_use_cls_token=False,
        projector_pooling_ratio=2,
        **ids,
    )


def _ernie(_family: str, text: Any, parts: Any, ids: Any) -> Any:
    words = text(
        "ernie4_5_vl_moe_text",
        rope_parameters=_rope(1, 1, 2),
        moe_intermediate_size=[16, 24],
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
    )
    vision = {k: v for k, v in parts["packed"].items() if k != "out_hidden_size"}
    edges = {"image_start_token_id": 106, "image_end_token_id": 107}
    edges |= {"video_start_token_id": _START, "video_end_token_id": _END}
    return transformers.Ernie4_5_VLMoeConfig(
        text_config=words, vision_config=vision, tie_word_embeddings=False, **edges, **ids
    )


def _exaone(_family: str, text: Any, parts: Any, ids: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2
    vision = {**parts["packed"], "window_size": 16, "fullatt_block_indexes": [1]}
    return transformers.Exaone4_5_Config(
        text_config=text("exaone4", sliding_window=12, layer_types=kinds),
        vision_config={**vision, "num_key_value_heads": 1, "temporal_patch_size": 2},
        **ids,
    )


def _cosmos(family: str, text: Any, parts: Any, ids: Any) -> Any:
    if family == "cosmos3_omni":
        vision = {**parts["packed"], "num_position_embeddings": 64, "temporal_patch_size": 2}
        return transformers.Cosmos3OmniConfig(
            text_config=text("qwen3_vl_text", rope_parameters=_rope(2, 1, 1), head_dim=8),
            vision_config={**vision, "deepstack_visual_indexes": [0, 1]},
            vision_start_token_id=_START,
            vision_end_token_id=_END,
            **ids,
        )
    vision = {**parts["small"], "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.Cosmos3EdgeConfig(
        text_config=text("cosmos3_edge_text", rope_parameters=_rope(2, 1, 1), head_dim=8),
        vision_config={**vision, "patch_size": 4, "num_patches": 64},
        projector_hidden_size=32,
        vision_start_token_id=_START,
        vision_end_token_id=_END,
        **ids,
    )


_MAKERS: dict[str, Callable[..., Any]] = {
    "glm4v": _glm,
    "glm46v": _glm,
    "gemma4": _gemma,
    "gemma4+shared": _gemma,
    "minicpmv4": _minicpm,
    "molmo2": _molmo,
    "llava": _llava,
    "video": _llava,
    "perception": _perception,
    "ernie4": _ernie,
    "exaone4": _exaone,
    "cosmos3": _cosmos,
}


def image_of(made: Any) -> list[int]:
    """The ids of a picture; its pixels are noted in `made`, the maker of the inputs."""
    family = made.family.partition("+")[0]
    if family in ALONE:
        return []
    if family == "gemma4":
        made.images.append(made.noise(1, 16, 3 * _PATCH**2))
    elif family.startswith("minicpmv"):
        made.images.append(made.noise(1, 3, 4, 64 * 4))
    elif family == "llava_next_video":
        made.images.append(made.noise(2, 3, _SIDE, _SIDE))
        return [_IMAGE] * (16 + 16 + 4)
    elif family == "video_llava":
        made.images.append(made.noise(3, _SIDE, _SIDE))
        return [_IMAGE] * 16
    elif family == "perception_lm":
        made.images.append(made.noise(1, 3, _SIDE, _SIDE))
    else:
        made.images.append(made.noise(16, 3 * 16))
        made.grids["image"].append([1, 4, 4])
        return [106, *[_IMAGE] * 4, 107]
    return [_START, *[_IMAGE] * 4, _END]


def video_of(made: Any, frames: int, side: int) -> list[int]:
    """The ids of a video, of so many frames (of the token grid) and tokens a side."""
    family = made.family.partition("+")[0]
    if family.startswith("glm"):
        made.videos.append(made.noise(frames * 4 * side**2, 3 * 2 * 16))
        made.grids["video"].append([frames, 2 * side, 2 * side])
        line = [108]
        for f in range(frames):
            time = f"{2 * f}" if family != "glm46v" else f"{2 * f:.1f} seconds"
            line += [_START, *[_IMAGE] * side**2, _END, *made.write(time)]
        return [*line, 109]
    if family == "ernie4_5_vl_moe":
        made.videos.append(made.noise(2 * frames * 4 * side**2, 3 * 16))
        made.grids["video"].append([2 * frames, 2 * side, 2 * side])
        return [_START, *[_VIDEO] * (frames * side**2), _END]
    if family.startswith("minicpmv"):
        made.videos.append(made.noise(1, 3, 4, frames * 16 * side**2 * 4))
        made.grids["video"] += [[4 * side, 4 * side]] * frames
        return [_START, *[_VIDEO] * side**2, _END] * frames
    if family == "gemma4":
        side = min(side, 2)  # of 16 patches; a frame of 2 x 1 tokens has eight that are padding
        rows = 2 if side == 2 and frames % 2 == 0 and not made.videos else 1
        pixels = made.noise(frames, 16, 3 * _PATCH**2)
        made.videos.append(pixels)
        made.grids["video"].append([frames, rows, 2])
        line = []
        for f in range(frames):
            line += [*made.write(f"00:0{2 * f} "), _START, *[_VIDEO] * (rows * 2), _END]
        return line
    if family == "molmo2":
        made.videos.append(made.noise(frames, 16, 3 * _PATCH**2))
        line = []
        for f in range(frames):
            line += [*made.write(f"{2.0 * f:.1f} "), _START, *[_IMAGE] * 4, _END]
        return line
    made.videos.append(made.noise(frames, 3, _SIDE, _SIDE))
    return [_VIDEO] * (frames * (17 if family == "video_llava" else 4))


def pixels_of(made: Any, ids: Tensor) -> dict[str, Any]:
    """What the family's processor gives beside ids and mask."""
    family, videos, images = made.family.partition("+")[0], made.videos, made.images
    out: dict[str, Any] = {}
    kinds = (ids == _IMAGE).int() + 2 * (ids == _VIDEO).int()
    if family.startswith("glm"):
        if videos:
            out = {"pixel_values_videos": torch.cat(videos)}
            out["video_grid_thw"] = torch.tensor(made.grids["video"])
        return {**out, "mm_token_type_ids": 2 * (ids == _IMAGE).int()}
    if family == "ernie4_5_vl_moe":
        for kind, pixels in (("image", images), ("video", videos)):
            if pixels:
                out["pixel_values" + ("_videos" if kind == "video" else "")] = torch.cat(pixels)
                out[f"{kind}_grid_thw"] = torch.tensor(made.grids[kind])
        edges = torch.isin(ids, torch.tensor([106, 107])).int()
        edges = edges + 2 * torch.isin(ids, torch.tensor([_START, _END])).int()
        return {**out, "mm_token_type_ids": kinds, "moe_mm_token_type_ids": kinds + edges}
    if family.startswith("minicpmv"):
        if images:
            out["pixel_values"] = torch.cat(images, dim=-1)
            out["target_sizes"] = torch.tensor([[8, 8]] * len(images))
        if videos:
            out["pixel_values_videos"] = torch.cat(videos, dim=-1)
            out["target_sizes_videos"] = torch.tensor(made.grids["video"])
        return {**out, "mm_token_type_ids": kinds} if family == "minicpmv4_7" else out
    if family == "gemma4":
        if images:
            out["pixel_values"] = torch.cat(images).sigmoid()
            out["image_position_ids"] = _places(4).expand(len(images), -1, -1)
        if videos:
            out["pixel_values_videos"] = torch.cat(videos).sigmoid()
            grids = made.grids["video"]
            places = [_places(2 * rows).expand(frames, -1, -1) for frames, rows, _ in grids]
            out["video_position_ids"] = torch.cat(places)
            out["num_frames_per_video"] = torch.tensor([frames for frames, _, _ in grids])
        return {**out, "mm_token_type_ids": kinds}
    if family == "molmo2":
        if videos:
            out["pixel_values_videos"] = torch.cat(videos)
            patch = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
            count = sum(map(len, videos))
            out["video_token_pooling"] = (patch + 16 * torch.arange(count).view(-1, 1, 1)).flatten(
                0, 1
            )
            out["video_grids"] = torch.tensor([[len(video), 2, 2] for video in videos])
        marks = torch.tensor([_IMAGE, _START, _END])
        return {**out, "mm_token_type_ids": torch.isin(ids, marks).int()}
    if images:
        out["pixel_values"] = torch.stack(images)
        if family == "llava_next_video":
            out["image_sizes"] = torch.tensor([[_SIDE, _SIDE]] * len(images))
    if videos:
        out["pixel_values_videos"] = torch.stack(videos)
    return out


def renamed(family: str, made: dict[str, Any]) -> dict[str, Any]:
    """Inputs like another family's, as this one takes them."""
    if family == "exaone4_5":
        return {k: v for k, v in made.items() if "pixel" in k or "grid_thw" in k}
    if family == "cosmos3_edge":  # single frames
        return {k: v[:, : v.shape[1] // 2] if "pixel" in k else v for k, v in made.items()}
    return made


def _places(rows: int) -> Tensor:
    """(16, 2) the places (x, y) of 4 x `rows` patches, and of padding."""
    found = [(n % 4, n // 4) if n < 4 * rows else (-1, -1) for n in range(16)]
    return torch.tensor(found)
