"""The hooks that compress a hub model's prompts, the same for all families.

The model makes its prompt as always: embeddings with the video in them, and positions of the full
sequence. Right before the text model these rows are reduced: embeddings, DeepStack planes,
positions and mask, all by one index. What the text model reads from then on is shorter; `generate`
and everything else outside goes on counting the full prompt. At decode steps the mask is cut to
what the cache holds.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import LATE, Chain, Compressor
from vidllm.errors import InputError

from ..pruning import BatchPruner, VideoRun
from .base import Adapter
from .checks import check
from .choosing import Choice
from .decoding import Decoding
from .eviction import evict_rows
from .reducing import dense_planes, reduce
from .state import Call, Past, Report, bare, count_videos, numbered, without_planes
from .towers import Sight, watch


class Session:
    """One method on one model.

    Args:
        adapter: of the model. method: the compressors.

    Raises:
        InputError: what this model cannot serve, by name and reason.
    """

    def __init__(self, adapter: Adapter, method: Compressor | Chain) -> None:
        self.adapter, self.method = adapter, method
        self.decoder: Any = adapter.decoder
        self.layers = cast(nn.ModuleList, self.decoder.layers)
        items = method.items if isinstance(method, Chain) else [method]
        self.late = [item for item in items if item.stage in LATE]
        wants = {*method.needs, *method.uses} & {"cls-attention", "vision-keys"}
        self.wants = sorted(wants & set(adapter.provides))
        self.report: Report | None = None
        self.sights: deque[Sight] = deque()
        self.call: Call | None = None
        self.decoding = Decoding(self.decoder, self.late)
        self.inner = ExitStack()
        self.labels = False
        check(adapter, method, self.late)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on, and off again whatever happens."""
        core, adapter = self.adapter.core, self.adapter
        deltas = getattr(core, "rope_deltas", None)
        with ExitStack() as stack:
            stack.callback(self._close)
            handles = [
                core.register_forward_pre_hook(self._begin, with_kwargs=True),
                self.decoder.register_forward_pre_hook(self._shrink, with_kwargs=True),
                self.decoder.register_forward_hook(self._finish, with_kwargs=True),
            ]
            if adapter.model is not core:
                handles.append(
                    adapter.model.register_forward_pre_hook(self._outside, with_kwargs=True)
                )
            for handle in handles:
                stack.callback(handle.remove)
            self.decoding.attach(stack)
            attention = adapter.attention if self.wants else None
            self.sights = stack.enter_context(watch(adapter.tower, attention))
            if hasattr(core, "rope_deltas"):  # kept between calls by the model; none of ours stay
                core.rope_deltas = None
                stack.callback(setattr, core, "rope_deltas", deltas)
            yield

    def _close(self) -> None:
        self.inner.close()
        self.call = None
        self.decoding.close()

    def _outside(self, _model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self.labels = kwargs.get("labels") is not None

    def _begin(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model: which videos there are, or where a prompt goes on."""
        self._close()
        if args:
            kwargs = {**inspect.signature(core.forward).bind_partial(*args).arguments, **kwargs}
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        mask = kwargs.get("attention_mask")
        length = 0 if cache is None else int(cache.get_seq_length())
        if ids is None:
            if not length and kwargs.get("inputs_embeds") is not None:
                raise InputError("compress reads the prompt: pass input_ids, not inputs_embeds")
        elif length and self._pictures(kwargs):
            raise InputError(
                "compress starts with an empty cache: pass the whole conversation with its videos "
                "and without past_key_values"
            )
        if length:
            if cache in self.decoding.pasts:
                kwargs = self.decoding.go_on(cache, length, kwargs)
            return (), kwargs
        if ids is None:
            return (), kwargs
        plain = ids.cpu()
        sight = self._sight(kwargs)
        clips = self.adapter.clips(plain, kwargs, sight)
        real = torch.ones_like(plain, dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            real = mask.cpu().bool()
        elif clips and mask is not None:
            raise InputError(
                "compress needs the attention mask as the processor made it, (batch, length), "
                "and the default dynamic cache"
            )
        left = bool(real[:, -1].all())
        labels, self.labels = self.labels, False
        if clips and labels:
            raise InputError(
                "compress leaves tokens out, so labels do not fit: take the loss of out.logits, "
                "whose rows are c.kept"
            )
        rows = [torch.nonzero(row).flatten() for row in real]
        if not clips:
            video = getattr(self.adapter.config, "video_token_id", None)
            if self.adapter.modality == "video" and bool((plain == video).any()):
                raise InputError(
                    f"{self.method.name}: the prompt has a video that was not encoded here: pass "
                    "the processor's pixels and grids to the model inside the with block"
                )
            lengths, every = [len(row) for row in rows], [rows] * len(self.layers)
            self.report = Report(every, every, lengths, 0, 0, [0], 0.0)
            return (), kwargs
        text = real & ~self.adapter.vision(plain)
        self.call = Call(clips, plain, real, text, left, rows, sight)
        return (), kwargs

    @staticmethod
    def _pictures(kwargs: dict[str, Any]) -> bool:
        names = ("pixel_values", "pixel_values_videos")
        given = any(kwargs.get(name) is not None for name in names)
        return given or bool(kwargs.get("mm_encoder_outputs"))

    def _sight(self, kwargs: dict[str, Any]) -> Sight | None:
        """The call of the tower that made the videos' tokens before this call of the model."""
        made = kwargs.get("mm_encoder_outputs") or {}
        output = made.get(self.adapter.modality)
        state = getattr(output, "last_hidden_state", None)
        found = None
        for sight in self.sights:
            if state is not None and getattr(sight.output, "last_hidden_state", None) is state:
                found = sight
        self.sights.clear()
        if found is not None:  # without a cache, generate comes back with it at every step
            self.sights.append(found)
        return found

    def _shrink(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the text model: leave out what is not kept."""
        if self.decoding.past is not None:
            return args, self.decoding.resume(kwargs)
        call = self.call
        if call is None:
            return None
        began = time.perf_counter()
        embeds: Tensor = kwargs["inputs_embeds"]
        planes = [embeds, *dense_planes(kwargs, embeds)]
        places, late = self._choose(call, planes)
        call.places = places
        shorter = any(len(a) < len(c.where) for a, c in zip(call.after, call.clips, strict=True))
        position = kwargs.get("position_ids")
        if position is None:
            position = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
        call.position = position[..., -1:] + 1
        call.valid = call.real
        if shorter:
            planes, kwargs = reduce(call, planes, places, position, kwargs)
        call.late = late
        if (
            late
            and late[0][0].stage == "prefill"
            and any(n < len(a) for (_, n), a in zip(late, call.after, strict=True))
        ):
            kwargs = self._prune(call, planes, places, late, kwargs)
        elif not late:
            call.after = [bare(after) for after in call.after]
        call.seconds = time.perf_counter() - began
        return args, kwargs

    def _choose(
        self, call: Call, planes: list[Tensor]
    ) -> tuple[list[Tensor], list[tuple[Compressor, int]]]:
        """What is left of every video: its places in the prompt; late methods' budgets."""
        signals: dict[str, Tensor] = {}
        if self.wants:
            # The model's own call for videos is its last one.
            sight = call.sight or (self.sights[-1] if self.sights else None)
            if sight is None or not sight.hidden.numel():
                raise InputError(
                    f"{self.method.name} needs {' and '.join(self.wants)}: let the model encode "
                    "the video inside the with block"
                )
            signals = self.adapter.signals(sight)
        places, budgets = [], []
        for clip in call.clips:
            rows = [plane[clip.row, clip.where.to(plane.device)] for plane in planes]
            told = {
                n.replace("-", "_"): signals[n][clip.slots.to(signals[n].device)]
                for n in self.wants
            }
            deep = {f"deepstack_{n}": row for n, row in enumerate(rows[1:])}
            view = clip.tokens.with_features(rows[0]).with_signals(**told, **deep)
            words = torch.nonzero(call.text[clip.row]).flatten()
            behind = words[words > clip.where[-1]]
            query = planes[0][clip.row, (behind if len(behind) else words).to(planes[0].device)]
            asked = query if self.method.query_aware else None
            after, late = self.method.before_decoder(view, asked)
            if after.features.shape[1] != view.features.shape[1]:
                raise InputError(f"{self.method.name} changes the width of tokens: leave it out")
            if bool((after.position.diff() <= 0).any()):
                raise InputError(
                    f"{self.method.name} must leave tokens in time order here: leave out faithful"
                )
            table = torch.full((clip.tokens.total,), -1)
            table[clip.tokens.position] = clip.where
            call.after.append(after)
            places.append(table[after.position])
            budgets += late[:1]
        return places, budgets

    def _prune(
        self,
        call: Call,
        planes: list[Tensor],
        places: list[Tensor],
        late: list[tuple[Compressor, int]],
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Hooks for the method between the layers; off again when the text model is done."""
        valid = cast(Tensor, call.valid)
        runs = []
        for clip, after, place, (_, budget) in zip(
            call.clips, call.after, places, late, strict=True
        ):
            at = torch.searchsorted(call.rows[clip.row], place)
            runs.append(VideoRun(clip.row, without_planes(after), at, budget))
        text = [words[row] for words, row in zip(call.text, call.rows, strict=True)]
        call.pruner = BatchPruner(
            self.layers,
            self.decoder.norm,
            late[0][0],
            runs,
            valid,
            text=text,
            planes=planes[1:],
            left=call.left,
        )
        self.inner.enter_context(call.pruner.attached())
        if len(planes) > 1:  # added by the pruner's hooks, which know what is left
            return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
        return kwargs

    def _finish(self, _decoder: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Behind the text model: what its cache holds, and the account."""
        if self.decoding.past is not None:
            self.decoding.done(kwargs)
            return
        call = self.call
        if call is None:
            return
        self.inner.close()
        depth, pruner = len(self.layers), call.pruner
        rows = [call.rows] * depth
        valid = [cast(Tensor, call.valid)] * depth
        seconds = call.seconds
        if pruner is not None:
            rows = [
                [c[r] for c, r in zip(call.rows, layer, strict=True)] for layer in numbered(pruner)
            ]
            valid = list(pruner.lives)
            seconds += pruner.seconds
        held = [list(layer) for layer in rows]
        choice: Choice | None = None
        cache = getattr(output, "past_key_values", None)
        full = sum(len(clip.where) for clip in call.clips)
        if cache is not None and pruner is not None:
            for method in self.late[1:]:
                evict_rows(cache, method, call.clips, call.after, pruner, held, valid)
        fewer = any(n < len(a) for (_, n), a in zip(call.late, call.after, strict=False))
        if cache is not None and pruner is None and fewer:
            choice = self.decoding.choice(call, cache, valid)
        shorter = (
            pruner is not None
            or choice is not None
            or any(len(a) < len(c.where) for a, c in zip(call.after, call.clips, strict=True))
        )
        if cache is not None and shorter:
            self.decoding.pasts[cache] = Past(
                valid, call.ids.shape[1], cast(Tensor, call.position), choice
            )
        runs = call.after if pruner is None else [run.tokens for run in pruner.runs]
        if call.sight is None:
            self.sights.clear()
        self.report = Report(
            rows,
            held,
            [int(row.sum()) for row in call.real],
            full,
            sum(len(tokens) for tokens in runs),
            [count_videos(call.clips, layer) for layer in held],
            seconds,
        )
        if choice is not None:
            self.report.choose(choice)
        self.call = None
