"""The families of hub models that are served, as data; quick to import."""

from __future__ import annotations

#: transformers' model type -> (name of the family, module, class).
FAMILIES: dict[str, tuple[str, str, str]] = {
    "qwen2_5_vl": ("Qwen2.5-VL", "qwen2_5_vl", "Qwen25VL"),
    "qwen3_vl": ("Qwen3-VL", "qwen3_vl", "Qwen3VL"),
    "llava_onevision": ("LLaVA-OneVision", "llava_onevision", "LlavaOnevision"),
    "internvl": ("InternVL", "internvl", "InternVL"),
    "smolvlm": ("SmolVLM2", "smolvlm", "SmolVLM"),
    "video_llama_3": ("VideoLLaMA3", "videollama3", "VideoLlama3"),
}
