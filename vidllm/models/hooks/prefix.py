"""One compressed video for many questions: keys and values of the prompt up to the video's end.

What the decoder computes for a token depends on the tokens before it only. So prompts that begin
alike, up to the end of the same video, share what their layers' caches hold of it, if the method
leaves the same of the video for every question. The first prompt fills the prefix; later ones read
only what stands behind the video. A prefix outlives the caches that it fills; what one pass over a
prompt left in its own cache is a `Prefill`.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

from .kv_cache import check_entries
from .prefill import take
from .state import Call

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

    def __len__(self) -> int:
        """Tokens that later prompts need not read again."""
        return len(self.rows)

    @property
    def bytes(self) -> int:
        """Of the keys and values."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def open(self, core: Any, method: Compressor) -> None:
        """Before the prompts: whether it can serve this model and method.

        Raises:
            InputError: a method that reads the question, or a prefix of something else.
        """
        if method.query_aware or method.inside_decoder():
            reads = "reads the question" if method.query_aware else "looks at the whole prompt"
            raise InputError(
                f"{method.name} {reads}, so every question leaves something else of the video: "
                "ask without reuse"
            )
        if self._of is not None and (self._of[0]() is not core or self._of[1] != repr(method)):
            raise InputError(
                "this prefix was made by another model or another method: make a new Prefix()"
            )

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
        _, valid, new = take(behind, call.left, planes, position, kwargs)
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
