"""`generate` while a method is at work: what it is asked for is seen before it does anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any


@contextmanager
def guarded(model: Any, look: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Let `look` see the arguments of every `generate` first, by name; what it raises is raised.

    A model without `generate` is left as it is, and every model behind the block.
    """
    plain = getattr(model, "generate", None)
    if plain is None:
        yield
        return
    own = vars(model).get("generate")
    signature = inspect.signature(plain)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    @wraps(plain)
    def generate(*args: Any, **kwargs: Any) -> Any:
        told = dict(signature.bind_partial(*args, **kwargs).arguments)
        for name in rest:
            told |= told.pop(name, {})
        if told.get("input_ids") is None and told.get("inputs") is not None:
            told["input_ids"] = told["inputs"]
        look(told)
        return plain(*args, **kwargs)

    model.generate = generate
    try:
        yield
    finally:
        if own is None:
            del model.generate
        else:
            model.generate = own
