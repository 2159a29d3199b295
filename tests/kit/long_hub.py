"""Tiny hub models that name times, for indexes of long videos: random, and all they say is a span.

A span is one token, which ends the answer, so that a question costs one pass of the decoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hf_tiny import hf_model
from hub_tiny import PIXELS, SPECIAL, letters
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

#: Signs that no prompt has; each is a whole span of time in the tokenizers made here.
SIGNS = "~^|{}\\@#$&*`"
LAST = 150.0  # seconds up to which they name times


def spoken() -> PreTrainedTokenizerFast:
    """The tokenizer of letters, whose `SIGNS` are read as "from 12 to 18 seconds. "."""
    told = json.loads(letters().backend_tokenizer.to_str())
    words, pace = told["model"]["vocab"], LAST / len(SIGNS)
    for number, sign in enumerate(SIGNS):
        start = number * pace
        words[f"from {start:g} to {start + pace / 3:g} seconds."] = words.pop(sign)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=[word for word in SPECIAL if not word.startswith("<u")],
    )


def save_speaker(folder: Path, family: str, *, seed: int = 0, says: str = SIGNS) -> Path:
    """A folder that `VideoLLM.from_pretrained` loads.

    Args:
        seed: of the spans that it says to a clip. says: signs, all that it can say.
    """
    model: Any = hf_model(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ids = letters().convert_tokens_to_ids(list(says))
    head = torch.zeros_like(state["lm_head.weight"])
    random = torch.Generator().manual_seed(seed)
    head[ids] = 4 * torch.randn(head[ids].shape, generator=random)
    yes_no = letters().convert_tokens_to_ids(list("yYnN"))  # which it says less surely
    head[yes_no] = 0.3 * torch.randn(head[yes_no].shape, generator=random)
    state["lm_head.weight"] = head
    model.save_pretrained(folder, state_dict=state)
    ends = {"eos_token_id": [97, *letters().convert_tokens_to_ids(list(says))], "pad_token_id": 100}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 8192  # letters are many tokens
    (folder / "config.json").write_text(json.dumps(config))
    spoken().save_pretrained(folder)
    options = {**PIXELS[family], "use_token_compression": False}
    if family != "video_llama_3":
        options.pop("use_token_compression")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(options))
    return folder
