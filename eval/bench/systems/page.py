"""The page docs/systems.md and its plot, made from the table of systems and the verdicts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vidllm.cli.tables import markdown_table, three_digits
from vidllm.encoders.temporal import describe

from ...report.outcome import Outcome
from ...report.plots import SIZE, Cost, draw_score_against
from ...report.style import LIGHT, dress, new_figure, png, tag_column
from ..methods.advice import LEVEL
from ..methods.method_table import SPELT
from .arms import ENCODERS, START, Budget
from .claims import Verdict
from .entries import Exam
from .table import SCORES

Row = Mapping[str, Any]
#: What of the start's mIoU the best system is to keep, by share of the tokens.
WANTED = {0.125: 0.97, 0.05: 0.90}
_DECIDES = SCORES[0]
_CLAIM = ("recipe", "claim, as it is tested here", "verdict", "evidence")


def systems_page(
    setting: Mapping[str, Any],
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    *,
    csv: str,
    plot: str,
) -> str:
    """The page as Markdown; `csv` and `plot` are files as seen from it, `plot` "" for none."""
    main = [row for row in rows if not str(row["system"]).startswith(ENCODERS)]
    keeps = sorted({row["keep"] for row in main}, reverse=True)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, of our own words and numbers
        keep_trailing_newline=True,
    ).get_template("systems.md.j2")
    seeds = len({row["seed"] for row in main if row["seed"] is not None})
    return template.render(
        begin=_begin(setting["budget"]),
        budget=setting["budget"]["told"],
        csv=csv,
        plot=plot,
        score=_DECIDES,
        command=command_of(setting),
        exam=_exam(setting, rows),
        borrowed=setting["budget"]["borrowed"],
        few="" if seeds > 1 else "Trained once each: one seed says little about another.",
        parts=[_part(keep, [r for r in main if r["keep"] == keep]) for keep in keeps],
        best=_best(main),
        costs=_costs(rows),
        claims=markdown_table(_CLAIM, map(_claim, verdicts)),
        encoders=_encoders(rows),
        waiting=[
            f"`{name}`{': ' + told if told else ''}" for name, told in setting["waiting"].items()
        ],
    )


def command_of(setting: Mapping[str, Any]) -> str:
    """The command that makes such a table; files are left out, and a start has its name alone."""
    budget, words = setting["budget"], ["vidllm bench systems"]
    words += [f"--model {shlex.quote(Path(budget['init']).name)}"] if budget["init"] else []
    words += [f"--size {budget['size']}"] if budget["size"] != Budget.size else []
    words += [f"--{name} {budget[name]:g}" for name in ("steps", "batch", "clips", "lr")]
    words += [f"--seeds {budget['seeds']}"]
    words += [f"--split {setting['split']} --seed {setting['seed']} --limit {setting['limit']}"]
    words += [f"--version {setting['options']['version']}"] if setting.get("options") else []
    # Tables of before they were told were asked by the defaults.
    keeps, longest = budget.get("keeps", Exam.keeps), budget.get("max_new_tokens")
    if tuple(keeps) != Exam.keeps:
        words += [f"--keep {','.join(f'{keep:g}' for keep in keeps)}"]
    words += [] if longest is None else [f"--max-new-tokens {longest}"]
    return " ".join(words)


def _begin(budget: Mapping[str, Any]) -> str:
    """What every training begins at, in words."""
    if budget["init"]:
        return f"the model `{Path(budget['init']).name}`"
    return "the shipped model" if budget["size"] == Budget.size else "a fresh tiny model"


def _exam(setting: Mapping[str, Any], rows: Sequence[Row]) -> str:
    start = next(row for row in rows if row["system"] == START)
    version = setting.get("options", {}).get("version")
    return (
        f"{setting['task']}{'' if version is None else f' version {version}'}, split "
        f"{setting['split']}, seed {setting['seed']}: {start['videos']:g} clips, "
        f"{start['answers']:g} questions; brackets: 95 % interval, drawn by clip."
    )


def _part(keep: float, rows: Sequence[Row]) -> dict[str, Any]:
    counts = {row["tokens_kept"] for row in rows}
    title = f"{100 * keep:g} % of the tokens" + (
        f" ({next(iter(counts)):g})" if len(counts) == 1 and None not in counts else ""
    )
    heads = ["system", "seed", "what it is", f"{_DECIDES} (95 %)", "of start", "change"]
    heads += [SPELT.get(name, name) for name in SCORES[1:]]
    heads += ["prefill s", "s an answer", "GFLOP"]
    lines = []
    for row in sorted(rows, key=lambda row: -(row[_DECIDES] or 0.0)):
        cells = [f"`{row['system']}`", _seed(row), str(row["about"])]
        cells += [_value(row), _percent(row[f"{_DECIDES}_share"]), _change(row)]
        cells += [three_digits(row[name]) for name in SCORES[1:]]
        cells += [_two(row["prefill_s"]), _two(row["total_s"]), _two(row["flops"], 1e9)]
        lines.append(cells)
    return {"title": title, "lines": markdown_table(heads, lines)}


def _best(rows: Sequence[Row]) -> list[str]:
    found = []
    for keep, wanted in WANTED.items():
        there = [row for row in rows if row["keep"] == keep and row[_DECIDES] is not None]
        if not there:
            continue
        best = max(there, key=lambda row: float(row[_DECIDES]))
        share = best[f"{_DECIDES}_share"]
        told = f"{100 * wanted:g} % were wanted"
        reached = "" if share is None else "reached" if share >= wanted else "not reached"
        found.append(
            f"At {100 * keep:g} % of the tokens the best, `{best['system']}`, keeps "
            f"{_percent(share)} of the start's {_DECIDES}; {told}: {reached}."
        )
    return found


def _costs(rows: Sequence[Row]) -> list[str]:
    heads = ["system", "seed", "parameters trained", "rate", "steps", "clips a step",
             "CPU s a step", "all, CPU minutes"]  # fmt: skip
    lines = []
    for row in _once(rows):
        if row["steps"] is None:
            continue
        each = row["step_cpu_s"]
        minutes = each and each * row["steps"] / 60
        cells = [f"`{row['system']}`", _seed(row), f"{row['trained']:,.0f}", f"{row['lr']:g}",
                 f"{row['steps']:g}", f"{row['batch']:g}", _two(each), _two(minutes)]  # fmt: skip
        lines.append(cells)
    return markdown_table(heads, lines) if lines else []


def _claim(one: Verdict) -> list[str]:
    evidence = one.evidence or (f"waits for {', '.join(one.waits)}" if one.waits else "")
    return [f"`{one.recipe}`", one.says, f"**{one.verdict}**", evidence]


def _encoders(rows: Sequence[Row]) -> list[str]:
    mine = [row for row in rows if str(row["system"]).startswith(ENCODERS)]
    if not mine:
        return []
    about = {one["name"]: one for one in describe()}
    keeps = sorted({row["keep"] for row in mine if row["keep"] > 0.1}, reverse=True)
    heads = ["encoder", "seed", "parameters trained", "CPU s a step"]
    heads += [f"{_DECIDES} {100 * keep:g} % (95 %)" for keep in keeps]
    heads += [f"QA {100 * keep:g} %" for keep in keeps] + ["streams", "state, bytes a place"]
    lines = []
    for row in _once(mine):
        same = {r["keep"]: r for r in mine
                if (r["system"], r["seed"]) == (row["system"], row["seed"])}  # fmt: skip
        name = str(row["system"])[len(ENCODERS) :]
        told = about.get(name, {})
        state = told.get("state_bytes")
        cells = [f"`{name}`", _seed(row), f"{row['trained'] or 0:,.0f}", _two(row["step_cpu_s"])]
        cells += [_value(same[keep]) if keep in same else "–" for keep in keeps]
        cells += [
            three_digits(same[keep]["qa_accuracy"]) if keep in same else "–" for keep in keeps
        ]
        cells += ["forwards alone" if told.get("streams") else "no"]
        cells += ["–" if state is None else f"{state:,}"]
        lines.append(cells)
    return markdown_table(heads, lines)


def systems_plot(rows: Sequence[Row], *, seconds: bool = True) -> bytes:
    """The score against the tokens that the LLM keeps, and against what an answer costs, as PNG.

    Args:
        seconds: of the run; else predicted GFLOPs, where runs shared their machine with others.
    """
    outcomes = [_outcome(row) for row in rows if not str(row["system"]).startswith(ENCODERS)]
    spent = ("seconds", "seconds spent an answer, all stages", lambda o: o.total_seconds)
    counted = ("flops", "GFLOPs an answer, all stages, predicted", lambda o: o.flops.get("all"))
    several: Sequence[tuple[str, str, Callable[[Outcome], float | None]]] = (
        ("tokens", "video tokens that the LLM keeps", lambda o: o.tokens_kept),
        spent if seconds else counted,
    )
    figure, first = new_figure(LIGHT, 2 * SIZE[0] + 0.4, SIZE[1] + 1.2)
    first.remove()
    tags = []
    for place, (name, axis, of) in enumerate(several, 1):
        axes = figure.add_subplot(1, 2, place)
        dress(axes, LIGHT)
        tags.append(
            (axes, draw_score_against(axes, LIGHT, outcomes, Cost(name, axis, of), _DECIDES))
        )
    for axes, some in tags:
        tag_column(axes, LIGHT, some)
    return png(figure)


def _outcome(row: Row) -> Outcome:
    """A row as the plots of reports take it; the start with all tokens is their reference."""
    is_start = row["system"] == START and row["keep"] == 1
    method = str(row["system"]) if not row["seed"] else f"{row['system']} {row['seed']:g}"
    return Outcome(
        label="none@1" if is_start else f"{method}@{row['keep']:g}",
        method="none" if is_start else method,
        keep=float(row["keep"]),
        score=row[_DECIDES],
        low=row[f"{_DECIDES}_low"],
        high=row[f"{_DECIDES}_high"],
        tokens_full=row["tokens_full"],
        tokens_kept=row["tokens_kept"],
        flops={"all": row["flops"] / 1e9} if row["flops"] is not None else {},
        seconds={"all": row["total_s"]} if row["total_s"] is not None else {},
    )


def _once(rows: Sequence[Row]) -> list[Row]:
    """One row a system and seed."""
    return list({(row["system"], row["seed"]): row for row in rows}.values())


def _seed(row: Row) -> str:
    return "" if row["seed"] is None else f"{row['seed']:g}"


def _value(row: Row) -> str:
    value, low, high = (row[f"{_DECIDES}{more}"] for more in ("", "_low", "_high"))
    return three_digits(value) + ("" if low is None else f" ({low:.3f}–{high:.3f})")


def _change(row: Row) -> str:
    change, p = row[f"{_DECIDES}_vs_start"], row[f"{_DECIDES}_vs_start_holm"]
    if change is None:
        return ""
    return f"**{change:+.3f}**" if p is not None and p < LEVEL else f"{change:+.3f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _two(value: float | None, unit: float = 1.0) -> str:
    return "–" if value is None else f"{value / unit:.2g}"
