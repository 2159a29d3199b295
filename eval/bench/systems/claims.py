"""What the papers claim, as comparisons of arms, and whether each held here.

A claim about a video LLM compares two arms answer by answer; one about a system without an LLM
reads the CSV that `vidllm bench claim` wrote, or for TempMe `vidllm bench retrieval`.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vidllm.errors import InputError

from ...run.run_settings import FULL
from ..claims.claim_rows import COMPARABLE
from ..claims.retrieval_claim import findings
from ..methods.measured_scores import Measured
from .arms import START
from .table import Asked

HELD, FAILED, UNCLEAR, UNTOLD = "held", "did not hold", "not clear", "not yet run"


@dataclass(frozen=True)
class Claim:
    """A comparison of two arms at a share of the tokens.

    Attributes:
        says: what is claimed. better, worse: arms. keep: the share.
        by: "score", or "loss": how much of its own score with all tokens an arm loses, or "kept":
            `better` has at least `COMPARABLE` of the start's score, and there is no `worse`.
    """

    recipe: str
    says: str
    better: str
    worse: str = START
    keep: float = 0.125
    by: Literal["score", "loss", "kept"] = "score"


@dataclass(frozen=True)
class HeadClaim:
    """Two arms of a CSV of `vidllm bench claim`, by a measure; more is better.

    Attributes:
        of: so much of `worse`'s value is claimed to be reached.
    """

    recipe: str
    says: str
    measure: str
    better: str
    worse: str
    of: float = 1.0


CLAIMS = (
    Claim("storm", "pooled to an eighth it loses less with the temporal encoder than without",
          "storm", "storm-without", by="loss"),
    Claim("storm", "training with the pooling beats pooling at test time only", "storm", "plain"),
    Claim("storm", "training with the pooling beats pooling the start, to an eighth", "storm",
          "start-pool"),
    Claim("storm", "the same, to a twentieth", "storm", "start-pool", keep=0.05),
    Claim("aim", "a quarter of the tokens, then pruning, at small cost", "aim", keep=0.25,
          by="kept"),
    Claim("aim", "the same with equal shares of both stages, to an eighth", "aim-even",
          by="kept"),
    Claim("mustdrop", "comparable answers where nearly all tokens are gone", "mustdrop", keep=0.05,
          by="kept"),
    Claim("mustdrop", "all stages together beat the merge in the tower alone", "mustdrop",
          "mustdrop-window", keep=0.05),
    Claim("mustdrop", "all stages together beat the filter in the LLM alone", "mustdrop",
          "mustdrop-filter", keep=0.05),
    Claim("lita", "relative time tokens, which the start speaks, beat seconds as text, which it "
          "must learn", "lita", "lita-text"),
    Claim("lita", "SlowFast tokens beat evenly spread ones", "lita", "lita-uniform"),
    Claim("lita", "training with SlowFast tokens beats taking them at test time only, to an eighth",
          "lita", "start-lita"),
    Claim("lita", "the same, to a twentieth", "lita", "start-lita", keep=0.05),
    Claim("vtg-llm", "slots beat sampled frames", "vtg-llm-relative", "vtg-llm-relative-sampling"),
    Claim("vtg-llm", "the same, with times digit by digit", "vtg-llm", "vtg-llm-sampling"),
    Claim("vtg-llm", "slots beat cross-attention", "vtg-llm-relative",
          "vtg-llm-relative-attention"),
    Claim("vtg-llm", "knowing frame and second helps", "vtg-llm-relative",
          "vtg-llm-relative-untimed"),
    Claim("timesuite", "adaptive positions help", "timesuite-relative",
          "timesuite-relative-plain", keep=0.25),
    Claim("timesuite", "shuffle beats pooling", "timesuite-relative",
          "timesuite-relative-pool", keep=0.25),
    Claim("timesuite", "grounded captions help grounding", "timesuite-relative",
          "timesuite-relative-uncaptioned", keep=0.25),
    Claim("pyra", "modulated merging beats ToMe without training", "pyra", "start-tome", keep=0.25),
    Claim("mrt5", "a trained gate costs less than pooling", "mrt5", "storm"),
    Claim("flextok", "one model serves every budget", "flextok", keep=0.05, by="kept"),
)  # fmt: skip
_LONG = "mIoU long, chosen frames"
HEAD_CLAIMS = (
    HeadClaim("nasva", "the head aligns better than similarity alone", "R@1 narrated", "nasva",
              "similarity"),
    HeadClaim("nasva", "as a selector it beats frames that are spread evenly", _LONG, "nasva",
              "even"),
    HeadClaim("tem-adapter", "the temporal aligner helps", "accuracy", "both", "semantic"),
    HeadClaim("tem-adapter", "the semantic aligner helps", "accuracy", "both", "temporal"),
    HeadClaim("dist", "order needs the side network", "order", "dist", "frozen"),
    HeadClaim("squeezetime", "faster than a tower of single frames", "clips a second",
              "squeezetime", "framewise"),
    HeadClaim("squeezetime", "at comparable accuracy", "accuracy", "squeezetime", "framewise",
              of=COMPARABLE),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held.

    Attributes:
        evidence: numbers in a line; "" where something is missing. waits: for which arms.
    """

    recipe: str
    says: str
    verdict: str
    evidence: str = ""
    waits: tuple[str, ...] = ()


