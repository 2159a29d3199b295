"""Tiny native models with random weights, built from configs, and a rendered video file."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from vidllm.models.engine import Counts, Generation
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM
from vidllm.stage.training.settings import TrainSettings, build_model
from vidllm.stage.training.tokenizer import build_tokenizer
from vidllm.timecode import get_timecode


def tiny_model(**settings: Any) -> tuple[NativeVideoLLM, PreTrainedTokenizerFast]:
    """The tiny stage model; its temporal encoder is moved off the identity it starts as."""
    torch.manual_seed(0)
    usual = {"vision": "conv", "compressors": "none", "keep": 1.0}
    settings = {**usual, **settings}
    model, tokenizer = build_model(TrainSettings(out="", size="tiny", frames=16, **settings))
    with torch.no_grad():
        for encoder in model.temporal:
            for p in encoder.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return model.eval(), tokenizer


def save_tiny(folder: Path, **settings: Any) -> Path:
    """A folder that `VideoLLM.from_pretrained` loads."""
    model, tokenizer = tiny_model(**settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


VISION: dict[str, dict[str, Any]] = {
    "siglip": {"type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
    "clip": {"type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 16},
    "stem": {
        "type": "clip_vision_model",
        "image_size": 96,
        "patch_size": 24,
        "stem": {"widths": (8, 16, 16), "blocks": (1, 1, 1)},
    },
    "dinov2": {"type": "dinov2", "image_size": 28, "patch_size": 7},
}


def hub_model(vision: str | dict[str, Any], text: str = "qwen2", **options: Any) -> NativeVideoLLM:
    """A native model of transformers parts with random weights, two layers each."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(get_timecode("relative"))
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    if isinstance(vision, str):
        vision = {**VISION[vision], **small, "num_hidden_layers": 2}
    config = NativeConfig(
        vision=vision,
        text={
            **small,
            "model_type": text,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
        },
        temporal=[{"name": "ssd", "head_dim": 16}],
        time_token_start=tokenizer.convert_tokens_to_ids("<t0>"),
        **options,
    )
    return NativeVideoLLM(config).eval()


def generation(ids: Sequence[int], scores: Sequence[float] = ()) -> Generation:
    """An answer of these tokens, as a model would have made it."""
    nothing = Counts(1, 1, (), ())
    return Generation(list(ids), scores, torch.empty(0), None, 1, 1.0, nothing, 0, 0, len(ids), {})


def write_video(path: Path, seconds: list[float], size: tuple[int, int] = (64, 48)) -> Path:
    """An H.264 file whose frame i is shown at seconds[i] (variable frame rate as they say)."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        for i, t in enumerate(seconds):
            grey = np.full((size[1], size[0], 3), 40 + 180 * i // max(1, len(seconds)), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(t * 90000), Fraction(1, 90000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path
