"""Compressors by name: register, find, list, describe, and build from a spec string."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields
from fnmatch import fnmatch
from typing import Any, TypeVar, get_args, get_type_hints

from vidllm.errors import InputError
from vidllm.errors.bounds import SPEC_ITEMS, SPEC_SIGNS, number

from .base import Compressor
from .chain import Chain

#: What `describe` says of the parameters of a method that has some.
UNTRAINED = "no: it has parameters, and no trained ones are shipped"
_REGISTRY: dict[str, type[Compressor]] = {}
_C = TypeVar("_C", bound=type[Compressor])
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def register(name: str) -> Callable[[_C], _C]:
    """Class decorator, above `@dataclass`: make a method available under `name`."""

    def add(cls: _C) -> _C:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def names(pattern: str = "*") -> list[str]:
    """Registered names that match a wildcard pattern such as "*pool*", sorted."""
    return sorted(name for name in _REGISTRY if fnmatch(name, pattern))


def find(name: str) -> type[Compressor]:
    """The class registered under `name` (underscores count as hyphens).

    Raises:
        InputError: no such method; the message names close matches.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in _REGISTRY:
        raise InputError(f"no compressor {name!r}: {_suggest(key, names())}")
    return _REGISTRY[key]


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
    training; `same_as` names a method that leaves the same tokens.
    """
    entries = []
    for name in names(pattern):
        cls = _REGISTRY[name]
        options = {
            f.name: {"default": f.default, "help": f.metadata.get("help", "")} for f in fields(cls)
        }
        entries.append(
            {
                "name": name,
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


def build(spec: str, keep: float = 1.0, budget: int | None = None) -> Compressor | Chain:
    """A method or a chain from "name", "name:option=value:option=value", comma separated.

    Args:
        spec: for example "temporal-pool,uniform", "aim:faithful=true", or with a wrapper
            "per-scene:scenes=4(aim)" (see `wrappers.parse_wrapped`).
        keep: share of the tokens that the whole spec keeps. budget: the exact number instead.

    Raises:
        InputError: a name, option or value that does not fit.
    """
    if len(spec) > SPEC_SIGNS:
        raise InputError(f"a compressor spec has at most {SPEC_SIGNS} signs, not {len(spec)}")
    if "(" in spec or ")" in spec:
        from .wrappers import parse_wrapped  # the wrappers need this file

        return parse_wrapped(spec, keep=keep, budget=budget)
    parts = [part.strip() for part in spec.split(",")]
    if len(parts) > SPEC_ITEMS:
        raise InputError(f"a compressor spec has at most {SPEC_ITEMS} methods, not {len(parts)}")
    if not all(parts):
        raise InputError(f"compressor spec {spec!r} has an empty name: write NAME[,NAME]")
    items = [_item(part) for part in parts]
    if len(items) > 1:
        return Chain(items, keep=keep, budget=budget)
    name, options = parts[0].split(":")[0], _options(parts[0])
    if keep != 1.0:
        if "keep" in options:
            raise InputError(f"keep is given twice, in {spec!r} and as keep={keep:g}")
        options["keep"] = keep
    if budget is not None:
        if "budget" in options:
            raise InputError(f"budget is given twice, in {spec!r} and as budget={budget}")
        options["budget"] = budget
    return get(name, **options)


def _item(part: str) -> Compressor:
    return get(part.split(":")[0], **_options(part))


def _options(part: str) -> dict[str, Any]:
    name, *pairs = part.split(":")
    hints = get_type_hints(find(name))
    options: dict[str, Any] = {}
    for pair in pairs:
        option, equals, text = (piece.strip() for piece in pair.partition("="))
        if not equals or not option or not text:
            raise InputError(f"option {pair!r} of compressor {name!r} must be OPTION=VALUE")
        options[option] = _value(name, option, text, hints.get(option, str))
    return options


def _value(name: str, option: str, text: str, hint: Any) -> Any:
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    try:
        if bool in kinds:
            return _WORDS[text.lower()]
        if int in kinds or float in kinds:
            return number(option, text, whole=int in kinds, told=f"{name}: {option}")
        return text
    except InputError:
        raise
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kinds[0]]
        raise InputError(
            f"option {option} of compressor {name!r} must be {wanted}, not {text!r}"
        ) from None


def _suggest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(known)}"
