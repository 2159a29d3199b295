"""Compressors by name: register, find, list and describe."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.registry import Registry, did_you_mean

from .base import Compressor

#: What `describe` says of the parameters of a method that has some.
UNTRAINED = "no: it has parameters, and no trained ones are shipped"
_REGISTRY: Registry[Compressor] = Registry(
    "compressor", base=Compressor, group="vidllm.compressors"
)
register, names, packages = _REGISTRY.register, _REGISTRY.names, _REGISTRY.packages


def find(name: str) -> type[Compressor]:
    """The class registered under `name` (underscores count as hyphens).

    Raises:
        InputError: no such method; the message names close matches. Or one of another package
            that cannot be used.
    """
    key = name.strip().lower().replace("_", "-")
    if not _REGISTRY.has(key):
        raise InputError(f"no compressor {name!r}: {_suggest(key, names())}")
    return _REGISTRY.find(key)


def get(name: str, **options: Any) -> Compressor:
    """Build one method with its fields as options.

    Raises:
        InputError: no such method, no such option, or a value that the method refuses.
    """
    cls = find(name)
    known = [f.name for f in fields(cls)]
    for option in options:
        if option not in known:
            raise InputError(
                f"compressor {cls.name!r} has no option {option!r}: {_suggest(option, known)}"
            )
    return cls(**options)


def describe(pattern: str = "*") -> list[dict[str, Any]]:
    """One entry a method: what it is, what it needs, and its options with help and default.

    `trained` is empty for methods without parameters and says of the others that they need
    training; `same_as` names a method that leaves the same tokens; `package` is where it is from.
    """
    entries, outside = [], packages()
    for name in names(pattern):
        cls = find(name)
        options = {
            f.name: {"default": f.default, "help": f.metadata.get("help", "")} for f in fields(cls)
        }
        entries.append(
            {
                "name": name,
                "package": outside.get(name, "vidllm"),
                "stage": cls.stage,
                "query_aware": cls.query_aware,
                "needs": list(cls.needs),
                "trained": UNTRAINED if cls.has_parameters else "",
                "same_as": cls.same_as,
                "paper": cls.paper,
                "summary": cls.summary,
                "options": options,
            }
        )
    return entries


def _suggest(word: str, known: list[str]) -> str:
    every = f"choose from {', '.join(known)}"
    return did_you_mean(word, known, n=3, cutoff=0.5, otherwise=every)
