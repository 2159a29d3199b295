"""What a vision transformer thinks of its own tokens: attention received, and keys.

Only the rows that are needed are computed, from the queries and keys of one layer, beside
whatever attention the model runs (SDPA, FlashAttention): nothing falls back to eager attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: What `Watch.read` gives; the names of the signals on video tokens.
SIGNALS: tuple[str, ...] = ("cls-attention", "vision-keys")
_CHUNK = 8  # frames whose full attention map is held at once


class Watch:
    """Queries and keys of one attention layer, caught while the model runs."""

    def __init__(self, attention: nn.Module) -> None:
        self.heads = int(getattr(attention, "num_heads", 0) or _heads(attention))
        self.caught: dict[str, Tensor] = {}

    def hook(self, name: str) -> Any:
        """A forward hook that keeps the output of a projection."""

        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.caught[name] = output.detach()

        return keep

    def read(self, patches: int) -> dict[str, Tensor]:
        """The signals of the last `patches` tokens of every frame.

        Returns:
            "cls-attention" (F, patches): softmax row of the CLS token, or where there is none the
            mean of all rows; mean over heads. "vision-keys" (F, patches, d): mean over heads,
            before any scaling.
        """
        query, key = (self.caught[n].float().unflatten(-1, (self.heads, -1)) for n in ("q", "k"))
        special = query.shape[1] - patches
        scale = query.shape[-1] ** -0.5
        rows = query[:, :1] if special else query
        parts = [
            torch.softmax(torch.einsum("fqhd,fkhd->fhqk", q * scale, k), dim=-1).mean((1, 2))
            for q, k in zip(rows.split(_CHUNK), key.split(_CHUNK), strict=True)
        ]
        return {
            "cls-attention": torch.cat(parts)[:, special:],
            "vision-keys": key.mean(2)[:, special:],
        }


def _heads(attention: nn.Module) -> int:
    return int(attention.config.num_attention_heads)  # type: ignore[union-attr,arg-type]


@contextmanager
def watch(model: nn.Module, layer: int) -> Iterator[Watch]:
    """Watch attention layer `layer` (negative from the end) of a vision transformer."""
    layers = [m for m in model.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
    attention = layers[max(layer, -len(layers))]
    seen = Watch(attention)
    handles = [
        getattr(attention, f"{name}_proj").register_forward_hook(seen.hook(name)) for name in "qk"
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
