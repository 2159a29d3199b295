"""Decoders whose layers are not all alike: states between attention, windows, blocks, shared keys.

A layer of linear attention (Qwen3.5) has no entry a token in the cache but one state, into which
every token goes that it reads. What was left out before such a layer has never touched its state;
what it has read cannot be taken out again. So methods may cut between layers, and none may take
tokens out of the cache. A cut that needs scores stands beside a layer that has some.

Other layers see less or more than all tokens before: windows that slide, pictures whose tokens see
each other both ways, layers that read the keys of an earlier one (Gemma 4, Molmo 2). In a prompt
the library's own masks of the full sequence are cut to what is left, so windows count true
positions and blocks stay blocks. At decode steps no such mask is there: then the places in the full
prompt of what a cache holds tell how far back it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate

from vidllm.compressors import Compressor
from vidllm.errors import InputError

from .batches import layer_mask

Layers = nn.ModuleList | Sequence[nn.Module]


def attends(layer: nn.Module) -> bool:
    """Whether a decoder layer is one of attention, and not of a state."""
    return hasattr(layer, "self_attn")


def carries_state(layers: Layers) -> bool:
    """Whether a decoder has layers of a state."""
    return not all(map(attends, layers))


def first_attention(layers: Layers) -> int:
    """The first layer of attention, whose cache tells how long the prompt is."""
    return next((i for i, layer in enumerate(layers) if attends(layer)), 0)


def cut_points(method: Compressor, layers: Layers) -> list[tuple[int, float]]:
    """Before which layers a method cuts, and the shares that it leaves: its own `points` where all
    layers attend. Else a cut that reads attention moves to the next layer where there is some (the
    one before the cut, or with `own_layer` the one behind it), and to the last one where no other
    follows.

    Returns:
        (layer, share), ascending; empty where no layer will do.
    """
    points: list[tuple[int, float]] = method.points(len(layers))  # type: ignore[attr-defined]
    if not method.needs or not carries_state(layers):
        return points
    shift = 0 if method.own_layer else 1
    places = [i + shift for i, layer in enumerate(layers) if attends(layer)]
    places = [place for place in places if 0 < place < len(layers)]
    found: dict[int, float] = {}
    for layer, share in points if places else ():
        found[next((place for place in places if place >= layer), places[-1])] = share
    return sorted(found.items())


def mask_of(layer: nn.Module, attention: str, valid: Tensor, queries: int, states: Tensor) -> Any:
    """The mask of the last `queries` of K columns of a layer; None where it needs none.

    Args:
        attention: name of the decoder's attention. valid: (B, K) bool, columns that hold a token.
        states: of the layer, for their dtype and device.
    """
    if attends(layer):
        return layer_mask(attention, valid, queries, states)
    fresh = valid[:, -queries:]
    return None if bool(fresh.all()) else fresh.to(states.device, torch.long)


def moved_cuts(late: Sequence[Compressor], layers: Layers) -> list[str]:
    """One line for every method whose cuts `cut_points` moves."""
    found = []
    for item in late if carries_state(layers) else ():
        own = item.points(len(layers)) if item.stage == "prefill" else []  # type: ignore[attr-defined]
        if own and (mine := cut_points(item, layers)) != own:
            place, wanted = (" and ".join(str(i) for i, _ in some) for some in (mine, own))
            found.append(
                f"{item.name} cuts before layer {place}, beside full attention, not before {wanted}"
            )
    return found


def padded(layers: Layers) -> str:
    """Why no answer goes on from a prompt with padding behind it; "" where one does."""
    if not carries_state(layers):
        return ""
    return (
        "padding behind a prompt goes through the state of this model's layers of linear "
        "attention, so no answer can go on from it: pad on the left"
    )


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
