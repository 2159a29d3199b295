"""What ``vidllm bench models`` runs: published models at any scale, and inputs for them.

The weights are random and the inputs made by hand, so that nothing is downloaded: no processor, no
tokenizer. The shapes are those of the published configs (`vidllm.models.cost.presets`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.models.cost.presets import PRESETS

#: What the published configs have beside the sizes in `vidllm.models.cost.presets`.
_ROPE = {
    "qwen2_5_vl": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    "llava_onevision": {"rope_type": "default", "rope_theta": 1e6},
}
_LEAST_DEPTH = 4  # cuts between layers need some


@dataclass
class Subject:
    """A model and what its inputs are made of.

    Attributes:
        kind: "qwen2_5_vl" or "llava_onevision". side: tokens along a side of a frame (of a slot
            of two frames for Qwen2.5-VL). text: tokens of the prompt beside the video.
    """

    model: Any
    kind: str
    side: int
    text: int = 100

    def slots(self, frames: int) -> int:
        """Frames of the token grid: Qwen2.5-VL makes one of two."""
        return -(-frames // 2) if self.kind == "qwen2_5_vl" else frames

    def video(self, inputs: dict[str, Any]) -> int:
        """Video tokens that may be left out."""
        count = int((inputs["input_ids"] == self.model.config.video_token_id).sum())
        return count - (self.kind == "llava_onevision")  # its newline stays

    def inputs(self, frames: int, seed: int = 0) -> dict[str, Any]:
        """As the processor would make them: one prompt, a video of smooth noise in the middle."""
        device, dtype = self.model.device, self.model.dtype
        random = torch.Generator(device).manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, device=device, dtype=dtype)

        config, slots = self.model.config, self.slots(frames)
        cells = slots * self.side**2
        made: dict[str, Any] = {}
        if self.kind == "qwen2_5_vl":
            vision = config.vision_config
            fold = int(vision.spatial_merge_size)
            patches = (fold * self.side) ** 2
            values = 3 * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
            pixels = noise(patches, values) + 0.5 * noise(slots, patches, values)
            made["pixel_values_videos"] = pixels.flatten(0, 1)
            grid = [[slots, fold * self.side, fold * self.side]]
            made["video_grid_thw"] = torch.tensor(grid, device=device)
            made["second_per_grid_ts"] = torch.tensor([1.0], device=device)
            around = [config.vision_start_token_id], [config.vision_end_token_id]
        else:
            size = int(config.vision_config.image_size)
            made["pixel_values_videos"] = noise(1, 1, 3, size, size) + 0.5 * noise(
                1, frames, 3, size, size
            )
            cells += 1
            around = [], []
        words = torch.randint(config.get_text_config().vocab_size - 8, (self.text,)).tolist()
        video = [*around[0], *[config.video_token_id] * cells, *around[1]]
        before = self.text // 5
        ids = torch.tensor([[*words[:before], *video, *words[before:]]], device=device)
        if self.kind == "qwen2_5_vl":
            made["mm_token_type_ids"] = 2 * (ids == config.video_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **made}


def build_subject(name: str, scale: float, device: torch.device, dtype: torch.dtype) -> Subject:
    """A model with random weights.

    Args:
        name: of `vidllm.models.cost.presets`. scale: of width, depth and vocabulary, above 0, at
            most 1.

    Raises:
        InputError: an unknown model, or one of another family.
    """
    served = [n for n, p in PRESETS.items() if p.config["model_type"] in _ROPE]
    if name not in served:
        raise InputError(f"bench models has no {name!r}: use {', '.join(served)}")
    from transformers import AutoConfig, AutoModelForImageTextToText

    preset = PRESETS[name]
    kind = str(preset.config["model_type"])
    text = _scaled_text(preset.config["text_config"], scale)
    text["rope_parameters"] = _ROPE[kind]
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    vision = _scaled_vision(preset.config["vision_config"], scale, text["hidden_size"])
    vocab = text["vocab_size"]
    ids = {"image_token_id": vocab - 1, "video_token_id": vocab - 2}
    if kind == "qwen2_5_vl":
        ids |= {"vision_start_token_id": vocab - 3, "vision_end_token_id": vocab - 4}
        side = preset.size // vision["patch_size"] // vision["spatial_merge_size"]
    else:
        ids |= {"image_token_index": vocab - 1, "video_token_index": vocab - 2}
        side = -(-(vision["image_size"] // vision["patch_size"]) // 2)
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return Subject(model.to(device).eval(), kind, side)


def _scaled_text(config: dict[str, Any], scale: float) -> dict[str, Any]:
    """Fewer heads of the same size, and an MLP, depth and vocabulary as much smaller."""
    if scale == 1:
        return dict(config)
    size = config["hidden_size"] // config["num_attention_heads"]
    keys = _part(config["num_key_value_heads"], scale)
    heads = max(1, round(config["num_attention_heads"] * scale / keys)) * keys
    return {
        **config,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "hidden_size": heads * size,
        "intermediate_size": _part(config["intermediate_size"], scale, 64),
        "num_hidden_layers": _part(config["num_hidden_layers"], scale, least=_LEAST_DEPTH),
        "vocab_size": _part(config["vocab_size"], scale, 64),
    }


def _scaled_vision(config: dict[str, Any], scale: float, out: int) -> dict[str, Any]:
    """The same for a tower; frames of the same pixels, patches and tokens."""
    made = dict(config)
    if "out_hidden_size" in made:
        made["out_hidden_size"] = out
    if scale == 1:
        return made
    heads = "num_heads" if "num_heads" in made else "num_attention_heads"
    depth = "depth" if "depth" in made else "num_hidden_layers"
    size = made["hidden_size"] // made[heads]
    made[heads] = _part(made[heads], scale)
    made["hidden_size"] = size * made[heads]
    made["intermediate_size"] = _part(made["intermediate_size"], scale, 4)
    made[depth] = _part(made[depth], scale, least=_LEAST_DEPTH)
    if "fullatt_block_indexes" in made:
        kept = [n for n in made["fullatt_block_indexes"] if n < made[depth]]
        made["fullatt_block_indexes"] = kept or [made[depth] - 1]
    return made


def _part(count: int, scale: float, multiple: int = 1, least: int = 1) -> int:
    return max(least, multiple * max(1, round(count * scale / multiple)))
