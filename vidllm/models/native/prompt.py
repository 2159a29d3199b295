"""From what the user says to what the model reads, on either side of the video."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from vidllm.errors import InputError, WorkError

from ..question import check_text

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
