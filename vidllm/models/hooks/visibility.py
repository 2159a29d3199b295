"""Which tokens a decoder's layer sees, where that is more than "all before".

Windows that slide, pictures whose tokens see each other both ways, layers that read the keys of an
earlier one. In a prompt the library's own masks of the full sequence are cut to what is left, so
windows count true positions and blocks stay blocks, whatever they are. At decode steps no such mask
is there: then the places in the full prompt of what a cache holds tell how far back it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from vidllm.errors import InputError

from .batches import layer_mask

_SLIDING = "sliding_attention"
#: Arguments of a text model with a row a token, (B, L, ...), that leave with their tokens.
TOKEN_WISE = ("per_layer_inputs", "moe_mm_token_type_ids")


@dataclass(frozen=True)
class Views:
    """How the layers of a decoder see.

    Attributes:
        windows: for every layer how many places it sees back, itself among them; None for all.
        stores: for every layer the layer whose keys and values it reads, mostly itself.
        kinds: names of the masks that the decoder takes by kind; empty where it takes one.
    """

    windows: list[int | None]
    stores: list[int]
    kinds: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether every layer sees all tokens before, of its own."""
        return not any(self.windows) and self.stores == list(range(len(self.stores)))

    @property
    def own(self) -> int:
        """How many layers, from the first, make keys of their own."""
        return sum(store == layer for layer, store in enumerate(self.stores))


def views_of(config: Any, depth: int) -> Views:
    """Of a text model's config with so many layers."""
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * depth)
    size = getattr(config, "sliding_window", None)
    windows = [int(size) if kind == _SLIDING and size else None for kind in kinds]
    stores, shared = list(range(depth)), int(getattr(config, "num_kv_shared_layers", 0) or 0)
    for layer in range(depth - shared, depth):
        stores[layer] = max(n for n in range(depth - shared) if kinds[n] == kinds[layer])
    return Views(windows, stores, tuple(sorted(set(kinds))) if any(windows) else ())


def full_masks(config: Any, embeds: Tensor, mask: Any, cache: Any) -> Any:
    """A prompt's mask as a decoder with several kinds of layers takes it; as it is, if it is."""
    if isinstance(mask, dict):
        return mask
    return create_masks_for_generate(config, embeds, mask, cache)


def cut_masks(
    mask: Any, index: Tensor, valid: Tensor, attention: str, states: Tensor, name: str
) -> Any:
    """A text model's mask of some columns of a batch.

    Args:
        mask: of all columns: (B, L), (B, 1, L, L), None, or a dict of these by kind of layer.
        index, valid: (B, W), the columns, and which of them hold a token. attention: its name.
        states: for dtype and device. name: of the model, for what is refused.

    Raises:
        InputError: a mask of another kind, which cannot be cut.
    """
    if isinstance(mask, dict):
        return {
            kind: layer_mask(attention, valid, valid.shape[1], states)
            if one is None or (isinstance(one, Tensor) and one.dim() == 2)
            else cut_masks(one, index, valid, attention, states, name)
            for kind, one in mask.items()
        }
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return valid.to(states.device, torch.long)
    if not isinstance(mask, Tensor):
        raise InputError(
            f"{name} tells by a {type(mask).__name__} which tokens see each other, and it cannot "
            "be cut: load the model with attn_implementation='sdpa'"
        )
    return cut_mask(mask, index, index, valid, valid)


def cut_mask(
    mask: Tensor | None, queries: Tensor, keys: Tensor, live: Tensor, alive: Tensor
) -> Tensor:
    """The mask (B, 1, Q, K) of some queries and keys.

    Args:
        mask: (B or 1, 1, N, N) bool or additive; None where every token sees those before it.
        queries: (B, Q) long, columns of N. keys: (B, K). live: (B, Q) bool, queries that are no
            padding. alive: (B, K) the same of keys.
    """
    device = queries.device if mask is None else mask.device
    queries, keys, live, alive = (x.to(device) for x in (queries, keys, live, alive))
    if mask is None:
        seen = keys[:, None] <= queries[:, :, None]
    else:
        table = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
        batch = torch.arange(len(queries), device=device)[:, None, None]
        table = table.expand(len(queries), -1, -1)
        seen = table[batch, queries[:, :, None], keys[:, None]]
    # A query that is padding sees all: no softmax over nothing.
    seen = ((seen & alive[:, None]) | ~live[:, :, None])[:, None]
    if mask is None or mask.dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)


def step_mask(
    places: Tensor,
    alive: Tensor,
    fresh: int,
    window: int | None,
    attention: str,
    states: Tensor,
) -> Tensor:
    """The mask (B, 1, W, K) of new tokens over what a layer's cache gives back.

    Args:
        places: (B, n) long, of all that went into the cache, in the full prompt, the new tokens
            last. alive: (B, n) bool, which of it may be seen. fresh: how many are new.
        window: of the layer, or None; its cache keeps so many less one of the old.
        states: for dtype and device.
    """
    new, live = places[:, -fresh:, None], alive[:, -fresh:, None]
    if window is not None:
        first = max(0, places.shape[1] - fresh - (window - 1))
        places, alive = places[:, first:], alive[:, first:]
    seen = (places[:, None] <= new) & alive[:, None]
    if window is not None:
        seen &= new - places[:, None] < window
    seen |= ~live  # as in `cut_mask`
    seen = seen[:, None, -states.shape[1] :].to(states.device)
    if attention == "eager":
        low = torch.finfo(states.dtype).min
        return torch.zeros_like(seen, dtype=states.dtype).masked_fill(~seen, low)
    return seen


def places_of(held: Sequence[Sequence[Tensor]], valid: Sequence[Tensor]) -> list[Tensor]:
    """For every layer (B, n) places in the full prompt of its cache's columns; 0 where padding.

    Args:
        held: for every layer and row of the batch the places (m,) of its tokens. valid: for every
            layer (B, n) bool; layers that share one share the places.
    """
    made: dict[int, Tensor] = {}
    for rows, columns in zip(held, valid, strict=True):
        if id(columns) in made:
            continue
        made[id(columns)] = table = torch.zeros(columns.shape, dtype=torch.long)
        for line, there, row in zip(table, columns.cpu(), rows, strict=True):
            line[there] = row.cpu()
    return [made[id(columns)] for columns in valid]


def still_there(rows: Sequence[Tensor], index: Tensor, live: Tensor) -> Tensor:
    """(B, n) bool: which of the columns `index` are among `rows` and no padding (`live`)."""
    return live & torch.stack(
        [torch.isin(line, row) for line, row in zip(index, rows, strict=True)]
    )
