"""What compress refuses: what a model cannot be served with, and passes that went past its hooks.

What shows before any work is refused at once (`check`, `check_compiled`), ways to call the model
when it is called, ways to generate in `generate`. Hooks are also skipped by code that was compiled
before they came, by replaced
`forward`s, and by calls of a part of the model. For these a net hangs under the hooks: one weight
that every pass reads, the text model's last norm, notes what it is multiplied with. torch asks a
tensor's class about every operation, in every thread, and compiled code is compiled anew for
another class, so that it meets the hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import AttentionMaskInterface

from vidllm.compressors import Compressor
from vidllm.errors import InputError

from ..engine import check_needs
from ..families.family import Adapter
from .layers import carries_state, cut_points, views_of


def check(adapter: Adapter, method: Compressor, late: list[Compressor]) -> None:
    """Refuse what a model cannot serve.

    Raises:
        InputError: names the method, the model and the reason.
    """
    family, config = adapter.family, cast(Any, adapter.decoder).config
    check_needs(method, adapter.provides, family)
    how = str(config._attn_implementation)
    if how != "eager" and how not in AttentionMaskInterface():
        raise InputError(
            f"{method.name} on {family}: attention '{how}' has no mask function, so it cannot be "
            "told what was left out: load the model with attn_implementation='sdpa'"
        )
    inside = method.in_tower
    if inside is not None:
        reason = adapter.whole_grid()
        if reason:
            raise InputError(
                f"{inside.name} merges inside the vision tower, but {family} {reason}: write "
                f"{inside.name}:tower=false, which merges behind it"
            )
        seen = str(cast(Any, adapter.tower).config._attn_implementation)
        if seen not in ("sdpa", "eager"):
            raise InputError(
                f"{inside.name} merges inside the vision tower, whose attention '{seen}' cannot "
                "weigh merged tokens: load the model with "
                "attn_implementation={'vision_config': 'sdpa'} or write "
                f"{inside.name}:tower=false"
            )
    check_views(adapter, method, late)
    layers = list(cast(Any, adapter.decoder).layers)
    for item in late if carries_state(layers) else ():
        if item.stage == "cache":
            raise InputError(
                f"{item.name} on {family}: its layers of linear attention hold a state, out of "
                "which no token can be taken again: use a method that acts before the decoder or "
                "between its layers"
            )
        if not cut_points(item, layers):
            raise InputError(
                f"{item.name} on {family}: it reads attention, and no layer of full attention "
                "stands before another layer: use a method that acts before the decoder"
            )
    for item in late:
        where = getattr(item, "positions", "original")
        if item.stage == "cache" and where != "original":
            raise InputError(
                f"{item.name}: {family} keeps its positions: leave out positions={where}"
            )


def check_views(adapter: Adapter, method: Compressor, late: list[Compressor]) -> None:
    """Refuse what a decoder whose layers see differently cannot be served with.

    Raises:
        InputError: names the method, the model and the reason.
    """
    decoder = cast(Any, adapter.decoder)
    config, depth = decoder.config, len(decoder.layers)
    who = f"{method.name} on {adapter.family}"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention", "linear_attention"}:
        raise InputError(
            f"{who}: this decoder has {', '.join(sorted(kinds))} layers, which "
            "count positions without gaps: use a model with full attention"
        )
    views, how = views_of(config, depth), str(config._attn_implementation)
    if views.plain:
        return
    if how not in ("sdpa", "eager"):
        raise InputError(
            f"{who}: attention '{how}' counts the windows of this decoder by what is left, not by "
            "true positions: load the model with attn_implementation='sdpa'"
        )
    for item in late:
        if item.stage == "cache":
            raise InputError(
                f"{item.name} on {adapter.family}: it needs a decoder that attends to the whole "
                "prompt in every layer, and this one has sliding windows or shared keys: leave it "
                "out"
            )
        points = cut_points(item, decoder.layers)
        if points and points[-1][0] >= views.own:
            raise InputError(
                f"{item.name} on {adapter.family}: it prunes before layer {points[-1][0]}, but "
                f"from layer {views.own} on the decoder reads keys of earlier layers and carries "
                "the last token alone: choose layers before it, or a method that acts before the "
                "decoder"
            )


def check_call(kwargs: Mapping[str, Any], real: Tensor) -> None:
    """Refuse prompts of a form that cannot be cut.

    Args:
        kwargs: of the model's call. real: (B, L) bool on the CPU, tokens that are no padding.

    Raises:
        InputError: several prompts packed in a row, or a mask of other dimensions than (B, L).
    """
    mask, position = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise InputError(
            "compress needs the attention mask as the processor made it, (batch, length)"
        )
    packed = any(kwargs.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    if isinstance(position, Tensor) and position.shape[-1] == real.shape[1]:
        # Of M-RoPE's planes the first is time or the text's own count; neither falls in a prompt.
        plane = (position if position.dim() == 2 else position[0]).cpu().expand(len(real), -1)
        both = real[:, 1:] & real[:, :-1]
        packed = packed or bool(((plane.diff(dim=1) < 0) & both).any())
    if packed:
        raise InputError(
            "compress takes one prompt a row, not several packed in one: pass a padded batch"
        )


def check_reuse(adapter: Adapter) -> None:
    """Refuse to begin a prompt with what another one left, where the caches do not hold it.

    Raises:
        InputError: a decoder whose layers carry a state.
    """
    if carries_state(list(cast(Any, adapter.decoder).layers)):
        raise InputError(
            f"{adapter.family} has layers of linear attention, whose state behind the video is "
            "gone when the prompt is read: ask without reuse"
        )


PAST = (
    "a forward pass in this block went past compress, which saw nothing of it: call the model that "
    "was given to compress, as model.generate(**inputs) or model(**inputs), neither compiled nor "
    "with a replaced forward nor one of its parts"
)


class Net:
    """What is known of passes that a session did not see.

    Attributes:
        missed: there was one. inside: the thread whose seen pass is in the text model, or None.
        read: whether that pass has read the watched weight. watching: whether one is watched.
    """

    def __init__(self) -> None:
        self.missed = self.watching = False
        self.inside: int | None = None
        self.read = False

    def enter(self) -> None:
        """A seen pass enters the text model, on this thread."""
        self.inside, self.read = threading.get_ident(), False

    def leave(self) -> None:
        """It has left it."""
        self.inside = None

    def used(self, weight: Tensor, args: Sequence[Any]) -> None:
        """The watched weight was used; with states of a prompt, if an argument has more axes."""
        if torch._C._current_graph_task_id() != -1:  # by backward, which counters of FLOPs show
            return
        mine = self.inside == threading.get_ident()
        self.read = self.read or mine
        wide = (isinstance(x, Tensor) and x.dim() > weight.dim() for x in args if x is not weight)
        self.missed = self.missed or (not mine and any(wide))

    def check(self) -> None:
        """Refuse to go on as if all had been seen.

        Raises:
            InputError: a pass was missed.
        """
        if self.missed:
            raise InputError(PAST)

    @contextmanager
    def under(self, norm: nn.Module) -> Iterator[None]:
        """Watch the weight of a norm; a weight of a class of its own is left as it is."""
        weight = norm._parameters.get("weight")
        if type(weight) is not Parameter:
            yield
            return
        watched = _watched(self)
        weight.__class__ = watched
        norm._parameters["weight"] = weight  # torch looks for changes in the table, not in it
        self.watching = True
        try:
            yield
        finally:
            self.watching = False
            for found in (weight, norm._parameters.get("weight")):  # offloading makes another one
                if type(found) is watched:
                    found.__class__ = Parameter
            norm._parameters["weight"] = norm._parameters.get("weight")


def _watched(net: Net) -> type[Parameter]:
    """A class of parameters of one block, so that code compiled for another does not fit it."""

    class Watched(Parameter):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            named = kwargs or {}
            with torch._C.DisableTorchFunctionSubclass():
                every = (*args, *named.values())
                weight = next((x for x in every if type(x) is cls), None)
                if weight is not None:
                    net.used(weight, every)
                return func(*args, **named)

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # a copy belongs to nobody's block
            if id(self) not in memo:
                memo[id(self)] = Parameter(self.data.clone(), self.requires_grad)
            return memo[id(self)]

    return Watched


def is_compiled(module: nn.Module) -> bool:
    """Whether calling a module runs code of `torch.compile` that skips the module's own hooks."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def has_compiled_forward(module: nn.Module) -> bool:
    """Whether a module's `forward` is compiled, so that hooks below it are skipped."""
    forward: Any = module.forward
    while forward is not None:
        if getattr(forward, "_torchdynamo_disable", False):
            return False
        if getattr(forward, "_torchdynamo_orig_callable", None) is not None:
            return True
        forward = getattr(forward, "func", None)  # of functools.partial
    return False


def check_compiled(who: str, top: nn.Module, hooked: Sequence[nn.Module]) -> None:
    """Refuse hooks that compiled code would skip.

    Args:
        who: the method and the model. top: the outermost module. hooked: where hooks will hang.

    Raises:
        InputError: names what is compiled.
    """
    places = {id(module) for module in hooked}
    for name, module in top.named_modules():
        at = is_compiled(module)
        if not at and not has_compiled_forward(module):
            continue
        below = (m for m in module.modules() if at or m is not module)
        if any(id(m) in places for m in below):
            what = f"'{name}'" if name else "it"
            raise InputError(
                f"{who}: {what} is compiled, and compiled code does not run the hooks that "
                "compress works through: use the model as it was loaded, without torch.compile"
            )


def within_compiled(top: nn.Module, part: nn.Module) -> bool:
    """Whether a module runs as a part of compiled code."""
    return any(
        any(m is part for m in module.modules())
        for module in top.modules()
        if is_compiled(module) or has_compiled_forward(module)
    )
