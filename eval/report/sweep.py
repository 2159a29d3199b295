"""Several settings as one Markdown table: a row a compressor, a column a share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidllm.cli.tables import markdown_table, three_digits

#: Scores that a cell shows beside the headline, by task.
BESIDE: Mapping[str, tuple[str, ...]] = {"stage": ("R1@0.5", "qa_accuracy")}


def is_sweep(results: Mapping[str, Any]) -> bool:
    """Whether a run compares compressors: more than one beside the uncompressed run."""
    names = [one["compressor"] for one in results["results"].values()]
    return len(names) - names.count("none") > 1


def markdown(results: Mapping[str, Any]) -> str:
    """The results of several settings as a Markdown table.

    The uncompressed run has a row of its own; a cell shows the headline, its share of the
    uncompressed one, and the scores of `BESIDE`.

    Args:
        results: the contents of results.json.
    """
    beside = BESIDE.get(results["task"], ())
    settings = list(results["results"].values())
    full = [one for one in settings if one["compressor"] == "none"]
    rest = [one for one in settings if one["compressor"] != "none"]
    columns = list(dict.fromkeys(_column(one) for one in rest))
    heads = [_head(column, rest) for column in columns]
    rows = [[f"none{_tokens(one)}", _cell(one, beside), *[""] * (len(columns) - 1)] for one in full]
    for name in dict.fromkeys(one["compressor"] for one in rest):
        cells = {_column(one): _cell(one, beside) for one in rest if one["compressor"] == name}
        rows.append([name, *(cells.get(column, "–") for column in columns)])
    shown = f"{results['headline']} (share of the uncompressed {results['headline']})"
    names = {"qa_accuracy": "QA accuracy"}
    words = " · ".join([shown, *(names.get(name, name) for name in beside)])
    lines = markdown_table(["compressor", *heads], rows)
    return "\n".join([*lines, "", f"A cell: {words}."])


def _column(one: Mapping[str, Any]) -> tuple[float, int | None]:
    return one["keep"], one["tokens"]


def _head(column: tuple[float, int | None], rest: Sequence[Mapping[str, Any]]) -> str:
    keep, tokens = column
    if tokens is not None:
        return f"{tokens} tokens"
    counts = {_tokens(one) for one in rest if _column(one) == column}
    return f"keep {100 * keep:g} %{counts.pop() if len(counts) == 1 else ''}"


def _tokens(one: Mapping[str, Any]) -> str:
    kept = one["costs"]["tokens_kept"]
    return "" if kept is None else f" · {kept:g} tokens"


def _cell(one: Mapping[str, Any], beside: Sequence[str]) -> str:
    share = (one["relative"] or {}).get("share")
    told = "" if share is None else f" ({100 * share:.0f} %)"
    values = [three_digits(one["headline"]["value"]) + told]
    return " · ".join([*values, *(three_digits(one["scores"].get(name)) for name in beside)])
