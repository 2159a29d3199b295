"""A question: how long it may be, and what our own model reads before and after the video.

The bytes of a text are bounded before it is tokenised and before a video is read, so that no
tokenizer works for seconds on what is refused anyway; then prompt, video and answer are counted
against the positions that the model has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import short

if TYPE_CHECKING:  # commands read this before anything heavy is loaded
    from transformers import PreTrainedTokenizerBase

#: Bytes of one question: the subtitles of a film, which some benchmarks put into it, fit.
QUESTION_BYTES = 2**18
#: Bytes that a token stands for at most in a text that somebody wrote.
TOKEN_BYTES = 32
#: Questions of one call.
QUESTIONS = 4096
#: Tokens of a question to a model that was trained from nothing, on questions of one sentence.
SENTENCE_TOKENS = 1024
#: Letters of a question's options; None for a question without.
Letters = tuple[str, ...] | None
#: Options of a question at most, and signs of what names one.
LETTERS, _LETTER = 256, 64


def questions_of(question: object) -> list[str]:
    """One question or several as a list, each looked at by `check_text`.

    Raises:
        InputError: none, too many, or one that is no text or too long.
    """
    if isinstance(question, str):
        found: list[Any] = [question]
    elif isinstance(question, (list, tuple)):
        found = list(question)
    else:
        raise InputError(f"a question is text, or a list of texts, not {short(question)}")
    if not found:
        raise InputError("no question was asked: give at least one")
    if len(found) > QUESTIONS:
        raise InputError(f"a call asks at most {QUESTIONS} questions, not {len(found)}")
    for text in found:
        check_text(text)
    return found


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


def check_text(question: object, positions: int | None = None) -> None:
    """See that a question is text that can be tokenised.

    Args:
        positions: of the model, if that is known.

    Raises:
        InputError: something else, or more bytes than any model reads.
    """
    if not isinstance(question, str):
        raise InputError(f"a question is text, not {short(question)}")
    try:
        size = len(question.encode())
    except UnicodeEncodeError as error:
        sign = question[error.start].encode("unicode_escape").decode("ascii")
        raise InputError(
            f"the question holds {sign}, which is half a sign and no text: leave it out"
        ) from error
    most = QUESTION_BYTES if positions is None else min(QUESTION_BYTES, TOKEN_BYTES * positions)
    if size > most:
        raise InputError(f"the question has {size} bytes, more than {most}: ask a shorter one")


def positions_of(decoder: Any) -> int | None:
    """Positions that a decoder's config gives its model; None where it does not say."""
    most = getattr(decoder, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def check_room(
    positions: int | None, *, text: int, video: int = 0, answer: int = 0, question: int = 0,
    sentence: bool = False,
) -> None:  # fmt: skip
    """See that a prompt and its answer have room.

    Args:
        positions: of the model; None for no bound. text: tokens of the prompt that are no video,
            those of the question among them. video: positions that the video takes, uncompressed.
            answer: its longest. question: tokens of the question and what follows it.
            sentence: the model knows questions of a sentence only.

    Raises:
        InputError: they have not.
    """
    if sentence and question > SENTENCE_TOKENS:
        raise InputError(
            f"the question has {question} tokens; this model was trained on questions of a "
            f"sentence and reads at most {SENTENCE_TOKENS}: ask a shorter one"
        )
    whole = text + video + answer
    if positions is not None and whole > positions:
        parts = [f"{text} tokens of text", *([f"{video} of the video"] if video else [])]
        raise InputError(
            f"{', '.join(parts)} and {answer} for the answer are {whole}, more than the "
            f"{positions} positions of this model: ask a shorter question, sample fewer frames, "
            "or allow a shorter answer"
        )


def longest(prompts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[int, int]:
    """Tokens of the longest prompt, and of the longest question, of pairs (before, after)."""
    return (
        max((len(head) + len(tail) for head, tail in prompts), default=0),
        max((len(tail) for _, tail in prompts), default=0),
    )


VIDEO_MARK = "<|video|>"
#: Words that `ground`, `caption` and `highlights` put around what the user says.
PROMPTS = {
    "ground": "find the moment when {query} .",
    "highlights": "show every moment when {query} .",
    "caption": "describe what happens with times .",
}


def wrap(task: str, query: str) -> str:
    """The prompt of a task around the user's words; a question is asked as it is."""
    check_text(query)
    if not query.strip():
        raise InputError("the query is empty: say what to look for")
    if query.strip().endswith("?"):
        return query
    return PROMPTS[task].format(query=query.strip().rstrip(" ."))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[list[int], list[int]]:
    """Ids before and after the video.

    Raises:
        InputError: an empty question, or one with control tokens.
    """
    check_text(question)
    if not question.strip():
        raise InputError("the question is empty: ask something")
    if "<|" in question:
        raise InputError("the question holds '<|', which marks control tokens: leave it out")
    content = VIDEO_MARK + question.strip()
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": content}]
        try:
            content = str(
                tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # jinja's errors, or whatever the template raises itself
            raise WorkError(
                "the model's chat template cannot be used: get the model again"
            ) from error
    if content.count(VIDEO_MARK) != 1:
        raise WorkError(
            "the model's chat template has no place for a question: get the model again"
        )
    head, tail = content.split(VIDEO_MARK, 1)
    before, after = (
        list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (head, tail)
    )
    return before, after


def unknown_words(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[str, ...]:
    """A note on words that a word tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return ()
    words = re.findall(r"[^\W_]+", question.lower())
    missing = [w for w in words if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]]
    if not missing:
        return ()
    return (f"the model does not know: {', '.join(dict.fromkeys(missing))}",)
