"""The families of hub models that are served, as data; quick to import."""

from __future__ import annotations

import re
from importlib.metadata import version

from vidllm.errors import InputError

#: transformers' model type -> (name of the family, module, class).
FAMILIES: dict[str, tuple[str, str, str]] = {
    "qwen2_5_vl": ("Qwen2.5-VL", "qwen2_5_vl", "Qwen25VL"),
    "qwen3_vl": ("Qwen3-VL", "qwen3_vl", "Qwen3VL"),
    "llava_onevision": ("LLaVA-OneVision", "llava_onevision", "LlavaOnevision"),
    "internvl": ("InternVL", "internvl", "InternVL"),
    "smolvlm": ("SmolVLM2", "smolvlm", "SmolVLM"),
    "video_llama_3": ("VideoLLaMA3", "videollama3", "VideoLlama3"),
    "qwen2_vl": ("Qwen2-VL", "qwen2_vl", "Qwen2VL"),
    "qwen3_vl_moe": ("Qwen3-VL-MoE", "qwen3_vl", "Qwen3VL"),
    "qwen3_5": ("Qwen3.5", "qwen3_vl", "Qwen3VL"),
    "qwen3_5_moe": ("Qwen3.5-MoE", "qwen3_vl", "Qwen3VL"),
    "qwen2_5_omni_thinker": ("Qwen2.5-Omni", "qwen_omni", "Qwen25Omni"),
    "qwen3_omni_moe_thinker": ("Qwen3-Omni", "qwen_omni", "Qwen3Omni"),
    "glm4v": ("GLM-4.1V", "glm4v", "Glm4V"),
    "glm4v_moe": ("GLM-4.5V", "glm4v", "Glm4V"),
    "glm46v": ("GLM-4.6V", "glm4v", "Glm4V"),
    "gemma4": ("Gemma 4", "gemma4", "Gemma4"),
    "minicpmv4_6": ("MiniCPM-V 4.6", "minicpmv", "MiniCPMV"),
    "minicpmv4_7": ("MiniCPM-V 4.7", "minicpmv", "MiniCPMV"),
    "molmo2": ("Molmo 2", "molmo2", "Molmo2"),
    "llava_next_video": ("LLaVA-NeXT-Video", "llava_video", "LlavaNextVideo"),
    "video_llava": ("Video-LLaVA", "video_llava", "VideoLlava"),
    "perception_lm": ("PerceptionLM", "perception_lm", "PerceptionLM"),
    "ernie4_5_vl_moe": ("ERNIE-4.5-VL", "ernie4_5_vl", "Ernie45VL"),
    "exaone4_5": ("EXAONE 4.5", "exaone4_5", "Exaone45"),
    "cosmos3_omni": ("Cosmos3", "qwen3_vl", "Qwen3VL"),
    "cosmos3_edge": ("Cosmos3-Edge", "cosmos3", "Cosmos3Edge"),
}
#: The transformers that a model type needs, where that is newer than what vidllm itself needs: with
#: the ones before, `make test-transformers` fails.
SINCE: dict[str, str] = {
    "qwen2_5_omni_thinker": "5.21",
    "qwen3_omni_moe_thinker": "5.21",
    "gemma4": "5.23",
    "minicpmv4_6": "5.19",
    "minicpmv4_7": "5.19",
    "molmo2": "5.20",
    "video_llava": "5.21",
}
#: Model types that hold one of these as a part -> (the part's name, its model type).
PARTS: dict[str, tuple[str, str]] = {
    "qwen2_5_omni": ("thinker", "qwen2_5_omni_thinker"),
    "qwen3_omni_moe": ("thinker", "qwen3_omni_moe_thinker"),
}
#: Model types whose pixels are made here (`pixels`); the others' come from their own processors.
OWN_PIXELS = (
    "qwen2_5_vl",
    "qwen3_vl",
    "llava_onevision",
    "internvl",
    "smolvlm",
    "video_llama_3",
)
#: Published models, by the names that transformers' documentation gives them.
EXAMPLES: dict[str, str] = {
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen3_vl_moe": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "qwen3_5": "Qwen/Qwen3.5-27B",
    "qwen3_5_moe": "Qwen/Qwen3.5-35B-A3B-Instruct",
    "qwen2_5_omni_thinker": "Qwen/Qwen2.5-Omni-7B",
    "qwen3_omni_moe_thinker": "Qwen/Qwen3-Omni-30B-A3B-Instruct",
    "glm4v": "zai-org/GLM-4.1V-9B-Thinking",
    "glm4v_moe": "zai-org/GLM-4.5V",
    "glm46v": "zai-org/GLM-4.6V",
    "gemma4": "google/gemma-4-e2b-it",
    "minicpmv4_6": "openbmb/MiniCPM-V-4.6",
    "minicpmv4_7": "openbmb/MiniCPM-V-4.7-1B",
    "molmo2": "allenai/Molmo2-8B",
    "llava_next_video": "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "video_llava": "LanguageBind/Video-LLaVA-7B-hf",
    "perception_lm": "facebook/Perception-LM-1B",
    "ernie4_5_vl_moe": "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    "exaone4_5": "LGAI-EXAONE/EXAONE-4.5-33B",
    "cosmos3_omni": "nvidia/Cosmos3-Nano",
    "cosmos3_edge": "nvidia/Cosmos3-Edge",
}


def too_old_for(kind: str) -> str | None:
    """The transformers that a model type needs, where the one that is installed is older."""
    least = SINCE.get(kind)
    return least if least and _minor(version("transformers")) < _minor(least) else None


def check_transformers(kind: str) -> None:
    """Refuse a model type that needs a newer transformers, with an `InputError`."""
    if (least := too_old_for(kind)) is not None:
        raise InputError(
            f"a {kind} model needs transformers {least} or newer, and this is "
            f"{version('transformers')}: pip install -U 'transformers>={least}'"
        )


def _minor(told: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", told)[:2])
