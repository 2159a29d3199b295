"""docs/goldens.md names every golden file, and what it names is there."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from vidllm import compressors

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "goldens.md").read_text(encoding="utf-8")


def rows(columns: int) -> Iterator[list[str]]:
    """The cells of the page's table of so many columns, without its head."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == columns:
            yield cells


def thing(name: str) -> object:
    """A module, or what stands in one."""
    module, _, last = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), last)


def test_every_golden_file_is_on_the_page_once() -> None:
    files = sorted(file.stem for file in (TESTS / "goldens").glob("*.npz"))
    assert sorted(golden.strip("`") for golden, *_ in rows(5)) == files


def test_classes_and_tests_of_the_page_exist() -> None:
    for golden, _, classes, tests, _ in rows(5):
        first = re.match(r"`([\w.]+)", classes)
        assert first or classes.startswith("none:"), golden
        if first and first[1].startswith(("vidllm.", "authors.")):
            assert thing(first[1]), golden
        elif first:
            assert getattr(compressors, first[1].split(".")[0], None) or thing(
                f"vidllm.compressors.holitom.{first[1]}"
            )
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named, golden
        for file, test in named:
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            assert test in {getattr(node, "name", "") for node in tree.body}, f"{file}::{test}"
        texts = "".join((TESTS / file).read_text(encoding="utf-8") for file, _ in named)
        stem = golden.strip("`")
        assert (stem in texts) or (stem.startswith("pixels_") and "pixels_" in texts), golden


def test_what_moved_is_where_the_page_says() -> None:
    for before, now in rows(2):
        assert thing(now.strip("`")), now
        name = before.strip("`").removeprefix("vidllm.")
        file = TESTS.parent / f"{name.rpartition('.')[0].replace('.', '/')}.py"
        if file.exists():
            tree = ast.parse(file.read_text(encoding="utf-8"))
            assert name.rpartition(".")[2] not in {getattr(n, "name", "") for n in tree.body}, name
