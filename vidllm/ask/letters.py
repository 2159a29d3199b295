"""How likely each letter of a question's options was as the first token of its answer."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.models.question import Letters


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
