"""The high door on families whose own processor makes pixels and prompts, as a program of its own.

    python tests/kit/own_processors.py FOLDER

saves a tiny checkpoint of every such family there with its processor, loads it, asks, and prints as
JSON what came of it beside what the library's processor and `generate` give. It needs torchvision
(see `hf_pixels_library`), in a process where nothing else depends on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hf_pixels_library import declare_operators
from hf_tiny import hf_model
from hub_tiny import TAKES_VIDEOS, letters
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from videos import write_video

QUESTION = "When does it start?"
SECONDS = [0.0, 0.4, 1.1, 1.5, 2.3, 3.0]
NEW = 8
#: Model type -> processor, video processor.
PROCESSORS = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl_moe": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen2_5_omni_thinker": ("Qwen2_5OmniProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_omni_moe_thinker": ("Qwen3OmniMoeProcessor", "Qwen2VLVideoProcessor"),
}
#: Those of other houses, see `hf_tiny_others`.
OTHERS = {
    "glm4v": ("Glm4vProcessor", "Glm4vVideoProcessor"),
    "glm46v": ("Glm46VProcessor", "Glm46VVideoProcessor"),
    "gemma4": ("Gemma4Processor", "Gemma4VideoProcessor"),
    "minicpmv4_6": ("MiniCPMV4_6Processor", "MiniCPMV4_6VideoProcessor"),
    "molmo2": ("Molmo2Processor", "Molmo2VideoProcessor"),
    "llava_next_video": ("LlavaNextVideoProcessor", "LlavaNextVideoVideoProcessor"),
    "video_llava": ("VideoLlavaProcessor", "VideoLlavaVideoProcessor"),
}
#: Those of which an index is made too: a hybrid, and every other form of the tower's output.
INDEXED = (
    "qwen3_5",
    "qwen2_5_omni_thinker",
    "glm4v",
    "gemma4",
    "minicpmv4_6",
    "molmo2",
    "video_llava",
)
_NAMES = {
    "image_token": "<image>",
    "video_token": "<video>",
    "audio_token": "<u107>",
    "vision_start_token": "<img>",
    "vision_end_token": "</img>",
    "vision_bos_token": "<img>",
    "vision_eos_token": "</img>",
    "audio_bos_token": "<u106>",
    "audio_eos_token": "<u106>",
}


def tokenizer() -> PreTrainedTokenizerFast:
    """That of letters, which knows its special tokens by their parts."""
    known = letters()
    return PreTrainedTokenizerFast(
        tokenizer_object=known.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens=_NAMES,
    )


def other_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The same with the marks by which processors of other houses tell videos."""
    told = json.loads(letters().backend_tokenizer.to_str())
    words = told["model"]["vocab"]
    renamed = {"<u107>": "<|begin_of_video|>", "<u108>": "<|end_of_video|>"}
    if family == "molmo2":
        renamed = {"<image>": "<im_patch>", "<img>": "<frame_start>", "</img>": "<frame_end>"}
    elif family == "gemma4":
        renamed = {"<video>": "<|video|>"}
    for old, new in renamed.items():
        words[new] = words.pop(old)
    for word in told["added_tokens"]:
        word["content"] = renamed.get(word["content"], word["content"])
    marks = {"image": "<img>", "slice": "<u106>", "image_id": "<u106>"}
    edges = {f"{name}_start_token": mark for name, mark in marks.items()}
    ends = {f"{name}_end_token": mark for name, mark in {**marks, "image": "</img>"}.items()}
    names = {**_NAMES, **edges, **ends, "boi_token": "<img>", "eoi_token": "</img>"}
    names |= {"audio_token": "<u106>", "boa_token": "<u106>", "eoa_token": "<u106>"}
    names = {name: renamed.get(mark, mark) for name, mark in names.items()}
    names |= {f"further_{n}": mark for n, mark in enumerate(renamed.values())}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens=names,
    )


def other_processor_of(family: str) -> Any:
    """A processor of another house, for tiny frames."""
    import transformers

    kind, video = OTHERS[family]
    edges = ("<|begin_of_video|>", "<|end_of_video|>") if "glm" in family else ("", "")
    chat = TAKES_VIDEOS.replace("<img><video></img>", f"{edges[0]}<video>{edges[1]}")
    chat = chat.replace("<video>", "<|video|>") if family == "gemma4" else chat
    size = {"height": 32, "width": 32}
    options: dict[str, Any] = {"size": size, "crop_size": size}
    pictures, more = "CLIPImageProcessor", {}
    if "glm" in family:
        pictures = "Glm4vImageProcessor"
        size = {"shortest_edge": 64, "longest_edge": 32 * 512}
        options = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    elif family == "gemma4":
        pictures = "Gemma4ImageProcessor"
        options = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}
        more["feature_extractor"] = transformers.Gemma4AudioFeatureExtractor()
    elif "minicpm" in family:
        pictures = "MiniCPMV4_6ImageProcessor"
        options = {"patch_size": 4, "scale_resolution": 32}
    elif family == "molmo2":
        pictures = "Molmo2ImageProcessor"
        options = {"patch_size": 8, "size": size, "pooling_size": [2, 2]}
    elif family == "llava_next_video":
        pictures, more = "LlavaNextImageProcessor", {"patch_size": 8}
    elif family == "video_llava":
        more = {"patch_size": 8, "num_additional_image_tokens": 1}
    return getattr(transformers, kind)(
        image_processor=getattr(transformers, pictures)(),
        video_processor=getattr(transformers, video)(**options),
        tokenizer=other_tokenizer(family),
        chat_template=chat,
        **more,
    )


