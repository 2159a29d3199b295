"""Before the text model: what a method leaves of the videos of a batch, and the shorter prompt.

Embeddings, DeepStack planes, positions and mask are all cut by one index.

What the decoder computes for a token depends on the tokens before it only. So prompts that begin
alike, up to the end of the same video, share what their layers' caches hold of it (`Prefix`), if
the method leaves the same of the video for every question. The first prompt fills the prefix;
later ones read only what stands behind the video. A prefix outlives the caches that it fills; what
one pass over a prompt left in its own cache is a `Prefill`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from ..families.family import Adapter
from .batches import gather, pack
from .cache import check_entries
from .layers import TOKEN_WISE, cut_masks
from .state import Call
from .temporal import TemporalAdapter
from .vision_tower import Sight


def select(
    adapter: Adapter,
    method: Compressor,
    wants: Sequence[str],
    call: Call,
    planes: Sequence[Tensor],
    sight: Sight | None,
    temporal: TemporalAdapter | None = None,
) -> tuple[list[Tensor], list[tuple[Compressor, int]]]:
    """Let a method choose in every video; `call.after` takes what is left.

    Args:
        wants: signals of the tower that it reads. planes: (B, L, D) embeddings, and DeepStack's.
        sight: the call of the tower that made the videos.
        temporal: encoders that the method stands behind.

    Returns:
        For every video the places (n,) of what is left in its prompt; late methods' budgets.

    Raises:
        InputError: a video that was encoded elsewhere, or a method that does not fit.
    """
    signals = _signals(adapter, method, wants, sight)
    inside = {} if sight is None else sight.inside
    places, budgets = [], []
    for clip in call.clips:
        rows = [plane[clip.row, clip.where.to(plane.device)] for plane in planes]
        if temporal is not None:
            rows[0] = temporal(rows[0], clip.tokens, clip.seconds)
        tower = {
            n.replace("-", "_"): plane[clip.slots.to(plane.device)] for n, plane in signals.items()
        }
        deep = {f"deepstack_{n}": row for n, row in enumerate(rows[1:])}
        view = clip.tokens.with_features(rows[0]).with_signals(**tower, **deep)
        words = torch.nonzero(call.text[clip.row]).flatten()
        behind = words[words > clip.where[-1]]
        query = planes[0][clip.row, (behind if len(behind) else words).to(planes[0].device)]
        asked = query if method.query_aware else None
        merged = inside.get(int(clip.slots[0]))
        if merged is None and _merging(method, clip.tokens):
            raise InputError(_ELSEWHERE.format(method.name))
        if merged is not None:
            if not torch.equal(merged.tokens.source >= 0, clip.tokens.source >= 0):
                raise InputError(_ELSEWHERE.format(method.name))
            after, late = merged.rest.before_decoder(merged.join(view), asked)
        else:
            after, late = method.before_decoder(view, asked)
        if after.features.shape[1] != view.features.shape[1]:
            raise InputError(f"{method.name} changes the width of tokens: leave it out")
        if bool((after.position.diff() <= 0).any()):
            raise InputError(
                f"{method.name} must leave tokens in time order here: leave out faithful"
            )
        table = torch.full((clip.tokens.total,), -1)
        table[clip.tokens.position] = clip.where
        call.after.append(after)
        places.append(table[after.position])
        budgets += late[:1]
    return places, budgets


_ELSEWHERE = (
    "{} merges inside the vision tower, which did not run on this video with it: let the model "
    "encode the video inside the with block"
)


def _merging(method: Compressor, clip: VideoTokens) -> bool:
    return method.in_tower is not None and tower_part(method, clip)[0] is not None


def _signals(
    adapter: Adapter, method: Compressor, wants: Sequence[str], sight: Sight | None
) -> dict[str, Tensor]:
    if sight is not None and sight.method not in ("", repr(method)):
        raise InputError(
            "another method merged this video inside the vision tower: let the model encode it "
            "again inside the with block"
        )
    if not wants or (sight is not None and sight.inside):
        return {}
    if sight is None or not sight.hidden.numel():
        raise InputError(
            f"{method.name} needs {' and '.join(wants)}: let the model encode the video inside "
            "the with block"
        )
    if not sight.signals:
        sight.read(adapter.signals(sight))
    return {name: sight.signals[name] for name in wants}


def dense_planes(kwargs: dict[str, Any], embeds: Tensor) -> list[Tensor]:
    """DeepStack's planes as (B, L, D), 0 where there are no pictures."""
    deep, where = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
    if deep is None or where is None:
        return []
    planes = []
    for rows in deep:
        plane = torch.zeros_like(embeds)
        plane[where.to(embeds.device)] = rows.to(embeds)
        planes.append(plane)
    return planes


