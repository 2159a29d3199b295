"""One set of weights, several users: everyone has a memory of clips of their own."""

from __future__ import annotations

import copy
from typing import TypeVar

from .loaded_model import LoadedModel

T = TypeVar("T", bound=LoadedModel)


def twin(llm: T) -> T:
    """The same model with a memory of its own.

    What `VideoLLM` remembers is what its last clip was encoded to; twins do not push each
    other's clips out of it. Weights, tokenizer and compressors are shared, so calls of twins must
    not run at the same time: both would hang hooks on the same layers.
    """
    other = copy.copy(llm)
    other.engine = llm.engine.twin()
    return other
