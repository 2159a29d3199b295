"""What vLLM calls in each of its processes before it reads its configuration.

Without `VIDLLM_COMPRESSOR` nothing changes. With it, the families below are served by our classes,
others are refused, and the part of vLLM that places pruned tokens is switched on.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vidllm.errors import InputError

from .choice import COMPRESSOR, from_environment

#: vLLM's name of an architecture -> where ours is.
SERVED = {
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl:CompressedQwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:CompressedQwen3VL",
}
#: Any share above 0 switches vLLM's own pruning on. What is kept is counted by us alone.
_ON = 0.5


def register() -> None:
    """Entry point of the group `vllm.general_plugins`.

    Raises:
        InputError: a method that cannot be served, by name and reason; vLLM does not start then.
    """
    choice = from_environment()
    if choice is None:
        return
    from vllm import ModelRegistry
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    for name, place in SERVED.items():
        ModelRegistry.register_model(name, f"{__package__}.{place}")
    EngineArgs.create_model_config = _switched_on(EngineArgs.create_model_config)
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        CPUModelRunner.load_model = _noticed(CPUModelRunner.load_model)


def _switched_on(make: Any) -> Any:
    """vLLM's maker of a model's configuration, behind which pruning is on."""

    @wraps(make)
    def create_model_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = make(self, *args, **kwargs)
        found = config.architecture
        if found not in SERVED:
            served = ", ".join(SERVED)
            raise InputError(
                f"{COMPRESSOR} is set, but vidllm does not serve {found} in vLLM (it serves "
                f"{served}): unset it, or choose one of these"
            )
        inputs = config.multimodal_config
        if inputs.video_pruning_rate:
            raise InputError(
                f"vLLM's own video pruning and {COMPRESSOR} are both asked for: leave out "
                "--video-pruning-rate"
            )
        inputs.video_pruning_rate = _ON
        return config

    return create_model_config


def _noticed(load: Any) -> Any:
    """The CPU runner's `load_model`, which does not look whether the model prunes (vLLM 0.32)."""

    @wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = load(self, *args, **kwargs)
        inputs = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = bool(inputs and inputs.is_multimodal_pruning_enabled())
        return done

    return load_model