def reduce(
    call: Call,
    planes: list[Tensor],
    places: list[Tensor],
    position: Tensor,
    kwargs: dict[str, Any],
    attention: str,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Embeddings, planes, positions and mask of what is left; `attention` is the decoder's."""
    stays = call.real.clone()
    for clip, place in zip(call.clips, places, strict=True):
        stays[clip.row, clip.where] = False
        stays[clip.row, place] = True
    call.rows = [torch.nonzero(row).flatten() for row in stays]
    whole = placed(call, planes, places)
    planes, call.valid, new = take(call.rows, call.left, whole, position, kwargs, attention)
    return planes, new


def placed(call: Call, planes: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
    """(B, L, D) embeddings and DeepStack planes with what was made of every video where it goes."""
    planes = [plane.clone() for plane in planes]
    for clip, after, place in zip(call.clips, call.after, places, strict=True):
        deep = [after.signals[f"deepstack-{n}"] for n in range(len(planes) - 1)]
        for plane, rows in zip(planes, [after.features, *deep], strict=True):
            plane[clip.row, place.to(plane.device)] = rows.to(plane)
    return planes


def take(
    rows: Sequence[Tensor],
    left: bool,
    planes: list[Tensor],
    position: Tensor,
    kwargs: dict[str, Any],
    attention: str,
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    """Some columns of a batch.

    Args:
        rows: for every row its columns (n,). left: padding goes before them.
        planes: (B, L, D) each, embeddings first. position: (B, L) or (P, B, L).
        attention: the name of the decoder's.

    Returns:
        The planes, which of their columns (B, W) hold a token, and the text model's arguments.
    """
    index, valid = pack(rows, left)
    device = planes[0].device
    planes = [gather(plane, index) for plane in planes]
    mask = cut_masks(kwargs.get("attention_mask"), index, valid, attention, planes[0], "the model")
    new = {**kwargs, "inputs_embeds": planes[0], "attention_mask": mask}
    for name in TOKEN_WISE:
        if isinstance(kwargs.get(name), Tensor):
            new[name] = gather(kwargs[name], index)
    flat = position.dim() == 2
    new["position_ids"] = (
        gather(position, index) if flat else torch.stack([gather(p, index) for p in position])
    )
    if kwargs.get("cache_position") is not None:
        new["cache_position"] = torch.arange(index.shape[1], device=device)
    if len(planes) > 1:
        where = gather(kwargs["visual_pos_masks"], index) & valid.to(device)
        new["visual_pos_masks"] = where
        new["deepstack_visual_embeds"] = [plane[where] for plane in planes[1:]]
    return planes, valid, new


_ALIKE = 0.05  # of the mean size: how far the sums of equal embeddings may be apart


class Prefix:
    """The beginning of a prompt with its video, as the decoder's layers hold it.

    Make an empty one, and hand it to `Compression.reuse`.

    Attributes:
        ids: (P,) long, the prompt up to the end of its last video; None until the first prompt.
        rows: (n,) long, which of these tokens the decoder read. tokens: what was left of every
            video, without features. keys, values: (1, H, n, d) for every layer.
        reused: prompts that were answered from it.
    """

    def __init__(self) -> None:
        self.ids: Tensor | None = None
        self.rows = torch.empty(0, dtype=torch.long)
        self.tokens: list[VideoTokens] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.reused = 0
        self._sums = torch.empty(0)
        self._position = torch.empty(0)
        self._of: tuple[Any, str] | None = None
        self._temporal: Any = None

    def __len__(self) -> int:
        """Tokens that later prompts need not read again."""
        return len(self.rows)

    @property
    def bytes(self) -> int:
        """Of the keys and values."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def open(self, core: Any, method: Compressor, temporal: Any = None) -> None:
        """Before the prompts: whether it can serve this model, method and temporal encoder.

        Raises:
            InputError: a method that reads the question, or a prefix of something else.
        """
        if method.query_aware or method.inside_decoder():
            reads = "reads the question" if method.query_aware else "looks at the whole prompt"
            raise InputError(
                f"{method.name} {reads}, so every question leaves something else of the video: "
                "ask without reuse"
            )
        of = None if self._of is None else (self._of[0](), self._of[1], self._temporal)
        if of is not None and of != (core, repr(method), temporal):
            raise InputError(
                "this prefix was made by another model or another method: make a new Prefix()"
            )
        self._temporal = temporal

    def begin(self, call: Call, kwargs: dict[str, Any], grows: bool) -> bool:
        """Before the model: whether a prompt goes on from here; False if it is the first.

        Args:
            grows: whether the model will keep a cache.

        Raises:
            InputError: a prompt that begins otherwise, or no cache.
        """
        if not grows:
            raise InputError("a prefix is reused through the cache: leave out use_cache=False")
        ends = [0] * len(call.ids)
        order = call.real.cumsum(1) - 1
        for clip in call.clips:
            ends[clip.row] = max(ends[clip.row], int(order[clip.row, clip.where[-1]]) + 1)
        lines = [ids[real] for ids, real in zip(call.ids, call.real, strict=True)]
        ids = self.ids if self.ids is not None else lines[0][: ends[0]]
        for line, end in zip(lines, ends, strict=True):
            if end != len(ids) or not torch.equal(line[:end], ids):
                raise InputError(
                    "the prompt does not begin as the one whose video is reused: start it with the "
                    "same text and the same video, and no other video behind"
                )
            if len(line) == end:
                raise InputError("the prompt ends with its video: put a question behind it")
        if self.ids is None:
            return False
        if kwargs.get("past_key_values") is not None and kwargs["past_key_values"].layers:
            check_entries(kwargs["past_key_values"], "a prefix")
        return True

    def enter(
        self,
        call: Call,
        planes: list[Tensor],
        position: Tensor,
        kwargs: dict[str, Any],
        config: Any,
    ) -> dict[str, Any]:
        """Right before the text model: the cache filled, and only what stands behind the video.

        Raises:
            InputError: another video.
        """
        self._compare(call, planes[0])
        position = self._shifted(call, position)
        call.position = position[..., -1:] + 1
        cache = kwargs.get("past_key_values")
        if cache is None:
            from transformers import DynamicCache

            cache = DynamicCache(config=config)
        batch, device = len(call.ids), planes[0].device
        for number, both in enumerate(zip(self.keys, self.values, strict=True)):
            keys, values = (x.to(device).expand(batch, -1, -1, -1) for x in both)
            cache.update(keys, values, number)
        columns = [torch.nonzero(real).flatten() for real in call.real]
        count, length = len(self.rows), len(self.ids if self.ids is not None else ())
        behind = [row[length:] for row in columns]
        how = str(config._attn_implementation)
        _, valid, new = take(behind, call.left, planes, position, kwargs, how)
        call.rows = [torch.cat([row[self.rows], row[length:]]) for row in columns]
        call.valid = torch.cat([torch.ones(batch, count, dtype=torch.bool), valid], dim=1)
        call.after = [self.tokens[n % len(self.tokens)] for n in range(len(call.clips))]
        if new.get("cache_position") is not None:
            new["cache_position"] = new["cache_position"] + count
        self.reused += 1
        mask = call.valid.to(device, torch.long)
        return {**new, "attention_mask": mask, "past_key_values": cache, "use_cache": True}

    def look(self, call: Call, embeds: Tensor, position: Tensor) -> None:
        """The first prompt, right before the text model: its embeddings and positions."""
        end = self._end(call)
        self._sums = self._sum(call, embeds, 0, end).cpu()
        self._position = self._place(call, position, 0, end)

    def fill(self, call: Call, cache: Any, core: Any, method: Compressor) -> None:
        """The first prompt, behind the text model."""
        check_entries(cache, "a prefix")
        columns = torch.nonzero(call.real[0]).flatten()
        end = self._end(call)
        kept = torch.isin(columns, call.rows[0])
        self.rows = torch.nonzero(kept[:end]).flatten()
        valid = call.real if call.valid is None else call.valid
        held = torch.nonzero(valid[0]).flatten()[: len(self.rows)]
        for layer in cache.layers:
            index = held.to(layer.keys.device)
            self.keys.append(layer.keys[:1, :, index].clone())
            self.values.append(layer.values[:1, :, index].clone())
        firsts = [after for clip, after in zip(call.clips, call.after, strict=True) if not clip.row]
        self.tokens = firsts
        self.ids = call.ids[0, columns[:end]].clone()
        self._of = (weakref.ref(core), repr(method))

    def _end(self, call: Call) -> int:
        last = max(int(clip.where[-1]) for clip in call.clips if not clip.row)
        return int(call.real[0, : last + 1].sum())

    @staticmethod
    def _sum(call: Call, embeds: Tensor, row: int, end: int) -> Tensor:
        index = torch.nonzero(call.real[row]).flatten()[:end].to(embeds.device)
        return embeds[row, index].float().sum(-1)

    @staticmethod
    def _place(call: Call, position: Tensor, row: int, end: int) -> Tensor:
        """(P,) or for M-RoPE (3, P), on the CPU; a plane for the text's own count goes before."""
        index = torch.nonzero(call.real[row]).flatten()[:end].to(position.device)
        planes = position if position.dim() == 2 else position[-3:]
        return planes[..., row % position.shape[-2], index].cpu()

    def _shifted(self, call: Call, position: Tensor) -> Tensor:
        """Positions that go on from those of the first prompt; only distances count.

        They differ by a constant where a model counts padding on the left.
        """
        batch, shifts = len(call.ids), []
        for row in range(batch):
            mine = self._place(call, position, row, len(self._sums))
            shift = mine[..., :1] - self._position[..., :1]
            if not torch.equal(mine - shift, self._position):
                raise InputError(
                    "the video of this prompt has other seconds than the one that is reused: open "
                    "another prefix for it"
                )
            shifts.append(shift)
        shape = (*position.shape[:-2], batch, position.shape[-1])
        moved, shift = position.expand(shape).clone(), torch.stack(shifts, dim=-2)
        if moved.dim() == 3:
            moved[-3:] -= shift.to(moved.device)
            return moved
        return moved - shift.to(moved.device)

    def _compare(self, call: Call, embeds: Tensor) -> None:
        mean = self._sums.abs().mean()
        for row in range(len(embeds)):
            sums = self._sum(call, embeds, row, len(self._sums)).cpu()
            if bool(((sums - self._sums).abs() > _ALIKE * mean).any()):
                raise InputError(
                    "the prompt's video is not the one that is reused: open another prefix for it"
                )
