"""Write docs/package.md, what an index of packages shows: the first screen of README alone.

Pictures and links inside the repository lead nowhere there, and are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def package_page(readme: str) -> str:
    """README up to its first comment, without pictures (and their captions' links) and links."""
    page = readme.split("<!--")[0]
    page = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n\n", "", page, flags=re.M)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", page).rstrip() + "\n"


if __name__ == "__main__":
    readme = (HERE.parent / "README.md").read_text(encoding="utf-8")
    (HERE / "package.md").write_text(package_page(readme), encoding="utf-8")
