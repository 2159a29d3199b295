"""Tiny hub models that name times, for indexes of long videos: random, but all they say is spans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hf_tiny import hf_model
from hub_tiny import PIXELS, letters
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

#: Signs that no prompt has; each is a whole span of time in the tokenizers made here.
SIGNS = "~^|{}\\@#$&*`"
LAST = 150.0  # seconds up to which they name times


def spoken() -> PreTrainedTokenizerFast:
    """The tokenizer of letters, whose `SIGNS` are read as "from 12 to 18 seconds. "."""
    known = letters()
    told = json.loads(known.backend_tokenizer.to_str())
    words, pace = told["model"]["vocab"], LAST / len(SIGNS)
    for number, sign in enumerate(SIGNS):
        start = number * pace
        words[f"from {start:g} to {start + pace / 3:g} seconds. "] = words.pop(sign)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=known.additional_special_tokens
        if hasattr(known, "additional_special_tokens")
        else known.extra_special_tokens,
    )


def save_speaker(folder: Path, family: str, *, seed: int | None = None) -> Path:
    """A folder that `VideoLLM.from_pretrained` loads; its model says nothing but spans."""
    model: Any = hf_model(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ids = letters().convert_tokens_to_ids(list(SIGNS))
    head = torch.zeros_like(state["lm_head.weight"])
    head[ids] = state["lm_head.weight"][ids]
    state["lm_head.weight"] = head
    if seed is not None:
        random = torch.Generator().manual_seed(seed)
        state["lm_head.weight"][ids] = torch.randn(head[ids].shape, generator=random)
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 8192  # letters are many tokens
    (folder / "config.json").write_text(json.dumps(config))
    spoken().save_pretrained(folder)
    options = {**PIXELS[family], "use_token_compression": False}
    if family != "video_llama_3":
        options.pop("use_token_compression")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(options))
    return folder
