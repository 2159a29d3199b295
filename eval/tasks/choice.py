"""What all multiple-choice benchmarks share: options and letters, prompts, marks, scores.

An answer is marked twice: by the letter that was generated (`scores.letters.read_letter`), and by
the letter with the highest log-probability as the answer's first token. Neither guesses: without a
letter, and where the best letters are equally probable, an answer is wrong and counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError
from vidllm.errors.schema import Nullable, String

from ..scores.choices import (
    Marked,
    accuracy,
    accuracy_by,
    choice_scores,
    mark,
    mark_log_probabilities,
    task_mean,
)
from ..scores.common import Scores, average, same_length
from ..scores.letters import read_letter
from . import files
from .base import Item, Response, Task

#: The last line of most prompts (lmms-eval's, which most papers use).
TAIL = "Answer with the option's letter from the given choices directly."


class MultipleChoice(Task):
    """Base of the benchmarks whose questions have options; a subclass makes the items.

    The truth of an item is its right letter, or None where it is not public: such items are asked,
    read and submitted, not scored.

    Attributes:
        script: the benchmark's name in `scores.choices.SCRIPTS`, "" where the official script is
            not known to do anything else than the default.
        mean_over: the group whose members all weigh the same in the headline, "" for none;
            intervals of the headline are over these groups too.
        mean_count: how many members there must be; the mean of fewer is not the benchmark's.
        notes: what to know about the scores of a split.
    """

    truth = Nullable(String(longest=1))
    family = "choice"
    headline: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 16
    script: ClassVar[str] = ""
    mean_over: ClassVar[str] = ""
    mean_count: ClassVar[int] = 0
    notes: ClassVar[Mapping[str, str]] = {}

    def read(self, item: Item, response: Response) -> str | None:
        """The letter that was generated; None for none or several."""
        if response.error is not None:
            return None
        return read_letter(response.text, "".join(item.letters), item.choices)

    def value(self, item: Item, response: Response) -> float | None:
        """1 where the generated letter is right, else 0; None where the truth is not public."""
        return None if item.truth is None else float(self.read(item, response) == item.truth)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """Accuracies, how far both agree, and both by every group of the items.

        - `accuracy`: by the generated letter; `accuracy_logprob`: by the most probable one, None
          where no answer has log-probabilities.
        - `task_mean`, `task_mean_logprob` where the benchmark has them: the plain mean over
          `mean_over`; None where some of its members are missing (a limited run).
        - `parse_failures`, `logprob_failures`: shares of answers without a letter.
        - `agreement`: share of answers where both name the same letter.
        - `accuracy/GROUP/NAME`, `accuracy_logprob/GROUP/NAME`.
        - official only: `left_out`, the share of answers that the script leaves out, if any.

        Raises:
            InputError: not one response an item.
        """
        same_length(items=items, responses=responses)
        pairs = list(zip(items, responses, strict=True))
        known = [(item, response) for item, response in pairs if item.truth is not None]
        asked = [item for item, _ in known]
        truth = [item.truth for item in asked]
        said = mark(
            [None if response.error is not None else response.text for _, response in known],
            truth,
            options=[item.choices for item in asked],
            official=official and bool(self.script),
            benchmark=self.script,
        )
        rows = [_row(item, response) for item, response in known]
        measured = any(row is not None for row in rows)
        likely = mark_log_probabilities(rows, truth) if measured else None
        found: Scores = {"accuracy": accuracy(said), "accuracy_logprob": None}
        if likely is not None:
            found["accuracy_logprob"] = accuracy(likely)
        if self.mean_over:
            found["task_mean"] = self._mean(said, asked)
            found["task_mean_logprob"] = None if likely is None else self._mean(likely, asked)
        unread = [not answer.parsed for answer in said] if said else self._unread(pairs)
        found["parse_failures"] = average(unread)
        found["logprob_failures"] = None
        found["agreement"] = None
        if likely is not None:
            found["logprob_failures"] = choice_scores(likely)["parse_failures"]
            both = zip(said, likely, strict=True)
            found["agreement"] = average([a.parsed and a.choice == b.choice for a, b in both])
        if official and (out := choice_scores(said)["left_out"]):
            found["left_out"] = out
        for name, marked in (("accuracy", said), ("accuracy_logprob", likely)):
            found |= {} if marked is None else _by_groups(name, marked, asked)
        return found

    def samples(
        self, items: Sequence[Item], responses: Sequence[Response]
    ) -> list[tuple[str, float]]:
        """(vid, value) pairs whose plain mean is the headline, for intervals and paired tests.

        Where members of a group weigh the same, each answer is weighed by its member's size.
        """
        same_length(items=items, responses=responses)
        pairs = [(i, r) for i, r in zip(items, responses, strict=True) if i.truth is not None]
        members = [item.groups.get(self.mean_over, "") for item, _ in pairs]
        size = Counter(members)
        weight = [len(pairs) / len(size) / size[member] for member in members]
        said = [float(self.read(item, response) == item.truth) for item, response in pairs]
        return [(i.vid, w * v) for (i, _), w, v in zip(pairs, weight, said, strict=True)]

    def submission(self, items: Sequence[Item], responses: Sequence[Response]) -> Any | None:
        """What the benchmark's server wants, JSON; None where it has none."""
        return None

    def _unread(self, pairs: Sequence[tuple[Item, Response]]) -> list[bool]:
        return [self.read(item, response) is None for item, response in pairs]

    def _mean(self, marked: Sequence[Marked], items: Sequence[Item]) -> float | None:
        members = [item.groups[self.mean_over] for item in items]
        if len(set(members)) != self.mean_count:
            return None
        return task_mean(marked, members, count=self.mean_count)


