"""How well a moment fits what was asked for: the probability of the query as its caption.

A window always names the span that fits a query most, also where nothing fits, and is sure of it;
so spans of different videos cannot be compared by that. What can be compared is how probable the
model holds the query's words when it tells what happens in that span: `describe what happens with
times .` answered by `from <start> to <end> the red star spins`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from vidllm.models.native.model import NativeVideoLLM
from vidllm.models.question import PROMPTS, prompt_ids

from .scan import Batch, WindowAnswer, video_cache

# What asks for a moment says nothing about it.
_ASKED = re.compile(
    r"^(?:(?:please )?(?:find|locate|show|highlight)\b(?: me)?(?: the| every| all)*"
    r"(?: moments?| events?| times?)*(?: when|:)?"
    r"|(?:when|at what times?|during which seconds?)(?: is it that| does| do| did| is| are)?)\s+",
    re.IGNORECASE,
)


def statement(query: str) -> str:
    """What a query says that happens: "when does the star spin?" is "the star spin"."""
    said = query.strip().rstrip(" .?!")
    return _ASKED.sub("", said) or said


class Fitting:
    """The captions that windows are held against.

    Args:
        tokenizer: of the model. query: what is looked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, query: str) -> None:
        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self._tail = prompt_ids(tokenizer, PROMPTS["caption"])[1]
        self._between = ids("from "), ids(" to ")
        self._words = ids(f" {statement(query)}")

    @torch.inference_mode()
    def __call__(
        self, model: NativeVideoLLM, batch: Batch, head: Sequence[int], said: Sequence[WindowAnswer]
    ) -> list[float]:
        """Mean probability of a word of the query, as exp of the mean logarithm, a window each.

        Windows that name no span get 0.

        Args:
            batch: windows whose cache was kept when they were asked; it stays as it is.
            head: ids before the video. said: what they answered, with the spans.
        """
        first, device = model.config.time_token_start, model.device
        opening, middle = self._between
        rows = [
            [*self._tail, *opening, first + t[0], *middle, first + t[1], *self._words]
            for t in (one.times or (0, 0) for one in said)
        ]
        cache = video_cache(model, batch, head)
        seen = cache.get_seq_length()
        ids = torch.tensor(rows, device=device)
        place = len(head) + batch.total
        logits = model.language_model(
            input_ids=ids,
            position_ids=torch.arange(place, place + ids.shape[1], device=device).expand_as(ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=len(self._words) + 1,
        ).logits[:, :-1]
        cache.crop(seen - cache.get_seq_length())
        logs = logits.float().log_softmax(-1)
        taken = logs.gather(2, ids[:, -len(self._words) :, None])[..., 0]
        found = taken.mean(1).exp().tolist()
        return [fit if one.times is not None else 0.0 for fit, one in zip(found, said, strict=True)]
