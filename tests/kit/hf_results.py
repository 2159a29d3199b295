"""What the tests of hub models found, kept as a file: the source of docs/models.md.

`VIDLLM_MODELS_MATRIX=FILE pytest tests/models/test_hf_*.py tests/models/test_models_page.py` writes
it; the hooks are in conftest.py.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest

#: The file to write, or None; children of the tests write none.
WRITTEN = os.environ.pop("VIDLLM_MODELS_MATRIX", None)
#: Tests of the matrix, and what their cell is called where no batch names it.
MATRIX = {"test_compressed_is_masked": "", "test_keeping_everything_is_bit_equal": "whole"}
#: The worst of several outcomes counts.
_ORDER = ("passed", "skipped", "failed")


class Results:
    """Outcomes by family.

    A test that could not try what its name says records what it did as its "cell", which stands
    there in the place of "passed".

    Attributes:
        matrix: family -> attention -> compressors -> "one", "two" (prompts) or "whole" (keep=1.0)
            -> outcome. tests: other tests, name -> family -> the worst outcome.
        refused: what was asked for -> family -> the line that refused it.
    """

    def __init__(self) -> None:
        self.matrix: dict[str, Any] = {}
        self.tests: dict[str, dict[str, str]] = {}
        self.refused: dict[str, dict[str, str]] = {}

    def add(self, item: pytest.Function, report: pytest.TestReport) -> None:
        """Take what one phase of a test gave."""
        if report.when != "call" and report.outcome == "passed":
            return
        name, told = item.originalname, dict(getattr(item, "callspec", _NONE).params)
        if name in MATRIX:
            family, attention = told["served"]
            specs = self.matrix.setdefault(family, {}).setdefault(attention, {})
            cell = told.get("batch", MATRIX[name])
            specs.setdefault(told["spec"], {})[cell] = report.outcome
        elif "family" in told:
            own = self.tests.setdefault(name, {})
            cells = [str(line) for what, line in report.user_properties if what == "cell"]
            found = cells[0] if cells and report.outcome == "passed" else report.outcome
            own[told["family"]] = max((own.get(told["family"], "passed"), found), key=_rank)
        for what, line in report.user_properties:
            if what == "refused" and report.outcome == "passed":
                kind = told.get("family") or told["kind"]
                self.refused.setdefault(told["case"], {})[kind] = str(line)

    def write(self, file: Path) -> None:
        """One line a compressor, family and attention; the same results give the same bytes."""
        import torch
        import transformers

        made: dict[str, Any] = {
            "versions": {
                "transformers": transformers.__version__,
                "torch": torch.__version__.partition("+")[0],
                "python": platform.python_version(),
            },
            "matrix": self.matrix,
            "tests": self.tests,
            "refused": self.refused,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_lines(made) + "\n", encoding="utf-8")


def _rank(outcome: str) -> float:
    return _ORDER.index(outcome) if outcome in _ORDER else 0.5


class _Nothing:
    params: dict[str, Any] = {}  # noqa: RUF012


_NONE = _Nothing()


def _lines(value: Any, depth: int = 0) -> str:
    if not isinstance(value, dict) or all(isinstance(v, str) for v in value.values()):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    pad = " " * (depth + 1)
    parts = [
        f"{pad}{json.dumps(key)}: {_lines(value[key], depth + 1)}"
        for key in (sorted(value) if depth else value)
    ]
    return "{\n" + ",\n".join(parts) + f"\n{' ' * depth}}}"
