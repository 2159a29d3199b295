"""What a native model is made of, as transformers saves it; quick to import."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class NativeConfig(PreTrainedConfig):
    """What a native model is made of.

    Args:
        vision: config of the tower, {"type": "conv" or a transformers type, …}.
        text: config of the decoder LLM as a dict with its "model_type".
        temporal: temporal encoders in order, each {"name": …, options}; [] for none.
        downsample: side of the square of cells that the projector folds into one token.
        time_code: "relative", "absolute" or "text" (see `vidllm.timecode`).
        time_tokens: number of relative time tokens.
        time_token_start: id of the first relative time token.
        time_embedding: add the time span of every token to it.
        stamps: write the time of every frame before its tokens.
        frames: frames sampled by default.
        compressors, keep: what the model was trained with; the default of `VideoLLM`.
        recipe: the system that it was trained as, "" for none.
        base, base_sha256: the shipped model that the weights beside this config are changes to,
            and the hash of its file; "" for whole weights.
    """

    model_type = "vidllm-native"

    def __init__(
        self,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        temporal: list[dict[str, Any]] | None = None,
        downsample: int = 1,
        time_code: str = "relative",
        time_tokens: int = 100,
        time_token_start: int = 0,
        time_embedding: bool = True,
        stamps: bool = False,
        frames: int = 64,
        compressors: str = "none",
        keep: float = 1.0,
        recipe: str = "",
        base: str = "",
        base_sha256: str = "",
        **kwargs: Any,
    ) -> None:
        self.vision = vision or {"type": "conv"}
        self.text = text or {"model_type": "qwen2"}
        self.temporal = temporal if temporal is not None else []
        self.downsample = downsample
        self.time_code = time_code
        self.time_tokens = time_tokens
        self.time_token_start = time_token_start
        self.time_embedding = time_embedding
        self.stamps = stamps
        self.frames = frames
        self.compressors = compressors
        self.keep = keep
        self.recipe = recipe
        self.base, self.base_sha256 = base, base_sha256
        super().__init__(**kwargs)


AutoConfig.register(NativeConfig.model_type, NativeConfig)
