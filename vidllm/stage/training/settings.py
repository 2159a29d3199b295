"""What to train: the settings of a run, and the fresh model that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from vidllm.errors import InputError
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM
from vidllm.timecode import get_timecode

from .losses import LossWeights
from .tokenizer import build_tokenizer


@dataclass(frozen=True)
class Plan:
    """What goes with a tower, so that a model is trained as its card says.

    Attributes:
        vision: of the config, without what the size adds. downsample: see `NativeConfig`.
        layers: of the decoder of size "small".
        mixture: reductions met in training, as (compressor spec, weight).
        versions: of the made world, which scenes take turns in.
        short: share of the steps after "see" that take every other frame only, which costs half;
            of the others 15 % do.
        uncompressed: share of a batch's clips that a step without reduction takes.
    """

    vision: dict[str, Any]
    downsample: int
    layers: int
    mixture: tuple[tuple[str, float], ...]
    versions: tuple[int, ...]
    short: float
    uncompressed: float = 1.0


PLANS: dict[str, Plan] = {
    "vit": Plan(
        vision={"type": "clip_vision_model", "image_size": 96, "patch_size": 24},
        downsample=1,
        layers=6,
        mixture=(
            ("none", 0.20),
            ("mrt5:keep=0.25", 0.16),
            ("mrt5:keep=0.125", 0.24),
            ("mrt5:keep=0.05", 0.14),
            ("temporal-pool:keep=0.25", 0.10),
            ("spatial-pool:keep=0.25", 0.06),
            ("frame-sample:keep=0.25", 0.05),
            ("random:keep=0.25", 0.05),
        ),
        versions=(2, 1, 2),
        short=0.75,
        uncompressed=0.375,
    ),
    "conv": Plan(  # the first model
        vision={"type": "conv"},
        downsample=2,
        layers=4,
        mixture=(
            ("none", 0.50),
            ("temporal-pool:keep=0.5", 0.05),
            ("temporal-pool:keep=0.25", 0.25),
            ("temporal-pool:keep=0.125", 0.03),
            ("spatial-pool:keep=0.25", 0.07),
            ("frame-sample:keep=0.5", 0.05),
            ("random:keep=0.5", 0.05),
        ),
        versions=(1,),
        short=0.0,
    ),
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 192, "heads": 6, "widths": (24, 64, 128), "blocks": (1, 2, 2)},
    "tiny": {"width": 32, "layers": 2, "heads": 2, "widths": (8, 16, 16), "blocks": (1, 1, 1)},
}
TEMPORAL: dict[str, Any] = {
    "ssd": [
        {"name": "ssd", "layers": 2, "scan": "slot", "head_dim": 32},
        {"name": "ssd", "layers": 1, "scan": "raster", "head_dim": 32},
    ],
    "identity": [],
}


@dataclass
class TrainSettings:
    """What to train and how; saved beside the weights.

    Args:
        out: folder of the result.
        size: "small" (the shipped model) or "tiny" (tests).
        vision: "vit" (a CLIP behind a convolutional stem, 16 tokens a frame) or "conv" (the tower
            of the first model, 4 tokens a frame).
        temporal: "ssd" or "identity" (the control).
        reduce: train under the mixture of reductions; False trains on full videos alone.
        see_batch: scenes in a batch while it learns to see, four frames of each.
        batch: clips in a batch afterwards; frames: frames of a clip.
        clips: clips whose cells are kept on disk (0.4 MB a clip of 64 frames).
        minutes: stop and save after so many minutes (0: no limit); `resume` goes on from there.
        init: folder of a trained model to start from (its tower, and all else that fits).
        half_clips: share of the steps after "see" that take every other frame only, in place of
            the `short` of the tower's plan.
        cells: file of the kept cells, so that runs with one tower share it; default in `out`.
    """

    out: str
    size: str = "small"
    vision: str = "vit"
    temporal: str = "ssd"
    reduce: bool = True
    steps_see: int = 1500
    steps_mix: int = 600
    steps_answer: int = 4080
    see_batch: int = 32
    batch: int = 8
    frames: int = 64
    clips: int = 8000
    see_lr: float = 1e-3
    lr: float = 8e-4
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    workers: int = 1
    cell_workers: int = 2
    threads: int = 0
    minutes: float = 0.0
    resume: bool = False
    init: str = ""
    half_clips: float | None = None
    cells: str = ""
    log_every: int = 50
    save_every: int = 250
    device: str = "auto"
    compressors: str = "mrt5"
    keep: float = 0.125
    weights: LossWeights = field(default_factory=LossWeights)

    @property
    def total(self) -> int:
        return self.steps_see + self.steps_mix + self.steps_answer

    def phase(self, step: int) -> str:
        """What is learnt at a step: "see", "mix" or "answer"."""
        if step < self.steps_see:
            return "see"
        return "mix" if step < self.steps_see + self.steps_mix else "answer"


def build_model(settings: TrainSettings) -> tuple[NativeVideoLLM, PreTrainedTokenizerFast]:
    """A fresh model and its tokenizer.

    Raises:
        InputError: for a size, tower or temporal encoder that is not known.
    """
    given: dict[str, dict[str, Any]] = {"size": SIZES, "vision": PLANS, "temporal": TEMPORAL}
    for name, known in given.items():
        if getattr(settings, name) not in known:
            raise InputError(
                f"{name} must be one of {', '.join(known)}, not '{getattr(settings, name)}'"
            )
    code = get_timecode("relative")
    tokenizer = build_tokenizer(code)
    size, plan = SIZES[settings.size], PLANS[settings.vision]
    width, layers = size["width"], size.get("layers", plan.layers)
    stem = {"widths": list(size["widths"]), "blocks": list(size["blocks"])}
    vision = {**plan.vision, "hidden_size": width}
    if settings.vision == "conv":
        vision |= stem
    else:
        vision |= {"stem": stem, "intermediate_size": 3 * width}
        vision |= {"num_hidden_layers": layers, "num_attention_heads": size["heads"]}
    config = NativeConfig(
        vision=vision,
        text={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": size["heads"],
            "num_key_value_heads": size["heads"],
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        temporal=TEMPORAL[settings.temporal],
        downsample=plan.downsample,
        time_code="relative",
        time_tokens=len(code.special_tokens),
        time_token_start=int(tokenizer.convert_tokens_to_ids(code.special_tokens[0])),  # type: ignore[arg-type]
        frames=settings.frames,
        compressors=settings.compressors,
        keep=settings.keep,
    )
    model = NativeVideoLLM(config)
    model.smooth_time_tokens()
    return model, tokenizer


def plan_of(vision: Mapping[str, Any]) -> Plan:
    """How a model of `vidllm train` with this tower (of its config) was trained."""
    return PLANS["vit" if "stem" in vision else "conv"]