def verdicts(asked: Sequence[Asked], folder: Path | None, score: str = "mIoU") -> list[Verdict]:
    """All claims in order.

    Args:
        folder: of the CSVs `claim-RECIPE.csv` and `retrieval.csv`; None for none.
    """
    arms: dict[str, list[Asked]] = {}
    for one in asked:
        arms.setdefault(one.entry.arm.name, []).append(one)
    found = [_verdict(claim, arms, score) for claim in CLAIMS]
    found += [_head_verdict(claim, _rows(folder, f"claim-{claim.recipe}.csv"))
              for claim in HEAD_CLAIMS]  # fmt: skip
    return [*found, _retrieval(_rows(folder, "retrieval.csv"))]


def _verdict(claim: Claim, arms: Mapping[str, list[Asked]], score: str) -> Verdict:
    wanted = [claim.better] if claim.by == "kept" else [claim.better, claim.worse]
    waits = tuple(name for name in wanted if not _at(arms.get(name, ()), claim.keep))
    start = next(iter(arms.get(START, ())), None)
    if waits or start is None:
        return Verdict(claim.recipe, claim.says, UNTOLD, waits=waits)
    seed = int(start.results["seed"])
    told = []
    for one in _at(arms[claim.better], claim.keep):
        if claim.by == "kept":
            full = start.scores[FULL][score]
            bar = replace(full, values={k: COMPARABLE * v for k, v in full.values.items()})
            pair = (one.scores[_label(one, claim.keep)][score], bar)
        else:
            others = _at(arms[claim.worse], claim.keep)
            seeds = {other.entry.seed: other for other in others}
            other = seeds.get(one.entry.seed, others[0])
            mine, theirs = (_measured(side, claim, score) for side in (one, other))
            if mine is None or theirs is None:
                continue
            pair = (mine, theirs)
        if (test := pair[0].versus(pair[1], seed)) is not None:
            told.append(test)
    if not told:
        return Verdict(claim.recipe, claim.says, UNTOLD)
    parts = [f"{t['difference']:+.3f} ({t['low']:+.3f} to {t['high']:+.3f})" for t in told]
    against = {
        "score": f"{claim.better} against {claim.worse}",
        "loss": f"what {claim.better} keeps more than {claim.worse}",
        "kept": f"{claim.better} against {COMPARABLE:.0%} of the start",
    }[claim.by]
    evidence = f"{against} at {100 * claim.keep:g} %: {score} {', '.join(parts)}"
    return Verdict(claim.recipe, claim.says, _direction(told), evidence)


