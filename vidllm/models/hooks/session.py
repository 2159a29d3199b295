"""The hooks that compress a hub model's prompts, the same for all families.

The model makes its prompt as always: embeddings with the video in them, and positions of the full
sequence. Right before the text model these rows are reduced: embeddings, DeepStack planes,
positions and mask, all by one index. What the text model reads from then on is shorter; `generate`
and everything else outside goes on counting the full prompt. At decode steps the mask is cut to
what the cache holds.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.compiler import disable as eager

from vidllm.compressors import LATE, Compressor
from vidllm.errors import InputError

from ..engine import Shared
from ..families.family import Adapter, Clip
from .cache import CacheChoice, CachedVideo, evict_rows
from .checks import Net, check, check_call, check_compiled, check_reuse, within_compiled
from .decoding import DecodeSteps, Past
from .generate import around_generate, check_cache, check_generate, is_fixed, plain_mask
from .labels import cut_labels, held_labels
from .layers import attends, full_masks, padded, places_of, views_of
from .pooled_tower import merger_of
from .prefill import Prefix, dense_planes, placed, reduce, select
from .pruning import bare
from .state import Call, Report, numbered
from .temporal import TemporalAdapter
from .vision_tower import Sight, watch


class Session:
    """One method on one model.

    Args:
        adapter: of the model. method: the compressors.
        temporal: encoders that a video passes before the method sees it, or None.

    Raises:
        InputError: what this model cannot serve, by name and reason.
    """

    def __init__(
        self, adapter: Adapter, method: Compressor, temporal: TemporalAdapter | None = None
    ) -> None:
        self.adapter, self.method, self.temporal = adapter, method, temporal
        self.decoder: Any = adapter.decoder
        self.layers = cast(nn.ModuleList, self.decoder.layers)
        self.views = views_of(self.decoder.config, len(self.layers))
        items = method.methods
        self.late = [item for item in items if item.stage in LATE]
        inside = method.in_tower
        wants = {want for item in items[inside is not None :] for want in (*item.needs, *item.uses)}
        wants &= {"cls-attention", "vision-keys"}
        idle = all(x.is_free() for x in items) and method.keep == 1.0 and method.budget is None
        self.wants = [] if idle else sorted(wants & set(adapter.provides))
        self._report: Shared[Report | None] = Shared(None)
        self.sights: deque[Sight] = deque()
        self.call: Call | None = None
        self.decoding: DecodeSteps | None = None  # from the first shorter cache on
        self.inner = ExitStack()
        self.labels: Tensor | None = None
        self._prefix: Shared[Prefix | None] = Shared(None)
        #: Held by the thread whose prompt is under way; the others wait.
        self.turn = threading.RLock()
        self.holder: int | None = None
        self.closed = False
        self.net = Net()
        self.mine = threading.local()
        check(adapter, method, self.late)
        check_compiled(f"{method.name} on {adapter.family}", adapter.model, self._hooked(inside))
        self.merger = None if inside is None else merger_of(adapter, method)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Session:
        return self  # hooks of a model that is copied in the block; they know the original

    def _hooked(self, inside: Any) -> list[nn.Module]:
        """Where hooks hang while a method is at work."""
        adapter = self.adapter
        places = [adapter.model, adapter.core, self.decoder, adapter.tower]
        if self.late:
            inner: list[Any] = list(self.layers)
            places += [*inner, *(layer.self_attn for layer in inner if attends(layer))]
        if inside is not None:
            places += list(adapter.tower.modules())
        elif self.wants:
            places.append(adapter.attention)
        return places

    @property
    def report(self) -> Report | None:
        """Of the last prompts: of this thread's own, or for who opened the block of any's."""
        return self._report.get()

    @report.setter
    def report(self, report: Report) -> None:
        self._report.set(report, told=True)

    @property
    def prefix(self) -> Prefix | None:
        """What prompts of this thread begin with (see `Compression.reuse`)."""
        return self._prefix.get()

    @contextmanager
    def attached(self, exclusive: bool = False) -> Iterator[None]:
        """Hooks on, and off again whatever happens.

        Args:
            exclusive: it is this thread's turn from the beginning to the end.
        """
        core, adapter = self.adapter.core, self.adapter
        deltas = getattr(core, "rope_deltas", None)
        with ExitStack() as turn, ExitStack() as stack:
            if exclusive:
                turn.enter_context(self.turn)
            stack.callback(self._close)
            handles = [
                core.register_forward_pre_hook(eager(self._begin), with_kwargs=True),
                core.register_forward_hook(eager(self._end), always_call=True),
                self.decoder.register_forward_pre_hook(eager(self._shrink), with_kwargs=True),
                self.decoder.register_forward_hook(eager(self._finish), with_kwargs=True),
            ]
            outside = () if adapter.model is core else (adapter.model, *adapter.wrappers)
            for outer in outside:
                handles += [
                    outer.register_forward_pre_hook(eager(self._outside), with_kwargs=True),
                    outer.register_forward_hook(eager(self._behind), always_call=True),
                ]
            for handle in handles:
                stack.callback(handle.remove)
            if self.late or not self.views.plain:
                choosing = any(hasattr(item, "step") for item in self.late)
                self.decoding = DecodeSteps(self.decoder)
                self.decoding.attach(stack, choosing=choosing)
            stack.enter_context(around_generate(adapter.model, self._generating))
            attention = adapter.attention if self.wants else None
            self.sights = stack.enter_context(watch(adapter.tower, attention))
            if self.merger is not None:
                stack.enter_context(self.merger.attached(self.sights))
            if hasattr(core, "rope_deltas"):  # kept between calls by the model; none of ours stay
                core.rope_deltas = None
                stack.callback(setattr, core, "rope_deltas", deltas)
            if not within_compiled(adapter.model, self.decoder.norm):
                stack.enter_context(self.net.under(self.decoder.norm))
            try:
                yield
            finally:  # hooks come off when no prompt of another thread is under way
                self._give()
                turn.enter_context(self.turn)
                self.closed = True
        self.net.check()

    @contextmanager
    def sharing(self, prefix: Prefix) -> Iterator[Prefix]:
        """Prompts in this block begin with the same video (see `Compression.reuse`)."""
        check_reuse(self.adapter)
        prefix.open(self.adapter.core, self.method, self.temporal)
        if not self.views.plain:
            raise InputError(
                f"{self.adapter.family}: a video's entries are reused where every layer holds all "
                "of them, and this decoder has sliding windows or layers without keys of their "
                "own: ask without reuse"
            )
        before = self.prefix
        self._prefix.set(prefix)
        try:
            yield prefix
        finally:
            self._prefix.set(before)

    def _take(self) -> None:
        """This thread's turn; it has it already where an interrupt ended its last pass."""
        if self.holder != threading.get_ident():
            self.turn.acquire()
            self.holder = threading.get_ident()

    def _give(self) -> None:
        if self.holder == threading.get_ident():
            self.holder = None
            self.turn.release()

    def _close(self) -> None:
        self.net.leave()
        self.inner.close()
        self.call = None
        if self.decoding is not None:
            self.decoding.close()

    @contextmanager
    def _generating(self, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Around `generate`: from the prompt to the last token it is one thread's turn."""
        with self.turn:
            if self.closed:  # while it waited
                yield {}
                return
            more = self._before_generate(arguments)
            self.mine.reached = False
            try:
                yield more
            finally:
                self._give()
                self.net.leave()
            self.net.missed |= not self.mine.reached

    def _before_generate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Before `generate`, which encodes videos before it calls the model."""
        more = check_generate(self.adapter, self.method, arguments, self.prefix is not None)
        ids, cache = arguments.get("input_ids"), arguments.get("past_key_values")
        self.adapter.given(arguments)
        fresh = cache is None or not int(cache.get_seq_length())
        if isinstance(ids, Tensor) and fresh and not arguments.get("mm_encoder_outputs"):
            self._expect(self.adapter.clips(ids.cpu(), arguments, None))
        return more

    def _expect(self, clips: list[Clip]) -> None:
        if self.merger is not None:
            self.merger.expect(clips)

    def _outside(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self._take()
        if self.closed:  # while it waited: the hook that would give the turn back is off
            self._give()
            return None
        self.mine.reached, self.labels = False, None
        held = held_labels(model, args, kwargs)
        if held is None:
            return None
        kwargs, self.labels = held
        return (), kwargs

    def _behind(self, _model: nn.Module, _args: Any, output: Any) -> None:
        """Behind a model with its head, also where it failed (None)."""
        if output is not None and not self.closed:
            self.net.missed |= not self.mine.reached
        self._give()

    def _begin(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model: which videos there are, or where a prompt goes on."""
        self._take()
        if self.closed:  # while it waited
            self._give()
            return None
        if core is not self.adapter.core:  # a copy
            self.net.missed = True
            return None
        self.mine.reached = True
        self.mine.read = False
        self._close()
        if args:
            kwargs = {**inspect.signature(core.forward).bind_partial(*args).arguments, **kwargs}
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        check_cache(self.adapter, self.method, cache)
        length = 0 if cache is None else int(cache.get_seq_length())
        if is_fixed(cache) and ids is not None and not length:
            laid_out = kwargs.get("attention_mask")
            kwargs = {**kwargs, "attention_mask": plain_mask(laid_out, ids.shape[1])}
        mask = kwargs.get("attention_mask")
        if ids is None:
            if not length and kwargs.get("inputs_embeds") is not None:
                raise InputError("compress reads the prompt: pass input_ids, not inputs_embeds")
        elif length and self._pictures(kwargs):
            raise InputError(
                "compress starts with an empty cache: pass the whole conversation with its videos "
                "and without past_key_values"
            )
        if length:
            if self.decoding is not None and cache in self.decoding.pasts:
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
        if clips:
            check_call(kwargs, real)
        left = bool(real[:, -1].all())
        labels, self.labels = self.labels, None
        rows = [torch.nonzero(row).flatten() for row in real]
        if not clips:
            if self.adapter.own_token and bool((plain == self.adapter.video_token).any()):
                raise InputError(
                    f"{self.method.name}: the prompt has a video that was not encoded here: pass "
                    "the processor's pixels and grids to the model inside the with block"
                )
            lengths, every = [len(row) for row in rows], [rows] * len(self.layers)
            self.report = Report(every, every, lengths, 0, 0, [0], 0.0)
            return (), kwargs
        text = real & ~self.adapter.vision(plain)
        call = Call(clips, plain, real, text, left, rows, sight, labels=labels)
        if sight is None:
            self._expect(clips)
        if self.prefix is not None:
            if labels is not None:
                raise InputError("what is reused is not read again, so it has no loss: leave out "
                                 "labels, or train without reuse")  # fmt: skip
            asked = kwargs.get("use_cache")
            grows = getattr(self.decoder.config, "use_cache", True) if asked is None else asked
            call.reused = len(self.prefix) if self.prefix.begin(call, kwargs, bool(grows)) else 0
        self.call = call
        return (), kwargs

    def _end(self, _core: nn.Module, _args: Any, output: Any) -> None:
        """Behind the model, also where it failed (None)."""
        if output is not None and not self.closed:
            self.net.missed |= not self.mine.read
        self._close()
        self._give()

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

    def _shrink(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the text model: leave out what is not kept."""
        if self.holder != threading.get_ident() or decoder is not self.decoder:
            self.net.missed = True
            return None
        self.mine.read = True
        self.net.enter()
        if self.decoding is not None and self.decoding.past is not None:
            return args, self.decoding.resume(kwargs)
        call = self.call
        if call is None:
            return None
        began = time.perf_counter()
        embeds: Tensor = kwargs["inputs_embeds"]
        planes = [embeds, *dense_planes(kwargs, embeds)]
        position = kwargs.get("position_ids")
        if position is None:
            position = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
        call.position = position[..., -1:] + 1
        call.valid = call.real
        if self.prefix is not None and call.reused:
            kwargs = self.prefix.enter(call, planes, position, kwargs, self.decoder.config)
            call.seconds = time.perf_counter() - began
            return args, kwargs
        if self.prefix is not None:
            self.prefix.look(call, embeds, position)
        # The model's own call for videos is its last one.
        sight = call.sight or (self.sights[-1] if self.sights else None)
        places, late = select(
            self.adapter, self.method, self.wants, call, planes, sight, self.temporal
        )
        call.places = places
        shorter = any(len(a) < len(c.where) for a, c in zip(call.after, call.clips, strict=True))
        if shorter:
            how = str(cast(Any, self.decoder).config._attn_implementation)
            if self.views.kinds:
                mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
                masks = full_masks(self.decoder.config, embeds, mask, cache)
                kwargs = {**kwargs, "attention_mask": masks}
            planes, kwargs = reduce(call, planes, places, position, kwargs, how)
        elif self.temporal is not None:
            planes = placed(call, planes, places)
            kwargs = {**kwargs, "inputs_embeds": planes[0]}
        call.late = late
        if (
            late
            and late[0][0].stage == "prefill"
            and any(n < len(a) for (_, n), a in zip(late, call.after, strict=True))
        ):
            kwargs = self._prune(call, planes, places, late, kwargs)
        if not any(item.uses_features for item in self.late[1:]):
            call.after = [bare(after, signals=bool(late)) for after in call.after]
        call.seconds = time.perf_counter() - began
        return args, kwargs

    def _prune(
        self,
        call: Call,
        planes: list[Tensor],
        places: list[Tensor],
        late: list[tuple[Compressor, int]],
        kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Hooks for the method between the layers; off again when the text model is done."""
        how = str(self.decoder.config._attn_implementation)
        pruner = call.prune(self.layers, self.decoder.norm, planes, places, late, how, self.views)
        self.inner.enter_context(pruner.attached())
        if len(planes) > 1:  # added by the pruner's hooks, which know what is left
            return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
        return kwargs

    def _finish(self, decoder: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Behind the text model: what its cache holds, and the account."""
        if self.holder != threading.get_ident() or decoder is not self.decoder:
            return
        self.net.leave()
        if "forward" in vars(self.decoder) and self.net.watching:
            self.net.missed |= not self.net.read  # what was replaced has not run the layers
        if self.decoding is not None and self.decoding.past is not None:
            self.net.missed |= not self.decoding.done(kwargs)
            return
        call = self.call
        if call is None:
            return
        self.inner.close()
        depth, pruner = len(self.layers), call.pruner
        if pruner is not None and len(pruner.history) != depth:
            self.net.missed = True  # its layers were not called
            self.call = None
            return
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
        choice: CacheChoice | None = None
        cache = getattr(output, "past_key_values", None)
        if cache is not None and pruner is not None:
            videos = [
                CachedVideo(clip.row, place, after, len(run.tokens))
                for clip, place, after, run in zip(
                    call.clips, call.places, call.after, pruner.runs, strict=True
                )
            ]
            for method in self.late[1:]:
                evict_rows(cache, method, videos, held, valid, call.left)
        fewer = any(n < len(a) for (_, n), a in zip(call.late, call.after, strict=False))
        if cache is not None and pruner is None and fewer:
            choice = call.choose(cache, valid)
        shorter = (
            pruner is not None
            or choice is not None
            or bool(call.reused)
            or any(len(a) < len(c.where) for a, c in zip(call.after, call.clips, strict=True))
        )
        if cache is not None and shorter:
            position, ended = cast(Tensor, call.position), "" if call.left else padded(self.layers)
            past = Past(valid, [], call.ids.shape[1], position, choice, ended=ended)
            past.places = [] if self.views.plain else places_of(held, valid)
            self.decoding = self.decoding or DecodeSteps(self.decoder)
            self.decoding.pasts[cache] = past
        if self.prefix is not None and not call.reused:
            self.prefix.fill(call, cache, self.adapter.core, self.method)
        if call.labels is not None and shorter:
            cut_labels(call.labels, rows[-1], valid[-1], call.text)
        if call.sight is None:
            self.sights.clear()
        report = call.report(rows, held, list(self.layers), seconds, valid[-1])
        if choice is not None:
            report.choose(choice)
        self.report, self.call = report, None
