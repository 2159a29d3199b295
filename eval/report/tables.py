"""The summary as rows: CSV with full numbers, Markdown ready for a paper, cells for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidllm.cli.tables import markdown_table, three_digits
from vidllm.errors.writing import csv_text

from .outcome import Outcome, best_of, flop_unit, name_of
from .study import Part, Section, shown
from .style import number

DASH = "–"


@dataclass(frozen=True)
class Cell:
    """Text, whether it is the best of its share, and small text behind it."""

    text: str
    best: bool = False
    more: str = ""


@dataclass(frozen=True)
class Column:
    """One column of the summary.

    Args:
        title: short. help: what is in it. of: text and small text. value: the number behind it;
            None where there is always one.
        marked: the best of a share is bold. least: the smallest is best.
    """

    title: str
    help: str
    of: Callable[[Outcome], tuple[str, str]]
    value: Callable[[Outcome], float | None] | None = None
    marked: bool = True
    least: bool = False


def columns(part: Part) -> list[Column]:
    """The columns of a part's summary; what was measured for no setting is left out."""
    outcomes = part.outcomes
    size, unit = flop_unit([o.prefill_flops for o in outcomes if o.prefill_flops])

    def plain(value: float | None, digits: int = 3, scale: float = 1.0) -> tuple[str, str]:
        if value is None:
            return DASH, ""
        whole = scale == 1 and value == round(value)  # a count, not a measurement
        return number(value / scale, digits, bare=whole), ""

    every = [
        Column(
            part.headline,
            "headline score with its 95 % interval (bootstrap over videos)",
            lambda o: (three_digits(o.score), _interval(o.low, o.high)),
            lambda o: o.score,
        ),
        Column(
            "of full",
            "share of the uncompressed score",
            lambda o: (DASH if o.relative is None else f"{100 * o.relative:.1f} %", ""),
            lambda o: o.relative,
        ),
        Column(
            "change",
            "difference to the uncompressed run over the same questions, its 95 % interval, and "
            "p that there is none",
            _change,
            lambda o: None if o.is_full else o.difference,
            marked=False,
        ),
        Column(
            "tokens",
            "video tokens that the LLM keeps",
            lambda o: plain(o.tokens_kept),
            lambda o: o.tokens_kept,
            least=True,
        ),
        Column(
            f"prefill {unit}",
            "FLOPs of an answer's prefill, predicted from the tokens of every layer",
            lambda o: plain(o.prefill_flops, 3, size),
            lambda o: o.prefill_flops,
            least=True,
        ),
        Column(
            "seconds",
            "seconds spent an answer, all stages; questions about a clip share reading it",
            lambda o: plain(o.total_seconds),
            lambda o: o.total_seconds,
            least=True,
        ),
        Column(
            "KV MB",
            "KV cache of the video tokens, 10⁶ bytes",
            lambda o: plain(o.kv_kept_mb),
            lambda o: o.kv_kept_mb,
            least=True,
        ),
    ]
    found = [c for c in every if c.value and any(c.value(o) is not None for o in outcomes)]
    return [
        *found,
        Column("unread", "answers that could not be read", lambda o: (str(o.parse_failures), "")),
        Column("failed", "videos without any answer", lambda o: (str(o.failed_videos), "")),
    ]


def table(part: Part) -> tuple[list[Column], list[tuple[Outcome, list[Cell]]]]:
    """Columns and rows of a part's summary; by share, largest first."""
    heads = columns(part)
    best = [
        best_of(part.outcomes, column.value, least=column.least)
        if column.value and column.marked
        else set()
        for column in heads
    ]
    order = sorted(part.outcomes, key=lambda o: (not o.is_full, -o.share))
    rows = []
    for outcome in order:
        cells = []
        for column, names in zip(heads, best, strict=True):
            text, more = column.of(outcome)
            cells.append(Cell(text, outcome.label in names, more))
        rows.append((outcome, cells))
    return heads, rows


def markdown(found: Sequence[Section]) -> str:
    """All summaries as Markdown."""
    parts = []
    for section in found:
        for part in section.parts:
            heads, rows = table(part)
            title = section.task + (f" · {part.name}" if part.name else "")
            lines = [f"## {_text(title)}", "", about(part), ""]
            lines += [f"> {_text(note)}" for note in part.notes] + [""] * bool(part.notes)
            names = ["setting", *(_text(column.title) for column in heads)]
            texts = [[_text(name_of(outcome)), *map(_mark, cells)] for outcome, cells in rows]
            lines += markdown_table(names, texts, numbers=True)
            said = "; ".join(f"{_text(c.title)}: {c.help}" for c in heads)
            lines += ["", f"{said}. **Bold**: the best at its share of tokens.", ""]
            parts.append("\n".join(lines))
    return "\n".join(parts)


