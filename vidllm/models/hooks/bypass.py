"""A net under the hooks: passes of the text model that went past them do not stay unseen.

Hooks are skipped by code that was compiled before they came, by replaced `forward`s, and by calls
of a part of the model. What shows before any work is refused (`check_compiled`). For the
rest one weight that every pass reads, the text model's last norm, notes what it is multiplied
with: torch asks a tensor's class about every operation, in every thread, and compiled code is
compiled anew for another class, so that it meets the hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from vidllm.errors import InputError

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


def runs_twice(module: nn.Module) -> bool:
    """Whether backward will run parts of a module a second time (gradient checkpointing)."""
    if not (torch.is_grad_enabled() and module.training):
        return False
    return any(
        bool(getattr(m, "gradient_checkpointing", False)) or type(m).__name__ == "CheckpointWrapper"
        for m in module.modules()
    )


def in_checkpoint() -> bool:
    """Whether this code runs inside `torch.utils.checkpoint`, which backward runs again; the
    reentrant one shows only in that no gradients are kept."""
    top = cast(Any, torch._C._autograd)._top_saved_tensors_default_hooks(True)
    return top is not None and getattr(top[0], "__module__", "") == "torch.utils.checkpoint"
