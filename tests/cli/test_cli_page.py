"""docs/cli.md says which commands and options there are: those of the help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from vidllm.cli.application import app

TOP: Any = typer.main.get_command(app)


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "cli.md").read_text(encoding="utf-8")


def test_every_command_of_the_help_is_listed(page: str) -> None:
    listed = re.findall(r"^vidllm (\w+)", page.split("```")[1], re.MULTILINE)
    assert set(listed) == set(TOP.list_commands(None))


def test_every_option_of_the_page_is_one_of_its_commands(page: str) -> None:
    about = page[: page.index("## Benchmarks")]
    named = set(re.findall(r"`(--[a-z-]+)", about))
    asking = {option for name in ("ask", "chat") for p in TOP.commands[name].params
              for option in p.opts}  # fmt: skip
    assert named - asking == {"--limit", "--out"} & named


def test_every_option_about_the_model_is_on_the_page(page: str) -> None:
    panels = ("The model", "Fewer tokens")
    options = [p for p in TOP.commands["ask"].params if p.rich_help_panel in panels]
    names = [p.opts[0] for p in options]
    assert len(names) > 8
    assert [name for name in names if not re.search(rf"[` ]{name}[` ]", page)] == []
