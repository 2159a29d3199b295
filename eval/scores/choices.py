"""Multiple choice: which answers are right, accuracy, and the means of MLVU and MVBench.

Sources: Video-MME (arXiv 2405.21075), MLVU (arXiv 2406.04264), LongVideoBench (arXiv 2407.15754),
EgoSchema (arXiv 2308.09126), MVBench (arXiv 2311.17005), NExT-QA (arXiv 2105.08276).
"""

from __future__ import annotations

import math
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidllm.errors import InputError

from .common import Scores, average, same_length
from .letters import first_capital, lone_capital, lone_letter, loose_letter, read_letter

#: Tasks whose unweighted mean is the benchmark's score.
MLVU_TASKS = 7
MVBENCH_TASKS = 20


@dataclass(frozen=True)
class Script:
    """How an official script differs from `mark`.

    Attributes:
        reader: of letters, one of `scores.letters`.
        letters: that it looks for; "" for those of the options.
        skips: a pattern that is taken out of an answer before.
        guesses: takes a random option where no letter can be read.
        drops_empty, drops_unread: leaves empty answers, or those without a letter, out of the
            denominator.
    """

    reader: Callable[[str, str, Sequence[str] | None], str | None] = read_letter
    letters: str = ""
    skips: str = ""
    guesses: bool = False
    drops_empty: bool = False
    drops_unread: bool = False


#: Benchmarks whose scripts are known to be wrong: Video-MME's own (eval_your_results.py), the
#: others as lmms-eval runs them.
SCRIPTS: Mapping[str, Script] = {
    "videomme": Script(first_capital, "ABCD", drops_unread=True),
    "longvideobench": Script(first_capital, "ABCDE", r"Best (?:answer|option):", guesses=True),
    "mvbench": Script(lone_letter, "ABCDE", drops_empty=True),
    "perceptiontest": Script(lone_capital, "ABCD"),
    "nextqa": Script(loose_letter, guesses=True),
    "egoschema": Script(loose_letter, guesses=True),
}


@dataclass(frozen=True)
class Marked:
    """One answer: the letter that was read, whether it is right, whether it counts.

    `parsed` is False where no letter could be read, also if a script then guessed one.
    """

    choice: str | None
    right: bool
    parsed: bool
    counts: bool = True


def mark(
    said: Sequence[str | None],
    truth: Sequence[str],
    *,
    letters: str = "ABCD",
    options: Sequence[Sequence[str]] | None = None,
    official: bool = False,
    benchmark: str = "",
    seed: int = 0,
) -> list[Marked]:
    """Read and mark generated answers. Without a letter an answer is wrong and counts.

    Args:
        said: answers; None where the run failed.
        truth: the right letters.
        letters: of the options, unless `options` are given.
        options: the texts of each question's options, which then have letters from A on.
        official: as the script of `benchmark` (see `SCRIPTS`; any other marks as the default):
            MVBench's leaves empty answers out, Video-MME's all without a letter; LongVideoBench's,
            NExT-QA's and EgoSchema's guess at random where they read none (here from `seed`); and
            each of them takes "A man …" for A.
        seed: of the guesses.

    Raises:
        InputError: lists of unequal length, a right letter that is no option, or `official`
            without a benchmark.
    """
    same_length(answers=said, truths=truth, **({} if options is None else {"options": options}))
    if official and not benchmark:
        raise InputError("the official marks depend on the benchmark: name it")
    script = SCRIPTS.get(benchmark, Script()) if official else Script()
    guess = random.Random(seed)
    marked = []
    for k, (text, right) in enumerate(zip(said, truth, strict=True)):
        texts = None if options is None else options[k]
        names = letters if texts is None else string.ascii_uppercase[: len(texts)]
        if len(right) != 1 or right not in names:
            raise InputError(f"question {k}: the right answer {right!r} is none of {names}")
        answer = re.sub(script.skips, "", text or "") if script.skips else text or ""
        choice = script.reader(answer, script.letters or names, texts)
        parsed = choice is not None
        if choice is None and script.guesses:
            choice = guess.choice(names)
        counts = not (script.drops_empty and not answer.strip())
        counts = counts and not (script.drops_unread and not parsed)
        marked.append(Marked(choice, choice == right, parsed, counts))
    return marked


def choose(log_probabilities: Sequence[float] | np.ndarray) -> int | None:
    """The number of the most probable option; None where the best are equal or one is NaN.

    Raises:
        InputError: no option.
    """
    values = np.asarray(log_probabilities, dtype=np.float64)
    if not len(values):
        raise InputError("a question without options cannot be answered")
    best = values == values.max()
    if np.isnan(values).any() or best.sum() != 1 or math.isinf(float(values.max())):
        return None
    return int(best.argmax())


def mark_log_probabilities(
    log_probabilities: Sequence[Sequence[float] | None], truth: Sequence[str]
) -> list[Marked]:
    """Mark the most probable options, which have letters from A on; None for a failed run.

    A tie for the best is wrong and counts as not parsed.

    Raises:
        InputError: lists of unequal length, or a right letter that is no option.
    """
    same_length(answers=log_probabilities, truths=truth)
    marked = []
    for k, (row, right) in enumerate(zip(log_probabilities, truth, strict=True)):
        best = None
        if row is not None:
            names = string.ascii_uppercase[: len(row)]
            if len(right) != 1 or right not in names:
                raise InputError(f"question {k}: the right answer {right!r} is none of {names}")
            best = choose(row)
        choice = None if best is None else string.ascii_uppercase[best]
        marked.append(Marked(choice, choice == right, choice is not None))
    return marked


def accuracy(marked: Sequence[Marked]) -> float | None:
    """The share of right answers of those that count (micro)."""
    return average([answer.right for answer in marked if answer.counts])


def choice_scores(marked: Sequence[Marked]) -> Scores:
    """Micro accuracy, and the shares of answers that were not parsed or left out."""
    return {
        "accuracy": accuracy(marked),
        "parse_failures": average([not answer.parsed for answer in marked]),
        "left_out": average([not answer.counts for answer in marked]),
    }


def accuracy_by(marked: Sequence[Marked], groups: Sequence[str]) -> Scores:
    """Accuracy of each group, in order of first appearance; None where no answer counts.

    Raises:
        InputError: not one group an answer.
    """
    same_length(answers=marked, groups=groups)
    found: dict[str, list[Marked]] = {}
    for answer, group in zip(marked, groups, strict=True):
        found.setdefault(group, []).append(answer)
    return {group: accuracy(answers) for group, answers in found.items()}


def task_mean(
    marked: Sequence[Marked], tasks: Sequence[str], *, count: int | None = None
) -> float | None:
    """The plain mean of the accuracies of the tasks: every task weighs the same.

    Args:
        tasks: of each answer.
        count: how many tasks there must be: `MLVU_TASKS` (M-Avg), `MVBENCH_TASKS`. The mean of
            fewer is not the benchmark's score; None asks for the mean of those that are there.

    Raises:
        InputError: not one task an answer, or not `count` tasks.
    """
    found = accuracy_by(marked, tasks)
    if count is not None and len(found) != count:
        raise InputError(f"the mean over tasks needs all {count} tasks, not {len(found)}: run all")
    return average([value for value in found.values() if value is not None])
