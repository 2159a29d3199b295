"""The command line as a process, for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

#: What the fixture `cli` is: `cli("ask", path, "…", env={…}, cwd=…)`.
Run = Callable[..., "subprocess.CompletedProcess[str]"]
