"""What vLLM calls in each of its processes before it reads its configuration.

Without `VIDLLM_COMPRESSOR` nothing changes. With it, the families below are served by our classes,
others are refused, and the part of vLLM that places pruned tokens is switched on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

from vidllm.errors import InputError

from .choice import COMPRESSOR, KEEP, OPTIONS, Choice, from_environment

#: Of the entry point.
NAME = "vidllm"
#: Set by `vidllm bench serve` alone: vLLM's own pruning shall run on a CPU too, without ours.
RIVALS_RUN = "VIDLLM_BENCH_RIVALS"
#: vLLM loads only the plug-ins that this variable lists, where it is set.
_PLUGINS = "VLLM_PLUGINS"

#: vLLM's name of an architecture -> where ours is.
SERVED = {
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl:CompressedQwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen3_vl:CompressedQwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_kin:CompressedQwen3VLMoe",
    "Qwen3_5ForConditionalGeneration": "qwen3_kin:CompressedQwen35",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_kin:CompressedQwen35Moe",
}
#: Of these, those whose layers of linear attention vLLM 0.32 computes in bfloat16 alone on a CPU.
_LINEAR = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
#: Any share above 0 switches vLLM's own pruning on. What is kept is counted by us alone.
_ON = 0.5


def register() -> None:
    """Entry point of the group `vllm.general_plugins`.

    Raises:
        InputError: a method that cannot be served, by name and reason; vLLM does not start then.
    """
    if from_environment() is not None:
        install()
    elif os.environ.get(RIVALS_RUN):
        _notice_pruning()


def choose(choice: Choice) -> None:
    """Let processes of vLLM that start from now on have the plug-in, and this choice."""
    os.environ[COMPRESSOR] = choice.spec
    os.environ.pop(KEEP, None)
    if choice.keep is not None:
        os.environ[KEEP] = repr(choice.keep)
    wanted = os.environ.get(_PLUGINS)
    if wanted is not None and NAME not in wanted.split(","):
        os.environ[_PLUGINS] = ",".join(filter(None, [wanted, NAME]))


@contextmanager
def chosen_by_requests() -> Iterator[None]:
    """Inside, vLLM starts with the plug-in, and every request names its method."""
    names = (COMPRESSOR, KEEP, _PLUGINS)
    before = {name: os.environ[name] for name in names if name in os.environ}
    choose(Choice())
    install()  # this process may have loaded its plug-ins already
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@cache
def install() -> None:
    """Put our classes in place of vLLM's, once a process."""
    from vllm import ModelRegistry
    from vllm.engine.arg_utils import EngineArgs

    for name, place in SERVED.items():
        ModelRegistry.register_model(name, f"{__package__}.{place}")
    EngineArgs.create_model_config = _switched_on(EngineArgs.create_model_config)
    _notice_pruning()


@cache
def _notice_pruning() -> None:
    """Let vLLM's runner for CPUs look whether its model prunes, which vLLM 0.32 forgets."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        CPUModelRunner.load_model = _noticed(CPUModelRunner.load_model)


def check_model(name: str) -> None:
    """Refuse a model's folder that is not served; a model of the hub is looked at by vLLM.

    Raises:
        InputError: names the architecture, and those that are served.
    """
    file = Path(name) / "config.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is no configuration of a model: {error}") from None
    _check(found[0] if isinstance(found, list) and found else "a model without architectures")


def _check(found: str) -> None:
    if found not in SERVED:
        raise InputError(
            f"vidllm does not serve {found} in vLLM; it serves {', '.join(SERVED)}: choose one of "
            f"these, or leave {COMPRESSOR} unset"
        )


def _check_dtype(config: Any) -> None:
    """Refuse what would end the engine with its first request."""
    from vllm.platforms import current_platform

    wrong = config.architecture in _LINEAR and "bfloat16" not in str(config.dtype)
    if wrong and current_platform.is_cpu():
        raise InputError(
            f"vLLM computes the linear attention of {config.architecture} on a CPU in bfloat16 "
            "alone: say dtype bfloat16 (--dtype bfloat16)"
        )


def _switched_on(make: Any) -> Any:
    """vLLM's maker of a model's configuration, behind which pruning is on."""

    @wraps(make)
    def create_model_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = make(self, *args, **kwargs)
        _check(config.architecture)
        _check_dtype(config)
        inputs = config.multimodal_config
        if inputs.video_pruning_rate:
            raise InputError(
                f"vLLM's own video pruning and {COMPRESSOR} are both asked for: leave out "
                "--video-pruning-rate"
            )
        if set(OPTIONS) & set(inputs.mm_processor_kwargs or {}):
            raise InputError(
                f"a request's mm_processor_kwargs name {' and '.join(OPTIONS)}; for all requests "
                f"set {COMPRESSOR} and {KEEP}, not --mm-processor-kwargs"
            )
        inputs.video_pruning_rate = _ON
        return config

    return create_model_config


def _noticed(load: Any) -> Any:
    """The CPU runner's `load_model`, which then looks at the model."""

    @wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = load(self, *args, **kwargs)
        inputs = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = bool(inputs and inputs.is_multimodal_pruning_enabled())
        return done

    return load_model
