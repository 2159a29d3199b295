"""A small text encoder that is trained with a head: the words of a sentence to one vector.

Published heads take their sentences from the text side of a frozen image–text model. A model that
was trained from nothing has word embeddings alone; their mean is where this encoder starts from,
and what order and neighbours change about it is learned with the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidllm.errors import InputError


class SentenceEncoder(nn.Module):
    """Sentences of words (N, W) to vectors (N, dim): mean word + W · transformer's mean.

    W is zero at first, so that an untrained encoder gives the mean of the word embeddings.

    Args:
        words: rows of the table. dim: of the vectors. layers, heads: of the transformer, whose
            feed-forward is twice as wide. most: words of a sentence; others at its end are cut off.

    Raises:
        InputError: sizes below 1, or heads that do not divide dim.
    """

    def __init__(
        self,
        words: int,
        dim: int,
        layers: int = 1,
        heads: int = 4,
        most: int = 40,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(words, dim, layers, heads, most) < 1 or dim % heads:
            raise InputError(
                f"sentences: sizes must be at least 1, and {heads} heads must divide dim {dim}"
            )
        self.most, self.dim = most, dim
        self.table = nn.Embedding(words, dim)
        self.place = nn.Parameter(torch.zeros(most, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.delta = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.place, std=0.02)
        nn.init.zeros_(self.delta.weight)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """Ids (N, W) and which of them are words (N, W) bool; a row without a word gives zeros."""
        words = self.table(ids)
        alone = ~real & real.any(1, keepdim=True)  # softmax over nothing is NaN
        seen = self.layers(words + self.place[: ids.shape[1]], src_key_padding_mask=alone)
        share = real.to(words.dtype) / real.sum(1, keepdim=True).clamp(min=1)
        mean, moved = (torch.einsum("nwd,nw->nd", x, share) for x in (words, seen))
        return mean + self.delta(moved)

    @torch.no_grad()
    def take_words(self, table: Tensor) -> None:
        """Start from word embeddings (words, dim), such as an LLM's.

        Raises:
            InputError: a table of another shape.
        """
        if table.shape != self.table.weight.shape:
            raise InputError(
                f"the words are {tuple(self.table.weight.shape)}, not {tuple(table.shape)}"
            )
        self.table.weight.copy_(table)

    def read(self, tokenizer: Any, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, W) and mask (N, W) of sentences, on the device of the weights."""
        rows = tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
        return pad_words([list(row)[: self.most] for row in rows], self.place.device)


def pad_words(
    rows: Sequence[Sequence[int]], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of ids as ids (N, W) and mask (N, W); W is the longest, 1 at least."""
    width = max(1, *map(len, rows)) if rows else 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row, dtype=torch.long)
        real[k, : len(row)] = True
    return ids.to(device), real.to(device)
