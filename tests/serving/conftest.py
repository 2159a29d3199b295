"""Tests of our methods inside vLLM: `make test-vllm` runs them, in an environment of their own.

Where vLLM is not installed, as in that of all other tests, nothing here is collected.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

collect_ignore_glob = [] if find_spec("vllm") else ["*"]

# Before anything imports vLLM: the engine in this process, its methods chosen by the requests.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    VIDLLM_COMPRESSOR="none",
)
os.environ.pop("VIDLLM_KEEP", None)
sys.path.insert(0, str(Path(__file__).parent))
