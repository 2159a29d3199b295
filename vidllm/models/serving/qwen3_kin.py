"""What follows Qwen3-VL in vLLM: its mixture of experts, and Qwen3.5, which has no DeepStack."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.model_executor.models.qwen3_vl_moe import (
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .processing import ChoosingInfo
from .qwen3_vl import CompressingFrames, FrameProcessor


class ExpertsInfo(ChoosingInfo, Qwen3VLMoeProcessingInfo):
    """Of Qwen3-VL with experts."""


class Info35(ChoosingInfo, Qwen3_5ProcessingInfo):
    """Of Qwen3.5."""


class ExpertsInfo35(ChoosingInfo, Qwen3_5MoeProcessingInfo):
    """Of Qwen3.5 with experts."""


@MULTIMODAL_REGISTRY.register_processor(
    FrameProcessor, info=ExpertsInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class CompressedQwen3VLMoe(CompressingFrames, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts."""


@MULTIMODAL_REGISTRY.register_processor(
    FrameProcessor, info=Info35, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class CompressedQwen35(CompressingFrames, Qwen3_5ForConditionalGeneration):
    """Qwen3.5: layers of linear attention go over what is left, at its true positions."""


@MULTIMODAL_REGISTRY.register_processor(
    FrameProcessor, info=ExpertsInfo35, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class CompressedQwen35Moe(CompressingFrames, Qwen3_5MoeForConditionalGeneration):
    """Qwen3.5 with experts."""
