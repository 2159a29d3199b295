"""A model of fewer bits through both doors, as a program of its own.

    python tests/kit/quantized.py bitsandbytes|torchao FOLDER

saves a checkpoint in FOLDER that is wide enough for blocks of 64 weights, loads it with 4 or 8
bits, and prints as JSON what came of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from hf_tiny import hf_model
from hub_tiny import PIXELS, TAKES_VIDEOS, letters
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

from vidllm import VideoLLM, compress
from vidllm.video import VideoClip

QUESTION = "When does it start?"


def save_wide(folder: Path) -> None:
    """A model of width 128 with what goes with it."""
    config: Any = hf_model("qwen2_5_vl").config
    for part in (config.text_config, config.vision_config):
        part.hidden_size = part.intermediate_size = 128
    config.vision_config.out_hidden_size = 128
    config.text_config.rope_parameters = {
        "rope_type": "default",
        "mrope_section": [4, 4, 8],
        "rope_theta": 1e4,
    }
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    letters().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TAKES_VIDEOS)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(PIXELS["qwen2_5_vl"]))


def config_of(package: str) -> Any:
    if package == "bitsandbytes":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def main(package: str, folder: Path) -> None:
    """One line of JSON."""
    torch.set_grad_enabled(False)
    save_wide(folder)
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
    clip = VideoClip(frames, np.arange(6.0), 1.0, 6.0, np.arange(6), Path("made.mp4"))
    llm = VideoLLM.from_pretrained(folder, quantization_config=config_of(package), keep=0.5)
    first = llm.ask(clip, QUESTION, max_new_tokens=6)
    own = AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=config_of(package)
    )
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"])  # its second half begins at zero
    llm.save_pretrained(folder / "saved")
    answers = [first.raw]
    with compress(own, "vidcom2", keep=1.0):
        ids = torch.randint(0, 90, (1, 12), generator=torch.Generator().manual_seed(0))
        mine = own(input_ids=ids).logits
    logits = torch.equal(own(input_ids=ids).logits, mine)
    for model, where in (
        (own, {"processor": folder}),
        (folder / "saved", {}),
        (peft.get_peft_model(own, lora), {"processor": folder}),
    ):
        other = VideoLLM.from_pretrained(model, keep=0.5, **where)
        answers.append(other.ask(clip, QUESTION, max_new_tokens=6).raw)
    weight = llm.model.model.language_model.layers[0].self_attn.q_proj.weight
    found = {"answers": answers, "weight": type(weight).__name__, "logits": logits}
    found |= {"kept": first.receipt.tokens_kept, "full": first.receipt.tokens_full}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
