"""What every test shares: no network, few threads, and the command line as a process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hf_results import WRITTEN, Results
from processes import Run, vidllm

# Before anything imports torch or transformers; child processes inherit it.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    GRADIO_ANALYTICS_ENABLED="False",
    MPLBACKEND="Agg",
)
# Tiny models gain nothing from more threads, which wait for each other busily; and what a process
# with threads of OpenMP forks may wait for them forever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("VIDLLM_DEBUG", None)
# Where the suite runs in the background a shell has switched Ctrl-C off, for every child as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("VIDLLM_WEIGHTS", None)

ROOT = Path(__file__).resolve().parent.parent

# VIDLLM_MODELS_MATRIX=FILE keeps what the tests of hub models find (see hf_results.py).
FOUND = Results()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    of_hub = item.path.name.startswith(("test_hf_", "test_models_page"))
    if WRITTEN and of_hub and isinstance(item, pytest.Function):
        FOUND.add(item, report)
    return report


#: Files that take longest, first: what begins last must not keep one processor waiting for another.
LONGEST = (
    "test_hf_matrix.py",
    "test_demo.py",
    "test_demo_access.py",
    "test_run_kills.py",
    "test_hf_bypassed.py",
    "test_head_courses.py",
    "test_bench_kills.py",
    "test_cli.py",
    "test_endpoints.py",
    "test_demo_gate.py",
    "test_demo_work.py",
    "test_hf_attention.py",
    "test_retrieval.py",
    "test_compressors.py",
    "test_timetext.py",
    "test_layout.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: tests of the page and of processes wait a good deal."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 2


def pytest_sessionfinish() -> None:
    if WRITTEN:
        FOUND.write(Path(WRITTEN))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def cli() -> Run:
    """Run ``vidllm ARGUMENTS`` as a process: ``cli("ask", path, "…", env={…}, cwd=…)``."""
    return vidllm


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Assert that a run failed with one clear line and nothing else; gives that line."""

    def check(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
        lines = result.stderr.splitlines()
        assert result.returncode == code, result.stderr
        assert result.stdout == ""
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("vidllm: ")
        assert "Traceback" not in lines[0]
        return lines[0]

    return check
