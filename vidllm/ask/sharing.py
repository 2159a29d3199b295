"""One set of weights, several users: everyone has a memory of clips of their own."""

from __future__ import annotations

import copy
from typing import TypeVar

from .encode import Memory
from .video_llm import VideoLLM

_Model = TypeVar("_Model", bound=VideoLLM)


def twin(llm: _Model) -> _Model:
    """The same model with a memory of its own.

    What `VideoLLM` remembers is what its last clip was encoded to; twins do not push each
    other's clips out of it. Weights, tokenizer and compressors are shared, so calls of twins must
    not run at the same time: both would hang hooks on the same layers.
    """
    from .hub import HubVideoLLM
    from .hub_encode import Eyes

    other = copy.copy(llm)
    if isinstance(other, HubVideoLLM):
        eyes = other.eyes
        other.eyes = Eyes(other.model, other.adapter, eyes.marks, eyes.options)
    else:
        other.memory = Memory(llm.model)
    return other
