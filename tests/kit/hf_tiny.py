"""Tiny random models of the hub families, from configs, and inputs made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import hf_tiny_others as others
import pytest
import torch
import transformers
from hf_tiny_qwen import CLASSES as _QWEN
from hf_tiny_qwen import LAYOUTS, config_of, renamed
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vidllm.models.families.served import too_old_for

#: Those that all tests of hub models run on; and those that share their code with these.
FAMILIES = (
    "qwen2_5_vl",
    "llava_onevision",
    "qwen3_vl",
    "internvl",
    "smolvlm",
    "video_llama_3",
)
MORE = tuple(_QWEN)
#: More of them: those whose code others share, and forms of a family.
OTHERS = tuple(others.CLASSES)
#: Ids of the prompt's special tokens; text is 0..95.
PAD, IMAGE, VIDEO, START, END, NEWLINE = 100, 101, 102, 103, 104, 105
_VOCAB = 110
_SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48}
_LETTERS = "Framefromvidsecond0123456789:.<>T "


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One id a letter, so that times and labels can be written; fillers are single signs."""
    letters = list(dict.fromkeys(_LETTERS))
    words = letters + [chr(0x4E00 + i) for i in range(96 - len(letters))]
    words += [f"<u{i}>" for i in range(96, 100)]
    words += ["<pad>", "<image>", "<video>", "<img>", "</img>"]
    words += [f"<u{i}>" for i in range(105, _VOCAB)]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<u96>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        additional_special_tokens=["<image>", "<video>", "<img>", "</img>"],
    )


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return {
        **_SMALL,
        "model_type": kind,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": _VOCAB,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        "max_position_embeddings": 512,
        **more,
    }


def _config(family: str) -> Any:
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    if family in others.CLASSES:
        return others.config_of(family, _text, _SMALL, ids)
    if family in _QWEN:
        return config_of(
            family,
            _text,
            _SMALL,
            {**ids, "vision_start_token_id": START, "vision_end_token_id": END},
        )
    siglip = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        vision = {
            **_SMALL,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [2],
            "out_hidden_size": 32,
            "tokens_per_second": 2,
        }
        return transformers.Qwen2_5_VLConfig(
            text_config=_text("qwen2_5_vl_text", rope_parameters=rope),
            vision_config=vision,
            vision_start_token_id=START,
            vision_end_token_id=END,
            **ids,
        )
    if family == "qwen3_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
        vision = {
            **_SMALL,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        }
        return transformers.Qwen3VLConfig(
            text_config=_text("qwen3_vl_text", rope_parameters=rope, head_dim=8),
            vision_config=vision,
            vision_start_token_id=START,
            vision_end_token_id=END,
            **ids,
        )
    if family == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            text_config=_text("qwen2"),
            vision_config={
                **_SMALL,
                **siglip,
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
            },
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[32, 32]],
            **ids,
        )
    if family == "internvl":
        return transformers.InternVLConfig(
            text_config=_text("qwen3", head_dim=8),
            vision_config={
                **_SMALL,
                **siglip,
                "image_size": [32, 32],
                "patch_size": [8, 8],
                "num_hidden_layers": 3,
            },
            image_token_id=IMAGE,
            downsample_ratio=0.5,
        )
    if family == "smolvlm":
        return transformers.SmolVLMConfig(
            text_config=_text("llama"),
            vision_config={**_SMALL, **siglip},
            image_token_id=IMAGE,
            scale_factor=2,
        )
    return transformers.VideoLlama3Config(
        text_config=_text("qwen2"),
        vision_config={**_SMALL, **siglip, "patch_size": 4},
        **ids,
    )


_CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "video_llama_3": "VideoLlama3ForConditionalGeneration",
    **others.CLASSES,
    **_QWEN,
}


