"""docs/python.md: its examples run, in order, in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_the_examples_of_the_page_run(root: Path) -> None:
    text = (root / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 6
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "begins: prefill" in done.stdout and "model vidllm-stage" in done.stdout
