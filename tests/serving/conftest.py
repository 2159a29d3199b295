"""Tests of our methods inside vLLM: `make test-vllm` runs them, in an environment of their own.

Where vLLM is not installed, as in that of all other tests, nothing here is collected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("vllm") else ["*"]

# Before anything imports vLLM: the engine in this process, its methods chosen by the requests.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    TORCH_COMPILE_DISABLE="1",  # what is compiled on a CPU takes longer than all tests
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    VIDLLM_COMPRESSOR="none",
)
os.environ.pop("VIDLLM_KEEP", None)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Any]:
    """An engine of every family, which all tests of it share, and transformers beside it."""
    from tiny_engine import Pair

    made = Pair(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.engine.llm.llm_engine.engine_core.shutdown()