def _direction(told: Sequence[Mapping[str, Any]]) -> str:
    """Held or not only where the intervals of all seeds say so."""
    if all(test["low"] > 0 for test in told):
        return HELD
    return FAILED if all(test["high"] < 0 for test in told) else UNCLEAR


def _label(one: Asked, keep: float) -> str:
    return next((k for k in one.scores if k != FULL and float(k.rpartition("@")[2]) == keep), "")


def _at(some: Sequence[Asked], keep: float) -> list[Asked]:
    return [one for one in some if _label(one, keep)]


def _measured(one: Asked, claim: Claim, score: str) -> Measured | None:
    found = one.scores[_label(one, claim.keep)][score]
    if claim.by == "score":
        return found
    if FULL not in one.scores:
        return None
    full = one.scores[FULL][score]
    values = {k: v - full.values[k] for k, v in found.values.items() if k in full.values}
    return replace(found, values=values)


def _rows(folder: Path | None, name: str) -> list[dict[str, str]]:
    file = None if folder is None else folder / name
    if file is None or not file.is_file():
        return []
    try:
        return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    except UnicodeDecodeError:
        raise InputError(f"{file} is no CSV: make it again with vidllm bench claim") from None


def _head_verdict(claim: HeadClaim, rows: Sequence[Mapping[str, str]]) -> Verdict:
    """Held where every training of one is above every one of the other, by their intervals.

    Of the other counts the share that the claim names.
    """
    arms, sides = (claim.better, claim.worse), []
    for arm in arms:
        mine = [r for r in rows if r.get("arm") == arm and r.get("measure") == claim.measure]
        sides.append([_interval(row) for row in mine])
    waits = tuple(arm for arm, side in zip(arms, sides, strict=True) if not side)
    if waits:
        return Verdict(claim.recipe, claim.says, UNTOLD, waits=waits)
    one, two = sides
    above = min(low for _, low, _ in one) > claim.of * max(high for _, _, high in two)
    below = max(high for _, _, high in one) < claim.of * min(low for _, low, _ in two)
    share = "" if claim.of == 1 else f"{claim.of:.0%} of "
    told = f" against {share}".join(
        f"{name} {statistics.mean(value for value, _, _ in side):.3g} "
        f"({min(low for _, low, _ in side):.3g}–{max(high for _, _, high in side):.3g}, "
        f"{len(side)} seed{'s' * (len(side) > 1)})"
        for name, side in zip(arms, sides, strict=True)
    )
    sizes = {row.get("size", "small") for row in rows} - {"small"}
    toy = f"; at size {sizes.pop()}, which means nothing" if sizes else ""
    steps = sorted({int(float(row["steps"])) for row in rows if row.get("steps")} - {0})
    counted = f"; {', '.join(map(str, steps))} steps" if steps else ""
    verdict = HELD if above else FAILED if below else UNCLEAR
    return Verdict(claim.recipe, claim.says, verdict, f"{claim.measure}: {told}{counted}{toy}")


def _interval(row: Mapping[str, str]) -> tuple[float, float, float]:
    """A value with its interval over clips; a fact, such as a speed, has none but itself."""
    value = float(row["value"])
    return value, float(row.get("low") or value), float(row.get("high") or value)


def _retrieval(rows: Sequence[Mapping[str, str]]) -> Verdict:
    says = "retrieval is kept at half the tower's FLOPs and a twentieth of the tokens"
    if not rows:
        return Verdict("tempme", says, UNTOLD)
    found = findings([{k: float(v) if k in _NUMBERS and v else v for k, v in row.items()}
                      for row in rows])  # fmt: skip
    held = {one.held for one in found}
    word = UNTOLD if not held else UNCLEAR
    if len(held) == 1:
        word = {True: HELD, False: FAILED, None: UNCLEAR}[held.pop()]
    return Verdict("tempme", says, word, "; ".join(one.told for one in found))


_NUMBERS = (
    "R@1", "R-Sum", "V2T R-Sum", "gflops_share", "tokens_share", "speed_up", "to_lora",
    "to_lora_low", "to_lora_high",
)  # fmt: skip