def lettered(choices: Sequence[str], form: str = "{}. {}") -> str:
    """Options as lines: "A. first", …; `form` takes the letter and the text."""
    return "\n".join(form.format(*pair) for pair in _numbered(choices))


def question_text(
    question: str, choices: Sequence[str], tail: str = TAIL, form: str = "{}. {}"
) -> str:
    """The usual prompt: the question, its options with letters, the tail, a line each."""
    return "\n".join((question.strip(), lettered(choices, form), tail))


def options(row: Any, name: str, *, where: str, count: int | None = None) -> list[str]:
    """The field `name` of a record as texts of options, two at least, `count` where it is given.

    Raises:
        InputError: see `files.field`; not so many, more than letters, or one that is no text.
    """
    found = files.field(row, name, list, where=where)
    numbers = (int, float)
    texts = [str(text) if isinstance(text, numbers) else text for text in found]
    right = len(texts) == count if count else 2 <= len(texts) <= len(string.ascii_uppercase)
    if not right or not all(isinstance(text, str) and text.strip() for text in texts):
        wanted = count or "at least 2"
        raise InputError(f"{where}: the field '{name}' must hold {wanted} texts, not {texts!r:.60}")
    return texts


def bare(texts: Sequence[str]) -> tuple[str, ...]:
    """Options without their own letter: "B. Two dogs" or "(B) Two dogs" is "Two dogs".

    Only the letter of its place is taken off, and only before ".", ":" or ")": "A man" stays.
    """
    return tuple(
        re.sub(rf"^\s*\(?{letter}[.:)]\s*", "", text, count=1).strip()
        for letter, text in _numbered(texts)
    )


def letter_at(place: int | str, count: int, where: str) -> str:
    """The letter of an option by its number from 0.

    Args:
        count: options of the question.
        where: the file, record and field, for the error.

    Raises:
        InputError: no number of an option.
    """
    try:
        number = int(place)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < count:
        raise InputError(f"{where} must be the number of an option, 0 to {count - 1}: {place!r}")
    return string.ascii_uppercase[number]


def letter_for(answer: str, choices: Sequence[str], where: str) -> str:
    """The letter of an option by its text; of equal options the first.

    Raises:
        InputError: not the text of an option.
    """
    texts = [choice.strip() for choice in choices]
    if answer.strip() not in texts:
        raise InputError(f"{where} is none of the options: {answer!r}; is the file the latest one?")
    return string.ascii_uppercase[texts.index(answer.strip())]


def letter_named(answer: str, count: int, where: str) -> str:
    """The letter of an option by itself, "B" or "(B)".

    Raises:
        InputError: not the letter of an option.
    """
    letter, letters = answer.strip(" ().").upper(), string.ascii_uppercase[:count]
    if len(letter) != 1 or letter not in letters:
        raise InputError(f"{where} must be a letter from A to {letters[-1]}, not {answer!r}")
    return letter


def video_folder(data: Path, name: str, *others: str) -> str:
    """Which of some folders of videos is there; `name` where none is.

    Below `videos` of the data folder, or below the data folder itself where that is not there.
    """
    top = data / "videos" if (data / "videos").is_dir() else data
    return next((some for some in (name, *others) if some and (top / some).is_dir()), name)


def with_hub(task: Task, hub: str) -> type[Task]:
    """The task with another data set on the hub, for benchmarks that have several there."""
    return type(type(task).__name__, (type(task),), {"hub": hub})


def unique(items: list[Item], where: str) -> list[Item]:
    """The items, when there are any and their ids differ.

    Raises:
        InputError: no item, or two with the same id.
    """
    if not items:
        raise InputError(f"{where}: the annotation file has no question")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InputError(f"{where}: two questions have the id {item.id!r}")
        seen.add(item.id)
    return items


def _numbered(texts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(string.ascii_uppercase[: len(texts)], texts, strict=True))


def _row(item: Item, response: Response) -> list[float] | None:
    """Log-probabilities of the options in order; None where one is unknown."""
    if response.error is not None or response.letters is None:
        return None
    row = [response.letters.get(letter) for letter in item.letters]
    return None if None in row else [float(p) for p in row if p is not None]


def _by_groups(name: str, marked: Sequence[Marked], items: Sequence[Item]) -> Scores:
    """`NAME/GROUP/MEMBER` of every group; items without the group are not in it."""
    found: Scores = {}
    for group in dict.fromkeys(group for item in items for group in item.groups):
        inside = [
            (m, i.groups[group]) for m, i in zip(marked, items, strict=True) if group in i.groups
        ]
        parts = accuracy_by([m for m, _ in inside], [member for _, member in inside])
        found |= {f"{name}/{group}/{member}": share for member, share in parts.items()}
    return found