def about(part: Part) -> str:
    """The configuration of a part in one line."""
    return ", ".join(f"{_text(name)} {_text(value)}" for name, value in facts(part))


def facts(part: Part) -> list[tuple[str, str]]:
    """What everybody wants to know of a run, by name."""
    config = part.config
    names = ("model", "recipe", "split", "frames", "fps", "tokens", "dtype", "device", "seed")
    found = [(n, shown(config[n])) for n in names if config.get(n) not in (None, "")]
    questions = max((o.answers for o in part.outcomes), default=0)
    videos = len({item.vid for run in part.runs for item in run.items.values()})
    return [*found, ("questions", str(questions)), *([("videos", str(videos))] if videos else [])]


def write_csv(found: Sequence[Section]) -> str:
    """A row a setting with all its numbers as they are in the results."""
    return csv_text(
        [
            _row(section.task, part, outcome)
            for section in found
            for part in section.parts
            for outcome in part.outcomes
        ]
    )


def _row(task: str, part: Part, o: Outcome) -> dict[str, Any]:
    config = part.config
    row: dict[str, Any] = {
        "task": task,
        "part": part.name,
        **{k: config.get(k) for k in ("model", "recipe", "split", "frames", "fps", "seed")},
        "setting": o.label,
        "method": o.method,
        "keep": o.keep,
        "headline": part.headline,
        "score": o.score,
        "low": o.low,
        "high": o.high,
        "relative": o.relative,
        "difference": o.difference,
        "difference_low": o.change_low,
        "difference_high": o.change_high,
        "p": o.p,
        "answers": o.answers,
        "parse_failures": o.parse_failures,
        "failed_videos": o.failed_videos,
        "frames_seen": o.frames,
        "tokens_full": o.tokens_full,
        "tokens_kept": o.tokens_kept,
        "kv_full_mb": o.kv_full_mb,
        "kv_kept_mb": o.kv_kept_mb,
        "peak_mb": o.peak_mb,
        "seconds": o.total_seconds,
    }
    row |= {f"seconds.{stage}": value for stage, value in o.seconds.items()}
    row |= {f"flops.{stage}": value for stage, value in o.flops.items()}
    row |= {f"score.{name}": value for name, value in o.scores.items()}
    return row | {f"official.{name}": value for name, value in o.official.items()}


def score_tables(part: Part) -> list[tuple[str, list[str]]]:
    """Names of all scores by table: plain ones under "", the parts of a score under its name.

    What `group_table` shows is left out.
    """
    shown_ones = {
        f"{part.headline}/{group}/{name}"
        for outcome in part.outcomes
        for group, parts in outcome.groups.items()
        for name in parts
    }
    found: dict[str, list[str]] = {"": []}
    for name in dict.fromkeys(n for o in part.outcomes for n in o.scores):
        if name not in shown_ones:
            whole = name.partition("/")[0] if "/" in name else ""
            found.setdefault(whole, []).append(name)
    return [(whole, names) for whole, names in found.items() if names]


def score_rows(part: Part, names: Sequence[str]) -> list[tuple[Outcome, list[Cell]]]:
    """These scores of every setting, official ones behind."""
    rows = []
    for outcome in part.outcomes:
        cells = []
        for name in names:
            ours, theirs = outcome.scores.get(name), outcome.official.get(name)
            differs = name in outcome.official and theirs != ours
            official = f"official {three_digits(theirs)}" if differs else ""
            cells.append(Cell(three_digits(ours), False, official))
        rows.append((outcome, cells))
    return rows


def group_table(part: Part, group: str) -> tuple[list[str], list[tuple[Outcome, list[Cell]]]]:
    """The headline of every setting in every category of a group."""
    every = [o.groups.get(group, {}) for o in part.outcomes]
    names = list(dict.fromkeys(name for one in every for name in one))
    rows = [
        (o, [Cell(three_digits(one[n].value if n in one else None)) for n in names])
        for o, one in zip(part.outcomes, every, strict=True)
        if one
    ]
    return names, rows


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"[{low:.3f}, {high:.3f}]".replace("-", "−")


def _change(outcome: Outcome) -> tuple[str, str]:
    if outcome.difference is None or outcome.is_full:
        return DASH, ""
    sign = "+" if outcome.difference > 0 else ""
    more = _interval(outcome.change_low, outcome.change_high)
    if outcome.p is not None:
        chance = "p < 0.001" if outcome.p < 0.001 else f"p = {outcome.p:.3f}"
        more = f"{more} {chance}".strip()
    return f"{sign}{outcome.difference:.3f}".replace("-", "−"), more


def _mark(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} {cell.more}".strip()


def _text(text: str) -> str:
    """Text that a Markdown table cell holds on one line."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
