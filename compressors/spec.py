"""A compressor from a spec string: "aim", "dycoke,uniform", "per-scene:scenes=4(aim:keep=0.5)"."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields, replace
from itertools import accumulate
from typing import Any, get_args, get_type_hints

from vidllm.errors import InputError
from vidllm.errors.bounds import SPEC_DEPTH, SPEC_ITEMS, SPEC_SIGNS, number, short

from .base import Compressor
from .chain import Chain
from .registry import find, get
from .shared.parts import Wrapper
from .wrappers import WRAPPERS

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def build(spec: str, keep: float = 1.0, budget: int | None = None) -> Compressor:
    """A method or a chain from "name", "name:option=value:option=value", comma separated.

    Args:
        spec: for example "temporal-pool,uniform", "aim:faithful=true", or with a wrapper
            "per-scene:scenes=4(aim)" (see `parse_wrapped`).
        keep: share of the tokens that the whole spec keeps. budget: the exact number instead.

    Raises:
        InputError: a name, option or value that does not fit.
    """
    if len(spec) > SPEC_SIGNS:
        raise InputError(f"a compressor spec has at most {SPEC_SIGNS} signs, not {len(spec)}")
    if "(" in spec or ")" in spec:
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


def spec_of(method: Compressor) -> tuple[str, float]:
    """What `build` makes an equal method of: a spec, and the share that is given beside it.

    Raises:
        InputError: an option that no spec can say, such as a module or a chain's budget.
    """
    share = method.keep
    found = _spec(replace(method, keep=1.0) if share != 1.0 else method)
    if repr(build(found, keep=share)) != repr(method):
        raise InputError(f"{method.name} has options that cannot be written as a spec")
    return found, share


def _spec(method: Compressor) -> str:
    return ",".join(map(_item_spec, method.methods))


def _item_spec(method: Compressor) -> str:
    options = [
        f"{item.name}={_written(getattr(method, item.name))}"
        for item in fields(method)
        if item.init and item.name != "inner" and getattr(method, item.name) != _usual(item)
    ]
    written = ":".join([type(method).name, *options])
    return f"{written}({_spec(method.inner)})" if isinstance(method, Wrapper) else written


def _usual(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


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


def parse_wrapped(spec: str, keep: float = 1.0, budget: int | None = None) -> Compressor:
    """`build` for specs with wrappers: WRAPPER[:OPTION=VALUE...](SPEC), comma separated.

    For example "per-scene:scenes=4(temporal-pool,uniform)", or, as a wrapper may stand wherever
    a method may, "random:keep=0.5,protect:first=1:last=1(frame-budget:by=uniform(aim))". Lists
    are joined by a plus sign, as in "protect:frames=0+-1(aim)".

    Args:
        keep: share of the tokens that the whole spec keeps. budget: the exact number instead.

    Raises:
        InputError: brackets that do not close, or a name, option or value that does not fit.
    """
    if len(spec) > SPEC_SIGNS:
        raise InputError(f"a compressor spec has at most {SPEC_SIGNS} signs, not {len(spec)}")
    depths = list(accumulate((char == "(") - (char == ")") for char in spec))
    if any(depth < 0 for depth in depths) or (depths and depths[-1]):
        raise InputError(f"compressor spec {short(spec)}: the brackets do not match")
    if max(depths, default=0) > SPEC_DEPTH:
        raise InputError(
            f"a compressor spec has at most {SPEC_DEPTH} wrappers inside each other, not "
            f"{max(depths)}"
        )
    cuts = [i for i, char in enumerate(spec) if char == "," and not depths[i]]
    items = [spec[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(spec)], strict=True)]
    if len(items) > SPEC_ITEMS:
        raise InputError(f"a compressor spec has at most {SPEC_ITEMS} methods, not {len(items)}")
    if len(items) > 1:
        return Chain([_single(item, {}) for item in items], keep=keep, budget=budget)
    given: dict[str, Any] = {} if keep == 1.0 else {"keep": keep}
    return _single(items[0], given if budget is None else {**given, "budget": budget})


def _single(spec: str, given: dict[str, Any]) -> Any:
    if "(" not in spec:
        return build(spec, **given)
    match = re.fullmatch(r"\s*([\w-]+)\s*((?::[^:()]*)*)\((.*)\)\s*", spec, re.DOTALL)
    name = match[1].lower().replace("_", "-") if match else spec
    if match is None or name not in WRAPPERS:
        raise InputError(
            f"no wrapper {name!r}: write WRAPPER(METHOD) with one of {', '.join(WRAPPERS)}"
        )
    known = {f.name: str(f.type) for f in fields(WRAPPERS[name]) if f.name != "inner"}
    options = {}
    for pair in match[2].split(":")[1:]:
        option, _, text = (piece.strip() for piece in pair.partition("="))
        if option not in known or option in given:
            why = "is given twice" if option in given else f"is none of {', '.join(known)}"
            raise InputError(f"option {option!r} of wrapper {name!r} {why}")
        options[option] = _wrapper_value(name, option, text, known[option])
    return WRAPPERS[name](parse_wrapped(match[3]), **options, **given)


def _wrapper_value(name: str, option: str, text: str, kind: str) -> Any:
    if "Literal" in kind:
        return text
    whole = "int" in kind
    words = text.split("+") if "Sequence" in kind else [text]
    try:
        values = [number(option, word, whole=whole, told=f"{name}: {option}") for word in words]
        return tuple(values) if "Sequence" in kind else values[0]
    except InputError:
        raise
    except ValueError:
        wanted = "a whole number" if whole else "a number"
        raise InputError(f"option {option} of {name!r} must be {wanted}, not {text!r}") from None
