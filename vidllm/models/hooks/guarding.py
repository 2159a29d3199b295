"""`generate` while a method is at work: what it is asked for is seen before it does anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any


@contextmanager
def guarded(
    model: Any, around: Callable[[Mapping[str, Any]], AbstractContextManager[None]]
) -> Iterator[None]:
    """Run every `generate` inside `around`, which sees its arguments by name.

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
        with around(told):
            return plain(*args, **kwargs)

    model.generate = generate
    try:
        yield
    finally:
        if own is None:
            del model.generate
        else:
            model.generate = own
