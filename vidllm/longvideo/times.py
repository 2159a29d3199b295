"""The time tokens of a window's answer, as the reader of all answers takes them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from vidllm.models.native.config import NativeConfig
from vidllm.timecode import RelativeTime

_TAGS = ("</think>", "<answer>")  # what stands before these is no answer


class AnswerTimes:
    """Finds the ends of an answer's first span among its ids.

    Args:
        config: of the model that answers. tokenizer: its own.
    """

    def __init__(self, config: NativeConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.code = tokenizer, RelativeTime(config.time_tokens)
        start = config.time_token_start
        self.ids = range(start, start + config.time_tokens)
        self.tagged = any(
            tag.strip("</>")
            in self._text(list(tokenizer(tag, add_special_tokens=False)["input_ids"]))
            for tag in _TAGS
        )

    def of(self, said: Sequence[int]) -> tuple[int, int] | None:
        """Where in an answer's ids the two tokens of its first span are; None without a span."""
        at = [k for k, token in enumerate(said) if token in self.ids]
        text = self._text(said)
        found = self.code.token_pairs(text) if len(at) >= 2 else []
        if not found or self.code.count(text) != len(at):  # times that are spelt out too
            return None
        one, two = found[0]
        return at[one], at[two]

    def settled(self, said: Sequence[int]) -> bool:
        """Whether no further token can change the first span."""
        return not self.tagged and self.code.joined(self._text(said))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