def processor_of(family: str) -> Any:
    """A processor of the library, for tiny frames."""
    import transformers

    if family in OTHERS:
        return other_processor_of(family)
    kind, video = PROCESSORS[family]
    patches = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    most = 32 * 512 if video.startswith("Qwen3") else 512
    size = {"shortest_edge": 64, "longest_edge": most}
    cls = getattr(transformers, kind)
    parts = {
        "image_processor": transformers.Qwen2VLImageProcessor(**patches, size=size),
        "video_processor": getattr(transformers, video)(**patches, size=size),
        "tokenizer": tokenizer(),
        "chat_template": TAKES_VIDEOS,
    }
    if "omni" in family:
        cls.videos_kwargs = {"size": size}  # the library's own is too large here
        parts["feature_extractor"] = transformers.WhisperFeatureExtractor(feature_size=16)
    return cls(**parts)


def whole_omni(thinker: Any) -> Any:
    """A whole Qwen2.5-Omni with this thinker, without a talker."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    told = thinker.config.to_dict()
    config = Qwen2_5OmniConfig(thinker_config=told, enable_audio_output=False)
    whole = Qwen2_5OmniForConditionalGeneration(config).eval()
    whole.thinker.load_state_dict(thinker.state_dict())
    return whole


def asked(folder: Path, family: str) -> dict[str, Any]:
    """One family through both doors."""
    from transformers import AutoProcessor

    from vidllm import VideoLLM, compress
    from vidllm.video import VideoClip

    model = hf_model(family)
    if family == "qwen2_5_omni_thinker":
        whole_omni(model).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        del config["talker_config"], config["token2wav_config"]  # of parts that are not there
        (folder / "config.json").write_text(json.dumps(config))
    else:
        model.save_pretrained(folder)
    processor_of(family).save_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (len(SECONDS), 48, 64, 3), dtype=np.uint8)
    clip = VideoClip(frames, np.array(SECONDS), 2.0, 3.6, np.arange(len(SECONDS)), Path("made.mp4"))
    llm = VideoLLM.from_pretrained(folder, compressor="uniform", keep=0.5)
    engine: Any = llm.engine
    own = VideoLLM.from_pretrained(llm.model, processor=processor, compressor="uniform", keep=0.5)
    if family in ("qwen2_vl", "gemma4"):
        own.save_pretrained(folder / "again")
        own = VideoLLM.from_pretrained(folder / "again", compressor="uniform", keep=0.5)
    two = llm.ask(clip, [QUESTION, "What happens?"], max_new_tokens=NEW)
    turn = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
    )
    # Of a file with ten frames a second these seconds are whole frames.
    told = {"total_num_frames": 40, "fps": 10.0, "duration": 3.6}
    told["frames_indices"] = [round(10 * s) for s in SECONDS]
    inputs = processor(
        text=[text],
        videos=[frames],
        video_metadata=[told],
        do_sample_frames=False,
        return_tensors="pt",
        **engine.adapter.processor_options,
    )
    video = engine.memory.open(clip)
    options = engine.adapter.processor_options
    made = {**engine.memory.processor.video(frames, SECONDS, **options).pixels}
    if engine.adapter.pace:
        pace = 2 * (SECONDS[-1] - SECONDS[0]) / (len(SECONDS) - 1)
        inputs[engine.adapter.pace] = torch.tensor([pace])
    with compress(llm.model, "uniform", keep=0.5, processor=processor) as c:
        out = llm.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=97)
    raw = processor.decode(out[0, inputs["input_ids"].shape[1] :]).strip()
    return {
        "ids": torch.equal(engine.prompt_ids(video.placed, QUESTION, False), inputs["input_ids"]),
        "pixels": all(torch.equal(made[name], inputs[name]) for name in made if "pixel" in name),
        "answers": [two[0].raw, raw, own.ask(clip, QUESTION, max_new_tokens=NEW).raw],
        "kept": [two[0].receipt.tokens_kept, c.receipt.tokens_kept],
        "full": [two[0].receipt.tokens_full, engine.count(48, 64, len(SECONDS)), video.total],
        "flops": two[0].receipt.flops is not None,
        "prompt": llm.prompt_text(clip, QUESTION),
        "family": engine.family,
        "found": len(llm.ground(clip, "a start", max_new_tokens=2)),
        "indexed": indexed(llm, folder) if family in INDEXED else ["", ""],
    }


def indexed(llm: Any, folder: Path) -> list[str]:
    """The answers from an index of a short video, and of the clip that it is."""
    video = write_video(folder / "v.mp4", 5, fps=1, size=(64, 48))
    index = llm.index(video, folder / "v.vidx", near=0.0, precision="float32")
    reader, clip = index.reader, llm.sample(video, fps=1.0)
    said = reader._say(reader.first(), QUESTION, False, NEW)
    return [said.made.raw, llm.ask(clip, QUESTION, max_new_tokens=NEW).raw]


def main(folder: Path) -> None:
    """One line of JSON."""
    declare_operators()
    torch.set_grad_enabled(False)
    families = [*PROCESSORS, *OTHERS]
    print(json.dumps({family: asked(folder / family, family) for family in families}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
