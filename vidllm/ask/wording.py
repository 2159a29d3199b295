"""What single tokens of an answer say: how likely a letter was, and how sure a time is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.errors import InputError
from vidllm.timecode import Found, Span, TimeCode

#: Letters of a question's options; None for a question without.
Letters = tuple[str, ...] | None
#: Options of a question at most, and signs of what names one.
LETTERS, _LETTER = 256, 64
#: A time in digit tokens that may go on with the next token.
_HALF = re.compile(r"<TIME_\w{1,9}>\Z")


def letters_of(
    questions: Sequence[str], choices: Sequence[str | Sequence[str] | None] | None
) -> list[Letters]:
    """The letters of every question: one entry a question, or for a lone question its letters.

    Raises:
        InputError: not one entry a question, or one without letters.
    """
    if choices is None:
        return [None] * len(questions)
    given = list(choices)
    if len(questions) == 1 and given and all(isinstance(c, str) for c in given):
        given = [tuple(str(c) for c in given)]
    if len(given) != len(questions):
        raise InputError(
            f"choices has {len(given)} entries for {len(questions)} questions: give the letters "
            "of each, or None for one without"
        )
    found: list[Letters] = []
    for letters in given:
        many = letters is not None and not isinstance(letters, str) and len(letters) > LETTERS
        if many or any(not isinstance(one, str) or len(one) > _LETTER for one in letters or ()):
            raise InputError(
                f"choices are at most {LETTERS} letters such as ('A', 'B'), of at most {_LETTER} "
                "signs each"
            )
        if isinstance(letters, str) or (letters is not None and not all(letters)):
            raise InputError(f"choices are letters such as ('A', 'B'), not {letters!r}")
        found.append(None if not letters else tuple(letters))
    return found


def letter_ids(tokenizer: PreTrainedTokenizerBase, letter: str) -> set[int]:
    """The tokens that are this letter alone or behind a blank; those of unknown words are not."""
    found = set()
    for text in (letter, " " + letter):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        # Not every tokenizer says which its token for unknown words is: it does not say the letter.
        said = str(tokenizer.decode(ids)).strip().casefold()
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id and said == letter.strip().casefold():
            found.add(int(ids[0]))
    return found


def letter_scores(
    tokenizer: PreTrainedTokenizerBase, letters: Letters, shares: Tensor
) -> dict[str, float] | None:
    """The log-probability of every letter as the first token of an answer.

    A letter stands as the token for it alone or with a blank before it: the likelier counts.

    Args:
        shares: (V,) log-probabilities over all tokens.

    Returns:
        None without letters, or where the tokenizer has no single token for one of them.
    """
    if letters is None or not shares.numel():
        return None
    ids = {letter: letter_ids(tokenizer, letter) for letter in letters}
    if not all(ids.values()):
        return None
    return {letter: max(float(shares[i]) for i in some) for letter, some in ids.items()}


def scored_spans(
    found: Sequence[Found],
    ids: Sequence[int],
    scores: Sequence[float],
    decode: Callable[[Sequence[int]], str],
    code: TimeCode,
) -> list[Span]:
    """The spans of an answer, each with the mean probability of the tokens that spell its times.

    The mean is geometric: e to the mean of the tokens' log-probabilities. Words between the times
    do not count. 1 where the answer's tokens were not scored.

    Args:
        found: the spans and their places in the answer, which is `decode(ids)` stripped.
        ids: of the answer. scores: natural log-probabilities, one an id.
    """
    spans = [item.span for item in found]
    if not spans or len(scores) != len(ids):
        return spans
    whole = decode(ids)
    lead = len(whole) - len(whole.lstrip())
    ends = [len(decode(ids[: k + 1])) - lead for k in range(len(ids))]
    starts = [-lead, *ends[:-1]]
    scored = []
    for item in found:
        told = [
            score
            for start, end, score in zip(starts, ends, scores, strict=True)
            if start < item.end
            and end > item.begin
            and _spells(whole[start + lead : end + lead], code)
        ]
        sure = math.exp(sum(told) / len(told)) if told else 1.0
        scored.append(item.span._replace(score=sure))
    return scored


def _spells(piece: str, code: TimeCode) -> bool:
    """Whether a token is a piece of a time."""
    piece = piece.strip()
    return piece in code.special_tokens or bool(re.search(r"\d|^[.:]$", piece))


def whole_times(raw: str) -> str:
    """A growing answer without what its next token may still change at the end."""
    said = raw.rstrip()
    while half := _HALF.search(said[-16:]):
        said = said[: -len(half[0])].rstrip()
        raw = said
    return raw.rstrip("\ufffd")
