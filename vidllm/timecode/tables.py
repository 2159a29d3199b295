"""Ranges in Markdown tables whose columns say "start" and "end"."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from .labels import END, START, seconds_each
from .numbers import Number

_RULE = re.compile(r"\s?\|?\s?:?-{2,}[\s|:\-]*")
_HEADER = re.compile(r"(?m)^[^\n|]*\|[^\n]*\n[ |]{0,3}:?-{2,}")
_FIRST = re.compile(rf"\b(?:{START}|from)", re.IGNORECASE)
_LAST = re.compile(rf"\b(?:{END}|to)", re.IGNORECASE)


def table_ranges(
    text: str, numbers: Sequence[Number]
) -> list[tuple[float, float, int, int]] | None:
    """Rows as ranges; None where there is no table, or its columns have no such names."""
    lines = list(re.finditer(r"[^\n]+", text))
    ranges: list[tuple[float, float, int, int]] = []
    columns: tuple[int, int, float, float] | None = None
    for k, line in enumerate(lines):
        if k + 1 < len(lines) and "|" in line[0] and _RULE.fullmatch(lines[k + 1][0]):
            columns = _columns(line[0])
            continue
        if columns is None or "|" not in line[0] or _RULE.fullmatch(line[0]):
            continue
        cells = _cells(line[0], line.start())
        first, last, one, two = columns
        if max(first, last) >= len(cells):
            continue
        ends = [_only(numbers, cells[column]) for column in (first, last)]
        if ends[0] and ends[1] and ends[0].seconds is not None and ends[1].seconds is not None:
            low, high = (
                (n.seconds or 0.0) * (each if n.kind in ("bare", "point", "comma") else 1.0)
                for n, each in ((ends[0], one), (ends[1], two))
            )
            places = [edge for n in (ends[0], ends[1]) for edge in (n.begin, n.end)]
            ranges.append((low, high, min(places), max(places)))
    return ranges or None


def has_header(text: str) -> bool:
    """Whether a text has a Markdown table with a row of names."""
    return _HEADER.search(text) is not None


def _columns(line: str) -> tuple[int, int, float, float] | None:
    names = [line[begin:end] for begin, end in _cells(line, 0)]
    first = next((k for k, name in enumerate(names) if _FIRST.search(name)), None)
    last = next((k for k, name in enumerate(names) if _LAST.search(name) and k != first), None)
    if first is None or last is None:
        return None
    one, two = seconds_each(names[first]), seconds_each(names[last])
    return None if one is None or two is None else (first, last, one, two)


def _cells(line: str, begin: int) -> list[tuple[int, int]]:
    cells, at = [], begin
    for part in line.split("|"):
        cells.append((at, at + len(part)))
        at += len(part) + 1
    if not line[: cells[0][1] - begin].strip():
        cells = cells[1:]
    return cells


def _only(numbers: Sequence[Number], cell: tuple[int, int]) -> Number | None:
    first, behind = (bisect_left(numbers, edge, key=lambda n: n.begin) for edge in cell)
    return numbers[first] if behind - first == 1 else None
