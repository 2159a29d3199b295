"""The command line as a process, for tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

#: What the fixture `cli` is: `cli("ask", path, "…", env={…}, cwd=…)`.
Run = Callable[..., "subprocess.CompletedProcess[str]"]

SCRIPT = Path(sys.executable).parent / "vidllm"
START = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "vidllm.cli"]
KIT = Path(__file__).parent
#: Variables that are read while a command runs, or that every command sets itself where it is not
#: told otherwise (and so do those that a test runs in its own process).
LATE = {"VIDLLM_WEIGHTS", "COLUMNS", "HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"}


def environment() -> dict[str, str]:
    """This process's variables as a command sees them, without what changes with every test."""
    given = {**os.environ, "COLUMNS": "200"}
    given.pop("PYTEST_CURRENT_TEST", None)
    return given


def started(
    words: Iterable[str], env: dict[str, str], cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    """Run the installed script in a process of its own."""
    return subprocess.run(
        [*START, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        env=env,
        cwd=cwd,
        timeout=300,
        check=False,
    )


class WarmStart:
    """Children of one process that has imported torch and transformers already (warm_cli.py).

    What modules read from the environment while they are imported is that of the first command:
    a command with other variables is started as a process of its own.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.env = environment()
        (asked, self._requests), (self._replies, told) = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(KIT / "warm_cli.py"), str(asked), str(told)],
            pass_fds=(asked, told),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self.env,
        )
        os.close(asked)
        os.close(told)

    def fits(self, env: dict[str, str]) -> bool:
        """Whether a command with these variables would have imported the same modules."""
        return not {name for name, _ in env.items() ^ self.env.items()} - LATE

    def run(
        self, words: list[str], env: dict[str, str], cwd: Path | None
    ) -> subprocess.CompletedProcess[str]:
        files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for file in files:
            file.write_bytes(b"")
        order = {"words": words, "env": env, "cwd": str(cwd or Path.cwd())}
        order |= {file.name: str(file) for file in files}
        os.write(self._requests, (json.dumps(order) + "\n").encode())
        reply = os.read(self._replies, 64)
        if not reply:
            raise RuntimeError("the process that starts commands has ended")
        out, err = (file.read_bytes().decode().replace("\r\n", "\n") for file in files)
        return subprocess.CompletedProcess([*START, *words], int(reply), out, err)


@functools.cache
def _warm() -> WarmStart:
    return WarmStart()


def vidllm(
    *arguments: object,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    cold: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``vidllm ARGUMENTS`` as a process, with these variables besides those of the tests.

    Args:
        cold: start it from nothing, imports and all, as is done where variables differ.
    """
    words, wanted = [str(word) for word in arguments], {**environment(), **(env or {})}
    if cold or not _warm().fits(wanted):
        return started(words, wanted, cwd)
    return _warm().run(words, wanted, cwd)
