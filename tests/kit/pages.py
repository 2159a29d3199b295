"""The pages of the repository: their code blocks, and running those of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Every page for readers.
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "weights").glob("*/*.md")),
    ROOT / "tests" / "goldens" / "README.md",
]


def blocks(page: Path, language: str, *, run: bool = False) -> list[str]:
    """The code blocks of a page in one language, or in none ("").

    Args:
        run: without those that begin with why no test runs them (```python no-run: reason).
    """
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)( no-run: .+)?\n(.*?)^```$", text, re.M | re.S)
    return [code for kind, why, code in fenced if kind == language and not (run and why)]


def run_page(name: str, space: Mapping[str, Any], swaps: Mapping[str, str]) -> dict[str, Any]:
    """Run the Python blocks of a page in order, in one name space, which is returned.

    Args:
        name: path in the repository. space: names that the page takes as given.
        swaps: what is written in place of what the page says, such as a tiny model's folder; each
            must occur.
    """
    code = "\n".join(blocks(ROOT / name, "python", run=True))
    for old, new in swaps.items():
        assert old in code, f"{name} no longer says {old}"
        code = code.replace(old, new)
    names = dict(space)
    exec(compile(code, name, "exec"), names)
    return names
