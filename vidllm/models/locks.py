"""One model, several threads: what works on a model's layers does so one thread at a time.

Methods act through hooks on the layers, and hooks see the passes of every thread. So whoever asks
a model holds its lock until the answer is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from vidllm.errors import InputError
from vidllm.progress import Listener, check

if TYPE_CHECKING:
    from torch import nn

_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_MAKING = threading.Lock()
#: Models that are compressed, and the thread that does it.
_COMPRESSED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_PATIENCE = 0.05  # seconds between two looks at a listener that may end the waiting

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock of a model, the same for all who ask it; a thread may take it again and again."""
    with _MAKING:
        return _LOCKS.setdefault(module, threading.RLock())


@contextmanager
def alone(module: nn.Module, listener: Listener | None = None) -> Iterator[None]:
    """Wait until no other thread asks this model, and keep others waiting in this block.

    Raises:
        Stopped: the listener wanted the work to end while it waited.
    """
    lock = lock_of(module)
    while not lock.acquire(timeout=-1 if listener is None else _PATIENCE):
        check(listener)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def compressed_once(module: nn.Module) -> Iterator[None]:
    """A block in which nothing else compresses this model.

    Raises:
        InputError: it is compressed already.
    """
    with alone(module):  # `VideoLLM.ask` of another thread comes to its end
        opener = _COMPRESSED.get(module)
        if opener == threading.get_ident():
            raise InputError("this model is compressed already: put the methods into one chain")
        if opener is not None:
            raise InputError(
                "this model is compressed already, by another thread: use the block of that "
                "thread, or open this one when it is left"
            )
        _COMPRESSED[module] = threading.get_ident()
    try:
        yield
    finally:
        _COMPRESSED.pop(module, None)


def one_at_a_time(method: F) -> F:
    """A method during which no other thread works on the same model: the others wait.

    Its object tells the module whose lock is held as `worked_on`.
    """

    @wraps(method)
    def waits(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        with alone(self.worked_on, kwargs.get("listener")):
            return method(self, *args, **kwargs)

    return cast(F, waits)


class Shared(Generic[T]):
    """A value that the thread which made this sets for all threads, and others for themselves.

    Args:
        value: at first.
    """

    def __init__(self, value: T) -> None:
        self._value, self._maker = value, threading.get_ident()
        self._own = threading.local()

    def get(self) -> T:
        """The thread's own value where it has set one, or else the one for all."""
        own: T = getattr(self._own, "value", self._value)
        return own

    def set(self, value: T, *, told: bool = False) -> None:
        """Set the value; `told` lets the maker see what other threads set last."""
        maker = threading.get_ident() == self._maker
        if maker or told:
            self._value = value
        if not maker:
            self._own.value = value
