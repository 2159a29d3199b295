"""How likely each letter of a question's options was as the first token of its answer."""

from __future__ import annotations

import math

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidllm.models.question import Letters, letter_ids


def letter_scores(
    tokenizer: PreTrainedTokenizerBase, letters: Letters, shares: Tensor
) -> dict[str, float] | None:
    """The log-probability of every letter as the first token of an answer.

    A letter stands as the token for it alone or with a blank before it: the likelier counts.

    Args:
        shares: (V,) log-probabilities over all tokens.

    Returns:
        None without letters, or where the tokenizer has no single token for one of them, or the
        engine did not look at it.
    """
    if letters is None or not shares.numel():
        return None
    ids = {letter: letter_ids(tokenizer, letter) for letter in letters}
    if not all(ids.values()):
        return None
    found = {letter: float(shares[sorted(some)].max()) for letter, some in ids.items()}
    return None if any(math.isnan(value) for value in found.values()) else found
