"""The site's own step in `mkdocs build`: links that leave docs/ lead into the site too.

Pages and tables outside docs/ that a page links to become part of the site, under their path in the
repository. So the same relative links work where the repository is read and on the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = PurePosixPath("docs")
PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
#: Behind the language of a code block may stand why no test runs it.
_REMARK = re.compile(r"^(```\w+) .*$", re.M)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top of the repository, and what pages link to outside docs/."""
    for name in PAGES:
        _add(files, config, name)
    todo = [file for file in files if file.is_documentation_page()]
    for file in todo:
        for target in _LINK.findall(Path(file.abs_src_path or "").read_text(encoding="utf-8")):
            path = _in_repository(file.src_uri, target.partition("#")[0])
            if not path.is_relative_to(DOCS) and (ROOT / path).is_file():
                _add(files, config, str(path))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Write every link from where the page stands in the site."""

    def link(match: re.Match[str]) -> str:
        path = _in_repository(page.file.src_uri, match[1])
        within = path.relative_to(DOCS) if path.is_relative_to(DOCS) else path
        if str(within) == "README.md":
            within = PurePosixPath("index.md")
        return os.path.relpath(within, PurePosixPath(page.file.src_uri).parent)

    return _REMARK.sub(r"\1", _LINK.sub(link, markdown))


def _in_repository(page: str, target: str) -> PurePosixPath:
    """The path that a link of a page of the site has in the repository."""
    source = PurePosixPath(page)
    stands = source if (ROOT / source).is_file() else DOCS / source
    return PurePosixPath(os.path.normpath(stands.parent / target))


def _add(files: Files, config: Any, path: str) -> None:
    if path != "README.md" and files.get_file_from_path(path) is None:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
