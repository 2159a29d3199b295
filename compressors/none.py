"""No compression, by name: the control of every table."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Selection, VideoTokens

from .base import Compressor
from .registry import register


@register("none")
@dataclass
class NoCompression(Compressor):
    """Keep every token. A budget below the number of tokens is refused."""

    summary = "every token stays"
    uses_features = False

    def lacks_share(self) -> bool:
        """False: it keeps all."""
        return False

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Always an InputError: it is only asked when tokens should go."""
        raise InputError(
            f"compressor 'none' keeps all {len(tokens)} tokens and cannot reach {budget}: "
            "leave keep at 1 or choose a method"
        )