@cache
def hf_model(family: str) -> Any:
    """A model with random weights that are large enough for answers to differ."""
    if (least := too_old_for(family.partition("+")[0])) is not None:
        pytest.skip(f"{family} needs transformers {least}")
    torch.manual_seed(0)
    model = getattr(transformers, _CLASSES[family])(_config(family)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                head = 1.0 if "gemma4" in family else 4.0
                p.mul_(head if "lm_head" in name else 2.5)
        model.lm_head.weight[96:] = 0.0  # answers hold no marks of pictures
    return model


@dataclass(frozen=True)
class Video:
    """A video in a prompt: frames (of the token grid), and tokens a side of a frame."""

    frames: int = 4
    side: int = 2


@dataclass(frozen=True)
class Image:
    """A picture in a prompt."""


Part = Video | Image | str | int
"""What a prompt is made of: text by letters, or so many filler words."""


def hf_inputs(family: str, prompts: Sequence[Sequence[Part]], seed: int = 0) -> dict[str, Any]:
    """As the family's processor would make them: left padding, pixels, grids."""
    layout = {**LAYOUTS, **others.LAYOUTS}.get(family, family)
    made = _Maker(layout, seed)
    lines = [made.line(parts) for parts in prompts]
    width = max(map(len, lines))
    ids = torch.tensor([[PAD] * (width - len(line)) + line for line in lines])
    mask = torch.tensor([[0] * (width - len(line)) + [1] * len(line) for line in lines])
    pixels = others.renamed(family, renamed(family, made.pixels(ids)))
    return {"input_ids": ids, "attention_mask": mask, **pixels}


class _Maker:
    def __init__(self, family: str, seed: int) -> None:
        self.family = family
        self.random = torch.Generator().manual_seed(seed)
        self.videos: list[Tensor] = []
        self.images: list[Tensor] = []
        self.grids: dict[str, list[list[int]]] = {"image": [], "video": []}
        self.masks: list[Tensor] = []
        self.per_row: list[list[Tensor]] = []

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def line(self, parts: Sequence[Part]) -> list[int]:
        self.per_row.append([])
        line: list[int] = []
        for part in parts:
            if isinstance(part, str):
                line += self.write(part)
            elif isinstance(part, int):
                line += torch.randint(40, 95, (part,), generator=self.random).tolist()
            else:
                line += self.image() if isinstance(part, Image) else self.video(part)
        return line

    def write(self, text: str) -> list[int]:
        return [int(i) for i in tokenizer()(text, add_special_tokens=False)["input_ids"]]

    def frames_of(self, video: Video) -> Tensor:
        """Smooth noise, so that neighbouring frames are alike, in units that a tower likes."""
        side = 32
        steps = self.noise(video.frames, 3, side, side)
        return steps[0] + 0.5 * steps.cumsum(0) / video.frames**0.5

    def image(self) -> list[int]:
        if self.family in others.CLASSES:
            return others.image_of(self)
        if self.family in ("qwen2_5_vl", "qwen3_vl"):
            self.images.append(self.noise(16, 3 * 2 * 16))
            self.grids["image"].append([1, 4, 4])
            return [START, *[IMAGE] * 4, END]
        if self.family == "video_llama_3":
            self.images.append(self.noise(16, 3 * 16))
            self.grids["image"].append([1, 4, 4])
            return [IMAGE] * 4
        if self.family == "llava_onevision":  # one of several, so not cut into tiles
            self.images.append(self.noise(2, 3, 32, 32))
            return [IMAGE] * (16 + 16 + 4)
        self.per_row[-1].append(self.noise(3, 32, 32))
        return [START, *[IMAGE] * 4, END]

    def video(self, video: Video) -> list[int]:
        t, side = video.frames, video.side
        cells = side * side
        if self.family in others.CLASSES:
            return others.video_of(self, t, side)
        if self.family in ("qwen2_5_vl", "qwen3_vl"):
            self.videos.append(self.noise(t * 4 * cells, 3 * 2 * 16))
            self.grids["video"].append([t, 2 * side, 2 * side])
            if self.family == "qwen2_5_vl":
                return [START, *[VIDEO] * (t * cells), END]
            line: list[int] = []
            for f in range(t):
                line += [*self.write(f"<{0.5 + 2 * f:.1f} seconds>"), START]
                line += [*[VIDEO] * cells, END]
            return line
        if self.family == "video_llama_3":
            self.videos.append(self.noise(t * 4 * cells, 3 * 16))
            self.grids["video"].append([t, 2 * side, 2 * side])
            mask = torch.ones(t, cells, dtype=torch.bool)
            mask[1::2, -1] = False  # what its own choice left out
            self.masks.append(mask.flatten())
            line = []
            for f in range(t):
                line += self.write(f"Time {2.0 * f:.1f}s:") + [VIDEO] * int(mask[f].sum())
            return line
        if self.family == "llava_onevision":
            self.videos.append(self.frames_of(video))
            return [VIDEO] * (t * 4 + 1)
        self.per_row[-1] += list(self.frames_of(video))
        line = []
        for f in range(t):
            label = f"Frame{f + 1}: " if self.family == "internvl" else f"Frame from 00:0{2 * f}:"
            line += [*self.write(label), START, *[IMAGE] * 4, END]
        return line

    def pixels(self, ids: Tensor) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if self.family in others.CLASSES:
            return others.pixels_of(self, ids)
        if self.family in ("internvl", "smolvlm"):
            if self.family == "internvl" and any(self.per_row):
                out["pixel_values"] = torch.stack([p for row in self.per_row for p in row])
            elif any(self.per_row):
                most = max(map(len, self.per_row))
                out["pixel_values"] = torch.zeros(len(ids), most, 3, 32, 32)
                for r, row in enumerate(self.per_row):
                    for i, p in enumerate(row):
                        out["pixel_values"][r, i] = p
            return out
        if self.family == "llava_onevision":
            if self.videos:
                out["pixel_values_videos"] = torch.stack(self.videos)
            if self.images:
                out["pixel_values"] = torch.stack(self.images)
                out["image_sizes"] = torch.tensor([[32, 32]] * len(self.images))
            return out
        for kind, pixels in (("image", self.images), ("video", self.videos)):
            if pixels:
                name = "pixel_values" if kind == "image" else "pixel_values_videos"
                out[name] = torch.cat(pixels)
                out[f"{kind}_grid_thw"] = torch.tensor(self.grids[kind])
                if self.family == "video_llama_3":
                    out[f"{kind}_merge_sizes"] = torch.tensor([2] * len(pixels))
        if self.family == "video_llama_3":
            if self.masks:
                out["video_compression_mask"] = torch.cat(self.masks)
        else:
            out["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        if self.family == "qwen2_5_vl" and self.videos:
            out["second_per_grid_ts"] = torch.tensor([1.0, 0.5, 1.5, 2.0][: len(self.videos)])
        return out


def hooks_of(model: nn.Module) -> int:
    """All hooks that hang on a model."""
    return sum(
        len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )
