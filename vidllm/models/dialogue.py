"""What a question stands in (system prompt, turns), and how an answer's tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from vidllm.errors import InputError
from vidllm.errors.bounds import check, short

#: Turns of a conversation: pairs of a question and its answer, or messages with role and content.
History = Sequence[Any]


@dataclass(frozen=True)
class Dialogue:
    """The conversation of one call.

    Attributes:
        system: prompt; "" for what the chat template says by itself.
        turns: (question, answer) before the question; the video stands in the first one.
        temperature: of the draw; 0 takes the likeliest token. top_p: share of the likeliest tokens
            that are drawn from. seed: of the draw.
    """

    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def of(
        cls,
        system: str | None,
        history: History | None,
        temperature: float | None,
        top_p: float | None,
        seed: int,
    ) -> Dialogue:
        """From the options of a call.

        Raises:
            InputError: turns that are none, or a number out of range.
        """
        for name, value in (("temperature", temperature), ("top_p", top_p), ("seed", seed)):
            if value is not None:
                check(name, value)
        if top_p is not None and not temperature:
            raise InputError("top_p goes with a temperature above 0: give temperature=1.0")
        told, turns = turns_of(history or ())
        if told and system:
            raise InputError("the history begins with a system prompt: give no other")
        whole = told or system or ""
        if not isinstance(whole, str):
            raise InputError(f"system is text, not {short(whole)}")
        share = 1.0 if top_p is None else float(top_p)
        return cls(whole, turns, float(temperature or 0), share, int(seed))

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is said in it before the question."""
        return tuple(text for text in (self.system, *sum(self.turns, ())) if text)

    def draws(self, device: torch.device) -> Callable[[Tensor], Tensor] | None:
        """From logits (rows, V) to ids (rows, 1); None where the likeliest is taken."""
        if not self.temperature:
            return None
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        generator = torch.Generator(device).manual_seed(self.seed)

        def draw(logits: Tensor) -> Tensor:
            nothing: Any = None  # these two read no ids
            shares = torch.softmax(warpers(nothing, logits), dim=-1)
            return torch.multinomial(shares, 1, generator=generator)

        return draw


#: A question alone, answered greedily.
ALONE = Dialogue()


def turns_of(history: History) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The system prompt and the (question, answer) pairs of a history.

    Args:
        history: pairs (an answer may be an `Answer`), or messages {"role": …, "content": …} of
            "user" and "assistant" by turns, a "system" one first if at all.

    Raises:
        InputError: something else.
    """
    items: list[Any] = list(history) if isinstance(history, (list, tuple)) else [history]
    if not all(isinstance(item, Mapping) for item in items):
        return "", tuple(_pair(item) for item in items)
    roles = [str(item.get("role")) for item in items]
    texts = [_text(item.get("content")) for item in items]
    system = texts[0] if roles[:1] == ["system"] else ""
    first = 1 if system else 0
    asked, said = texts[first::2], texts[first + 1 :: 2]
    if roles[first:] != ["user", "assistant"] * len(said) or len(asked) != len(said):
        raise InputError(
            f"history has the roles {', '.join(roles)}: give user and assistant by turns, the "
            "question itself apart"
        )
    return system, tuple(zip(asked, said, strict=True))


def _pair(item: Any) -> tuple[str, str]:
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        raise InputError(
            "history is a list of (question, answer), or of messages with role and content, not "
            f"of {short(item)}"
        )
    return _text(item[0]), _text(item[1])


def _text(value: Any) -> str:
    text = getattr(value, "text", value)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"a turn of the history is text, not {short(value)}")
    return text
