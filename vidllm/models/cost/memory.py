"""Memory of tensors while a block runs, counted exactly: by storage on a CPU, by CUDA's allocator.

The process's own size tells little of a CPU run: what torch frees is kept for later.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """The most bytes of tensors that were made in this block and alive at the same time.

    What an operation makes and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    @property
    def megabytes(self) -> float:
        """The most, in MB (10⁶ bytes)."""
        return self.most / 1e6

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _real(leaf)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if not _real(leaf):
                continue
            storage = leaf.untyped_storage()
            if id(storage) in self.known or id(storage) in given:
                continue  # a view, or what was there before
            self.known.add(id(storage))
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        return made

    def _gone(self, number: int, size: int) -> None:
        self.known.discard(number)
        self.now -= size


def _real(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided


class CudaPeak:
    """The most bytes that CUDA's allocator held above what it held before the block."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.megabytes = device, 0.0

    def __enter__(self) -> CudaPeak:
        torch.cuda.reset_peak_memory_stats(self.device)
        self.before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        most = torch.cuda.max_memory_allocated(self.device)
        self.megabytes = (most - self.before) / 1e6


def tensor_peak(device: torch.device) -> Allocated | CudaPeak:
    """A block that tells its `megabytes` of tensors on this device."""
    return CudaPeak(device) if device.type == "cuda" else Allocated()
