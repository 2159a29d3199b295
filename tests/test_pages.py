"""Pages for readers: no dead link, no code that is not so, a site that builds, true metadata."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, blocks
from test_layout import PROJECT

from vidllm import __version__
from vidllm.eval.bench.methods.method_table import read_table

#: The test that runs the Python of a page.
RUN_BY = {
    "README.md": "ask/test_hub_page.py",
    "docs/index.md": "ask/test_hub_page.py",
    "docs/your-model.md": "ask/test_hub_page.py",
    "docs/python.md": "ask/test_python_page.py",
    "docs/finetune.md": "ask/test_finetune_page.py",
    "docs/long-video.md": "longvideo/test_library.py",
    "docs/new-compressor.md": "test_layout.py",
    "docs/heads.md": "recipes/test_head_courses.py",
    "docs/retrieval.md": "recipes/test_retrieval.py",
}
#: Pages whose Python no test runs, and why not.
NOT_RUN = {
    "docs/demo.md": "asks the shipped model five times; what it calls is tested in tests/demo",
    "docs/serving.md": "needs vLLM, in an environment of its own: make test-vllm",
    "docs/package.md": "the blocks of README, which run",
}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(page: Path) -> set[str]:
    """What a link may name in a page, as GitHub and the site make it of its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).strip().lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_link_is_dead(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)}: no file {target}"
        if anchor:
            assert anchor in anchors(file), f"{named(page)}: no heading {target}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=named)
def test_python_of_a_page_names_what_there_is(page: Path) -> None:
    import vidllm

    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vidllm"):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{named(page)}: {node.module} has no {', '.join(missing)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "vidllm":
                assert node.attr in vidllm.__all__, f"{named(page)}: no vidllm.{node.attr}"


def test_python_of_every_page_runs_or_it_is_said_why_not() -> None:
    assert {named(page) for page in PAGES if blocks(page, "python")} == {*RUN_BY, *NOT_RUN}
    for name, test in RUN_BY.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert f'"{Path(name).name}"' in text or f'"{name}"' in text, test
        assert re.search(r"run_page\(|\bexec\(|subprocess\.run\(", text), test


def test_settings_in_the_pages_can_be_read() -> None:
    for page in PAGES:
        for block in blocks(page, "toml"):
            tables = re.findall(r"^\[[^\]]+\]$", block, re.M)
            assert tables, f"{named(page)}: {block}"


def test_the_page_for_an_index_of_packages_is_the_first_screen() -> None:
    spec = spec_from_file_location("package_page", ROOT / "docs" / "package_page.py")
    assert spec is not None and spec.loader is not None
    module: Any = module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "package.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page == module.package_page(readme), "run python docs/package_page.py"
    assert "](" not in page and "make test" in page and len(page.splitlines()) < 80


def test_the_first_screen_says_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("<!--")[0]
    table = read_table(ROOT / "docs" / "results" / "methods.csv")
    rows = {row["compressor"]: row for row in table.at(0.125)}
    (said,) = re.findall(r"At an eighth of the tokens(.*?)\.", readme, re.S)
    for name in ("divprune", "random", "tome"):
        share = round(100 * rows[name]["mIoU_share"])
        assert re.search(rf"{name}\W[^%]*\b{share} %", said), (name, share)
    assert f"{table.full['videos']:g} synthetic clips" in readme


def test_what_is_said_of_the_package_is_so() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    project = PROJECT["project"]
    minors = [c.split()[-1] for c in project["classifiers"] if re.search(r"Python :: 3\.", c)]
    assert f"Python {minors[0]}–{minors[-1]} · {project['license']}" in readme
    assert project["requires-python"] == f">={minors[0]}"
    from vidllm.models.families.served import FAMILIES

    assert f"{len(FAMILIES)} model families" in readme
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


@pytest.mark.skipif(find_spec("material") is None, reason="no site: pip install 'vidllm[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "your-model/index.html", "CHANGELOG/index.html"):
        assert (tmp_path / page).is_file(), page
    assert (tmp_path / "eval" / "results" / "long.csv").is_file()
