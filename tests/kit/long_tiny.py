"""Tiny models that name times, for indexes of long videos: random, but loud enough to differ."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_model
from transformers import PreTrainedTokenizerFast

from vidllm import VideoIndex, VideoLLM
from vidllm.errors import VidllmError
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM

FPS = 4.0
ASKED = "when does the red star spin?"
#: A temporal encoder that reads forwards alone, so that an index carries its state.
AHEAD = [{"name": "ssd", "layers": 1, "head_dim": 16, "bidirectional": False, "scan": "slot"}]


def loud_model(
    *, streaming: bool = False, seed: int = 4
) -> tuple[NativeVideoLLM, PreTrainedTokenizerFast]:
    """A model whose answers are two time tokens or more, other ones for other frames."""
    model, tokenizer = tiny_model()
    if streaming:
        config = NativeConfig.from_dict(model.config.to_dict())
        config.temporal = AHEAD
        torch.manual_seed(seed)
        model = NativeVideoLLM(config).eval()
    torch.manual_seed(seed)
    first, count = model.config.time_token_start, model.config.time_tokens
    with torch.no_grad():
        for name, value in model.language_model.named_parameters():
            if "layers" in name and value.dim() == 2:
                value.copy_(torch.randn_like(value) * 3 / value.shape[1] ** 0.5)
        for value in model.temporal.parameters():
            value.add_(0.05 * torch.randn_like(value))
        model.video_norm.weight.fill_(1.0)
        table = model.language_model.get_input_embeddings().weight
        table[first : first + count] = 2 * torch.randn(count, table.shape[1])
    return model, tokenizer


def loud(*, streaming: bool = False, seed: int = 4, **options: Any) -> VideoLLM:
    """That model, ready to be asked; a quarter of its tokens are kept unless options say."""
    made = loud_model(streaming=streaming, seed=seed)
    return VideoLLM(*made, **(options or {"compressors": "temporal-pool", "keep": 0.25}))


def save_loud(folder: Path) -> Path:
    """A folder that `--model` takes."""
    model, tokenizer = loud_model()
    model.config.compressors, model.config.keep = "temporal-pool", 0.25
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def indexed(llm: VideoLLM, video: Path, path: Path, **more: Any) -> VideoIndex:
    return llm.index(video, path, **{"fps": FPS, "precision": "float32", **more})


def in_child(work: Callable[[], object], said: Path) -> int:
    """Run `work` in a forked process: its exit code, and what it failed with in the file `said`."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except VidllmError as error:
            code = error.exit_code
            said.write_text(str(error), encoding="utf-8")
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
