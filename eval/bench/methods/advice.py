"""What a table of methods advises: the best at a share, what is as good, and how sure that is.

"Clearly" means Holm's p below 0.05: paired by video, corrected over all methods of the share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.bounds import check
from vidllm.errors.registry import did_you_mean

from .method_table import FREE, MET, RANDOM, SPELT, MethodTable, read_table

#: From this p on a difference may be chance.
LEVEL = 0.05
#: A share that was not measured is answered by the nearest one, if that is no further from it.
NEAR = 0.1
#: So many methods that are as good are named for people.
MOST_NAMES = 8
_MAKE = "make one with vidllm bench methods, and give --table FILE"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Advice:
    """What to take for one purpose at one share.

    Args:
        purpose: "grounding", "qa", …; score: that decides. keep: the share; asked: the share that
            it stands for, the same or near to it.
        full: the uncompressed row.
        best: the best method without training; alike: the others of its kind that are not
            clearly worse, best first; is_tested: whether there are others, all tested against it.
        plain: the plainest of `random` and `uniform` that the best does not clearly beat, or None.
        inside: the best of those that spare the vision tower work, as merging inside it does;
            met: the best of those that the model met in training. None where there is none.
        random: the row of `random`, or None.
    """

    purpose: str
    score: str
    keep: float
    full: Row
    best: Row
    alike: tuple[Row, ...]
    is_tested: bool
    plain: str | None
    inside: Row | None
    met: Row | None
    random: Row | None
    asked: float

    @property
    def quickest(self) -> Row:
        """The quickest of the best and those alike, by the seconds of an answer."""
        timed = [row for row in (self.best, *self.alike) if row["total_s"] is not None]
        return min(timed, key=lambda row: float(row["total_s"]), default=self.best)

    def lines(self) -> list[str]:
        """For people; the first line is the head of the others."""
        best, name = self.best, self.score
        taken, whole = best["compressor"], self.full
        tokens = f"{_count(best['tokens_kept'])} of {_count(best['tokens_full'])} tokens"
        share = best[f"{name}_share"]
        told = "" if share is None else f", {100 * share:.0f} % of the uncompressed"
        spelt = SPELT.get(name, name)
        found = [
            f"{self.purpose}, keep {100 * self.keep:g} % ({spelt}; {tokens}; uncompressed "
            f"{self._value(whole)})",
        ]
        if self.asked != self.keep:
            found.append(
                f"keep {100 * self.asked:g} % was not measured: this is for the nearest share"
            )
        found += [
            f"take {taken}: {self._value(best)}{told}{self._against_full()}",
        ]
        if self.alike:
            names = ", ".join(str(row["compressor"]) for row in self.alike[:MOST_NAMES])
            more = len(self.alike) - MOST_NAMES
            names += f" and {more} other{'s' * (more > 1)}" if more > 0 else ""
            found.append(f"not clearly worse than {taken}: {names}")
            quick = self.quickest
            if quick["total_s"] is not None:
                found.append(
                    f"the quickest of these: {quick['compressor']}, "
                    f"{_seconds(quick['total_s'])} an answer (uncompressed "
                    f"{_seconds(whole['total_s'])})"
                )
        elif self.is_tested:
            found.append(f"every other method without training is clearly worse than {taken}")
        if self.plain is not None:
            found.append(f"no method is clearly better than {self.plain}")
        elif self.random is not None and best[f"{name}_vs_random"] is not None:
            change = _change(best, name, "random")
            found.append(f"clearly better than random, {self._value(self.random)}, by {change}")
        if (row := self.inside) is not None:
            work = ""
            if row["flops_vision"] is not None:
                less = 100 * row["flops_vision"] / whole["flops_vision"]
                work = f" for {less:.0f} % of the FLOPs"
            found.append(
                f"tower-bound: {row['compressor']}, {self._value(row)}; the tower takes "
                f"{_seconds(row['call_vision_s'])} a clip{work}, uncompressed "
                f"{_seconds(whole['call_vision_s'])}"
            )
        else:
            found.append("tower-bound: no method here spares the vision tower work")
        if (row := self.met) is not None:
            found.append(f"met in training, ranked apart: {row['compressor']}, {self._value(row)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.purpose,
            "score": self.score,
            "keep": self.keep,
            "asked": self.asked,
            "uncompressed": self._entry(self.full),
            "take": self._entry(self.best),
            "not_clearly_worse": [self._entry(row) for row in self.alike],
            "quickest": self.quickest["compressor"],
            "no_method_clearly_better_than": self.plain,
            "tower_bound": None if self.inside is None else self._entry(self.inside),
            "met_in_training": None if self.met is None else self._entry(self.met),
            "random": None if self.random is None else self._entry(self.random),
            "lines": self.lines(),
        }

    def _entry(self, row: Row) -> dict[str, Any]:
        name = self.score
        found = {"compressor": row["compressor"], "value": row[name]}
        found |= {
            "low": row[f"{name}_low"],
            "high": row[f"{name}_high"],
            "share": row[f"{name}_share"],
        }
        found |= {f"vs_{k}_holm": row[f"{name}_vs_{k}_holm"] for k in ("full", "random", "best")}
        seconds = ("vision_s", "select_s", "prefill_s", "decode_s", "total_s", "call_vision_s")
        return found | {k: row[k] for k in ("tokens_kept", *seconds)}

    def _value(self, row: Row) -> str:
        low, high = row[f"{self.score}_low"], row[f"{self.score}_high"]
        value = "–" if row[self.score] is None else f"{row[self.score]:.3f}"
        return value if low is None else f"{value} ({low:.3f}–{high:.3f})"

    def _against_full(self) -> str:
        p = _holm(self.best, self.score, "full")
        if p is None:
            return ""
        if p >= LEVEL:
            return ", not clearly different from it"
        return f", clearly {'below' if self.best[f'{self.score}_vs_full'] < 0 else 'above'} it"


def advise(table: MethodTable, purpose: str, keep: float) -> Advice:
    """What a table advises; at the nearest share where that is within a tenth of `keep`.

    Raises:
        InputError: a purpose or a share that was not measured; the message has what was.
    """
    asked, purpose, keep = float(keep), purpose_like(table, purpose), _share(table, keep)
    score, rows = table.scores[purpose][0], table.at(keep)
    ranked = _ranked(rows, score, FREE)
    if not ranked:
        raise InputError(f"the table has no method without training at keep {keep:g}: {_MAKE}")
    best = ranked[0]
    # What was not tested against the best, as a score that is no mean, is not said to be alike.
    alike = [row for row in ranked[1:] if (_holm(row, score, "best") or 0.0) >= LEVEL]
    is_tested = None not in [_holm(row, score, "best") for row in ranked[1:]] and len(ranked) > 1
    random = next((row for row in rows if row["compressor"] == RANDOM), None)
    plain = None
    if random is not None and (p := _holm(best, score, "random")) is not None and p >= LEVEL:
        plain = RANDOM
    elif any(row["compressor"] == "uniform" for row in (best, *alike)):
        plain = "uniform"
    inside = [row for row in ranked if _spares_tower(row, table.full)]
    met = _ranked(rows, score, MET)
    return Advice(
        purpose, score, keep, table.full, best, tuple(alike), is_tested, plain,
        inside[0] if inside else None, met[0] if met else None, random,
        keep if abs(asked - keep) < 1e-9 else asked,
    )  # fmt: skip


def all_advice(
    table: MethodTable, purpose: str | None = None, keep: float | None = None
) -> list[Advice]:
    """For one purpose or all, at one share or all at which there is something to rank.

    Raises:
        InputError: as `advise`.
    """
    purposes = list(table.scores) if purpose is None else [purpose_like(table, purpose)]
    found = []
    for one in purposes:
        score = table.scores[one][0]
        ranked = [k for k in table.keeps if _ranked(table.at(k), score, FREE)]
        found += [advise(table, one, share) for share in (ranked if keep is None else [keep])]
    return found


def purpose_like(table: MethodTable, purpose: str) -> str:
    """The purpose of that name, whatever its case. Raises InputError with what there is."""
    found = next((name for name in table.scores if name.lower() == purpose.strip().lower()), None)
    if found is None:
        raise InputError(
            f"--task {purpose!r} was not measured: {did_you_mean(purpose.lower(), table.scores)}"
        )
    return found


def caveats(table: MethodTable) -> list[str]:
    """What to know of all advice of a table, one line each."""
    setting = table.setting
    videos = table.full["videos"]
    about = f"{setting['task']}"
    about += "".join(f", {k} {v}" for k, v in _told(setting).items())
    found = [f"measured with {_model(table)} on {about}: {_count(videos)} clips"]
    found.append(
        "synthetic videos and a small model: on real footage, or with another model, the order of "
        "the methods may differ"
        if setting.get("made")
        else "with another model or other videos the order of the methods may differ"
    )
    found.append(
        "brackets: 95 % interval, resampled by video; clearly: Holm's p below 0.05, paired by video"
    )
    return found


def tables_in(folder: Path) -> dict[str, Path]:
    """Tables by the name of the model; that of the shipped model, methods.csv, first."""
    found = sorted(folder.glob("methods*.csv"), key=lambda file: (file.name != "methods.csv", file))
    return {_model(read_table(file)): file for file in found}


def find_table(model: str | None, file: Path | None, folder: Path | None = None) -> MethodTable:
    """The table of a file, or that of a model in a folder.

    Args:
        folder: of `methods*.csv`; None for those that ship with the package.

    Raises:
        InputError: there is none; the message has those that are there.
    """
    if file is not None:
        table = read_table(file.expanduser())
        if model is not None and Path(model).name != _model(table):
            raise InputError(f"--table {file} is of {_model(table)}, not of {model!r}")
        return table
    there = tables_in(Path(str(files("vidllm.eval.measured"))) if folder is None else folder)
    if not there:
        raise InputError(f"no table ships with this install: {_MAKE}")
    name = next(iter(there)) if model is None else Path(model).name
    if name not in there:
        raise InputError(
            f"no table of {model!r} ships: {did_you_mean(name, there)} Otherwise {_MAKE}"
        )
    return read_table(there[name])


def _ranked(rows: Sequence[Row], score: str, kind: str) -> list[Row]:
    known = [row for row in rows if row["kind"] == kind and row[score] is not None]
    return sorted(known, key=lambda row: -float(row[score]))


def _spares_tower(row: Row, full: Row) -> bool:
    """Whether the vision tower does less, by its FLOPs, or seconds where these are not known."""
    for name in ("flops_vision", "call_vision_s"):
        if row[name] is not None and full[name] is not None:
            return bool(str(row["stage"]).startswith("vision") and row[name] < 0.98 * full[name])
    return False


def _share(table: MethodTable, keep: float) -> float:
    check("keep", keep, "--keep")
    near = min(table.keeps, key=lambda k: abs(k - keep), default=None)
    if near is None or abs(near - keep) > NEAR * keep:
        known = ", ".join(f"{k:g}" for k in table.keeps)
        told = "none was" if near is None else f"{known} were; the nearest is {near:g}"
        raise InputError(f"--keep {keep:g} was not measured: {told}")
    return near


def _told(setting: Mapping[str, Any]) -> dict[str, Any]:
    found = {**setting.get("options", {}), "split": setting.get("split")}
    found |= {"seed": setting.get("seed"), "frames": setting.get("frames")}
    return {key: value for key, value in found.items() if value is not None}


def _model(table: MethodTable) -> str:
    return Path(str(table.setting["model"])).name


def _holm(row: Row, score: str, reference: str) -> float | None:
    found: float | None = row[f"{score}_vs_{reference}_holm"]
    return found


def _change(row: Row, score: str, reference: str) -> str:
    place = f"{score}_vs_{reference}"
    return f"{row[place]:+.3f} ({row[f'{place}_low']:+.3f} to {row[f'{place}_high']:+.3f})"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g} s"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
