"""The page docs/which-method.md, made from a table of methods alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .advice import LEVEL, Advice, all_advice, caveats
from .method_table import CONTROL, FREE, KINDS, MET, RANDOM_WEIGHTS, SPELT, MethodTable

_TITLES = {
    FREE: "Methods without training, best first:",
    MET: "Methods that the model met in training, wholly or partly:",
    RANDOM_WEIGHTS: "Methods with random weights, untrained:",
    CONTROL: "The control:",
}
_STAGES = ("vision", "select", "prefill", "decode")


def methods_page(table: MethodTable, csv: str) -> str:
    """The page as Markdown; `csv` is the table's file, as seen from the page."""
    deciding = next(iter(table.scores.values()))[0]
    setting, full = table.setting, table.full
    parts = [
        {
            "keep": f"{100 * keep:g} %{_tokens(table.at(keep))}",
            "ranks": [
                _rank(table, some, _TITLES[kind], deciding)
                for kind in KINDS[1:]
                if (some := [row for row in table.at(keep) if row["kind"] == kind])
            ],
        }
        for keep in table.keeps
    ]
    found = all_advice(table)
    advice = [one.lines() for one in found]
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, of our own words and numbers
        keep_trailing_newline=True,
    ).get_template("which-method.md.j2")
    return template.render(
        command=_command(table),
        csv=csv,
        caveats=caveats(table),
        questions=f"{full['answers']:g}",
        machine=setting.get("device_name", setting.get("device", "not recorded")),
        short=[_short(one) for one in found],
        met=any(row["kind"] == MET for row in table.rows),
        full=_full(table),
        parts=parts,
        refused=sorted(setting.get("refused", {}).items()),
        advice=[{"head": head, "rest": rest} for head, *rest in advice],
    )


def _command(table: MethodTable) -> str:
    """What makes such a table; paths and the device are left out."""
    setting, words = table.setting, ["vidllm bench methods"]
    told = {"task": setting["task"], **setting.get("options", {})}
    told |= {name: setting.get(name) for name in ("split", "seed", "limit", "frames")}
    words += [f"--{name} {value}" for name, value in told.items() if value is not None]
    return " ".join([*words, f"--keep {','.join(f'{keep:g}' for keep in table.keeps)}"])


def _short(advice: Advice) -> str:
    """A row for those who want a method and no reasons."""

    def cell(row: Mapping[str, Any] | None, name: str = "") -> str:
        if row is None:
            return "–"
        return f"{name}{_score(row, advice.score, False)} · {_two(row['total_s'])} s"

    best, quick = advice.best, advice.quickest
    cells = [advice.purpose, f"{100 * advice.keep:g} %", SPELT.get(advice.score, advice.score)]
    cells += [cell(best, f"`{best['compressor']}` "), cell(quick, f"`{quick['compressor']}` ")]
    return f"| {' | '.join([*cells, cell(advice.full), cell(advice.random)])} |"


def _rank(
    table: MethodTable, rows: Sequence[Mapping[str, Any]], title: str, deciding: str
) -> dict[str, Any]:
    scores = [name for names in table.scores.values() for name in names]
    shows_met = any(row["met"] for row in rows)
    heads = ["method", "where"] + (["met at"] if shows_met else [])
    heads += [f"{SPELT.get(n, n)}{' (95 %)' if n == deciding else ''}" for n in scores]
    heads += ["of full", "against random", *(f"{stage} s" for stage in _STAGES), "GFLOP", "KV MB"]
    ordered = sorted(rows, key=lambda row: -(row[deciding] or 0.0))
    lines = []
    for row in ordered:
        cells = [f"`{row['compressor']}`", row["stage"]] + ([row["met"]] if shows_met else [])
        cells += [_score(row, name, name == deciding) for name in scores]
        cells += [_percent(row[f"{deciding}_share"]), _against_random(row, deciding)]
        cells += [_two(row[f"{stage}_s"]) for stage in _STAGES]
        cells += [_two(row["flops"], 1e9), _two(row["kv_mb"])]
        lines.append(f"| {' | '.join(cells)} |")
    return {"title": title, "head": f"| {' | '.join(heads)} |", "rule": "|---" * len(heads) + "|",
            "lines": lines}  # fmt: skip


def _full(table: MethodTable) -> str:
    full = table.full
    names = [name for some in table.scores.values() for name in some]
    told = [f"{SPELT.get(name, name)} {_score(full, name, True)}" for name in names]
    told += [f"{full['tokens_full']:g} tokens"] if full["tokens_full"] else []
    told += [f"{stage} {_two(full[f'{stage}_s'])} s" for stage in _STAGES]
    told += [f"{_two(full['flops'], 1e9)} GFLOP", f"KV {_two(full['kv_mb'])} MB"]
    return " · ".join(told)


def _tokens(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = {row["tokens_kept"] for row in rows}
    (count,) = counts if len(counts) == 1 else (None,)
    return "" if count is None else f" · {count:g} tokens"


def _score(row: Mapping[str, Any], name: str, interval: bool) -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    told = f" ({low:.3f}–{high:.3f})" if interval and low is not None else ""
    return f"{row[name]:.3f}{told}"


def _against_random(row: Mapping[str, Any], name: str) -> str:
    place = f"{name}_vs_random"
    if row[place] is None:
        return ""
    clear = row[f"{place}_holm"] is not None and row[f"{place}_holm"] < LEVEL
    return f"**{row[place]:+.3f}**" if clear else f"{row[place]:+.3f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _two(value: float | None, unit: float = 1.0) -> str:
    return "–" if value is None else f"{value / unit:.2g}"
