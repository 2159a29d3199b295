"""Compressors against shares kept: one table, every video read and encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidllm.compressors import Chain, Compressor, build
from vidllm.errors import InputError, WorkError
from vidllm.stage.annotations import tidy
from vidllm.stage.questions import QA_KINDS

from .metrics import Reply, summarise
from .records import Cost
from .stage import Progress, Run, mean_costs, reply

#: What the table shows; other kinds of questions are not asked.
KINDS: tuple[str, ...] = ("ground", *QA_KINDS)
COLUMNS: tuple[str, ...] = (
    "compressor",
    "keep",
    "tokens",
    "mIoU",
    "share",
    "R1@0.3",
    "R1@0.5",
    "R1@0.7",
    "qa_accuracy",
    "parse_failures",
    "mIoU_low",
    "mIoU_high",
)


@dataclass(frozen=True)
class Setting:
    """One cell of the table: a compressor at a share, built before anything is loaded."""

    name: str
    keep: float
    compressor: Compressor | Chain


def settings_of(names: str, keeps: str) -> list[Setting]:
    """All settings of a sweep, the uncompressed run first.

    Args:
        names: compressors, comma separated; a chain is written "aim+uniform".
        keeps: shares in (0, 1), comma separated.

    Raises:
        InputError: a name or a share that is wrong or comes twice.
    """
    try:
        shares = [float(part) for part in keeps.split(",")]
    except ValueError as error:
        raise InputError(f"--keeps must be shares such as 0.5,0.25, not {keeps!r}") from error
    if not all(0 < share < 1 for share in shares):
        raise InputError(f"--keeps must lie between 0 and 1, not {keeps!r}; 1 is always run")
    specs = [part.strip() for part in names.split(",")]
    for what, given in (("--sweep", specs), ("--keeps", shares)):
        if len(set(given)) != len(given):
            raise InputError(f"{what} names something twice")
    pairs = [(spec, share) for spec in specs for share in shares]
    found = [Setting(s, keep, build(s.replace("+", ","), keep=keep)) for s, keep in pairs]
    return [Setting("none", 1.0, build("none")), *found]


def sweep(
    run: Run, settings: Sequence[Setting], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Ask everything under every setting; a row each, with `COLUMNS` as keys.

    `share` is the mIoU as a share of the uncompressed one, which the first setting has.
    """
    replies: list[list[Reply]] = [[] for _ in settings]
    costs: list[list[Cost]] = [[] for _ in settings]
    methods = [setting.compressor for setting in settings]
    for done, sample in enumerate(run.samples, 1):
        wanted = [k for k, q in enumerate(sample.questions) if q.kind in KINDS]
        texts = [tidy(sample.questions[k].text) for k in wanted]
        if texts:
            clip = run.options.open(str(sample.path))
            tokens, duration = run.llm.encode(clip, compressors=methods)
            for at, setting in enumerate(settings):
                said = run.llm.answer(clip, tokens, duration, texts, compressor=setting.compressor)
                pairs = zip(wanted, said, strict=True)
                replies[at] += [reply(run.llm.code, sample, k, answer) for k, answer in pairs]
                costs[at].append(said[0].receipt.as_dict())
        if progress is not None:
            progress(done, len(run.samples))
    if not replies[0]:
        raise WorkError("these clips have no question that a sweep asks: use a larger --limit")
    rows: list[dict[str, Any]] = []
    for setting, said_there, cost in zip(settings, replies, costs, strict=True):
        scores = summarise(said_there, QA_KINDS, run.options.seed)
        low, high = scores["mIoU_ci95"] or (None, None)
        full = rows[0]["mIoU"] if rows else scores["mIoU"]
        row = {
            **scores,
            "compressor": setting.name,
            "keep": setting.keep,
            "tokens": mean_costs(cost)["tokens_kept"],
            "share": round(scores["mIoU"] / full, 4) if full and scores["mIoU"] else None,
            "mIoU_low": low,
            "mIoU_high": high,
        }
        rows.append({name: row[name] for name in COLUMNS})
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `sweep` as a Markdown table: a row a compressor, a column a share kept."""
    full, rest = rows[0], rows[1:]
    keeps = list(dict.fromkeys(row["keep"] for row in rest))
    tokens = {keep: next(r["tokens"] for r in rest if r["keep"] == keep) for keep in keeps}
    heads = [f"keep {100 * keep:g} % · {tokens[keep]:g} tokens" for keep in keeps]
    lines = [
        f"| compressor | {' | '.join(heads)} |",
        f"|---|{'---|' * len(keeps)}",
        f"| none · {full['tokens']:g} tokens | {_cell(full)} |{' |' * (len(keeps) - 1)}",
    ]
    for name in dict.fromkeys(row["compressor"] for row in rest):
        cells = [
            _cell(next(r for r in rest if r["compressor"] == name and r["keep"] == keep))
            for keep in keeps
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "A cell: mIoU (share of the uncompressed mIoU) · R1@0.5 · QA accuracy."]
    return "\n".join(lines)


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows of `sweep`. Raises `WorkError` where that cannot be."""
    import pandas as pd

    try:
        pd.DataFrame(list(rows), columns=list(COLUMNS)).to_csv(path, index=False)
    except OSError as error:
        raise WorkError(f"--out {path} cannot be written: {error.strerror or error}") from error


def _cell(row: dict[str, Any]) -> str:
    share = "" if row["keep"] == 1 or row["share"] is None else f" ({100 * row['share']:.0f} %)"
    values = (_three(row["mIoU"]) + share, _three(row["R1@0.5"]), _three(row["qa_accuracy"]))
    return " · ".join(values)


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
