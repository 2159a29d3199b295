"""The matrix products of a layer, to be timed beside it: its projections and those of its scan.

They are recorded while the layer runs once, and run again on other numbers: one set of operands a
shape, so that small products find theirs in the cache. What a layer takes beyond them is what its
elementwise work, its copies and its calls cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_PRODUCTS = {
    packet.default
    for packet in (
        *(
            _ATEN.mm,
            _ATEN.addmm,
            _ATEN.bmm,
            _ATEN.baddbmm,
            _ATEN.mv,
            _ATEN.addmv,
            _ATEN.convolution,
        ),
        _ATEN._scaled_dot_product_flash_attention_for_cpu,
        *(_ATEN._scaled_dot_product_flash_attention, _ATEN._scaled_dot_product_efficient_attention),
    )
}


class _Recorder(TorchDispatchMode):
    """Every product that is called, and its arguments without their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.operands: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            stood_in = tuple(self._stand_in(place, value) for place, value in enumerate(args))
            self.calls.append((func, stood_in, kwargs))
        else:  # in inference mode products may come inside others, such as linear
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return func(*args, **kwargs)

    def _stand_in(self, place: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # A row that is repeated, such as a bias, needs no more room than it has.
        key = place, value.shape, value.stride(), value.dtype
        if key not in self.operands:
            room = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
            flat = torch.randn(room, device=value.device).to(value.dtype)
            self.operands[key] = flat.as_strided(value.shape, value.stride())
        return self.operands[key]


def products(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """The matrix products of `layer` on `x`, as a function that runs them again."""
    recorder = _Recorder()
    with recorder:
        layer(x)

    def run() -> None:
        _run(recorder.calls)

    return run


def _run(calls: Sequence[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
    for func, args, kwargs in calls:
        func(*args, **kwargs)
