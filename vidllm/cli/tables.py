"""Tables for people: on a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def table(
    rows: Iterable[Sequence[object]],
    *,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    **look: Any,
) -> Table:
    """A table for a terminal.

    Args:
        rows: the cells of each; a short row ends early.
        left: heads of the first columns, of text. right: of those behind, of numbers.
        look: as of rich's `Table`, such as its title.
    """
    from rich.table import Table

    made = Table(**look)
    for head in left:
        made.add_column(head)
    for head in right:
        made.add_column(head, justify="right")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def three_digits(value: float | None) -> str:
    """A score with three digits behind the point; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def console(width: int) -> Console:
    """Standard output: as wide as its terminal, or so wide where it is a file or a pipe."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=width)


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> list[str]:
    """The lines of a table in Markdown; of `numbers` all columns but the first stand right."""
    rest = "---:|" if numbers else "---|"
    lines = [f"| {' | '.join(heads)} |", "|---|" + rest * (len(heads) - 1)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return [line.replace("|  |", "| |").replace("|  |", "| |") for line in lines]
