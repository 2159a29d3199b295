"""Schemas of JSON values, in the words of JSON Schema: files are validated where they are opened.

A schema is a value made of `Object`, `Array`, `Integer` and so on; `validate` compares a value
with it and names the first field that is wrong in one line. `parse` reads JSON for it.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import InputError
from .printable import printable

#: Lists and objects inside each other: far more than files of ours have, and few enough for every
#: function that follows them.
DEEPEST = 100
#: Integers beyond have no exact number in most programs that read JSON.
LARGEST = 2**53


class Schema(ABC):
    """What a value must be."""

    @abstractmethod
    def check(self, value: Any, at: str) -> None:
        """Raises `Mismatch` where `value`, which stands at `at`, is something else."""


class Mismatch(ValueError):
    """The first field of a value that is not what its schema says."""


@dataclass(frozen=True)
class Anything(Schema):
    """Any JSON value."""

    def check(self, value: Any, at: str) -> None:
        """Passes always."""


@dataclass(frozen=True)
class Boolean(Schema):
    """True or false."""

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        if not isinstance(value, bool):
            _refuse(value, at, "true or false")


@dataclass(frozen=True)
class Integer(Schema):
    """A whole number in [minimum, maximum]."""

    minimum: int = -LARGEST
    maximum: int = LARGEST

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        if type(value) is not int or not self.minimum <= value <= self.maximum:
            _refuse(value, at, f"a whole number{_between(self.minimum, self.maximum, LARGEST)}")


@dataclass(frozen=True)
class Number(Schema):
    """A finite number in [minimum, maximum]."""

    minimum: float = -math.inf
    maximum: float = math.inf

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        right = type(value) in (int, float) and abs(value) < 1e300
        if not right or not self.minimum <= value <= self.maximum:
            _refuse(value, at, f"a number{_between(self.minimum, self.maximum, math.inf)}")


@dataclass(frozen=True)
class String(Schema):
    """Text of at most `longest` characters; one of `enum` where that is given."""

    longest: int = 1 << 20
    enum: tuple[str, ...] = ()

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        if not isinstance(value, str):
            _refuse(value, at, "text")
        if len(value) > self.longest:
            raise Mismatch(f"{at} has {len(value)} characters, more than {self.longest}")
        if self.enum and value not in self.enum:
            _refuse(value, at, f"one of {', '.join(self.enum)}")


@dataclass(frozen=True)
class Nullable(Schema):
    """Null, or what another schema says."""

    schema: Schema

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        if value is not None:
            self.schema.check(value, at)


@dataclass(frozen=True)
class Either(Schema):
    """What one of two schemas says."""

    first: Schema
    second: Schema

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        try:
            self.first.check(value, at)
        except Mismatch:
            self.second.check(value, at)


@dataclass(frozen=True)
class Array(Schema):
    """A list of [shortest, longest] equal items."""

    items: Schema = field(default_factory=Anything)
    shortest: int = 0
    longest: int = LARGEST

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        if not isinstance(value, (list, tuple)):
            _refuse(value, at, "a list")
        if not self.shortest <= len(value) <= self.longest:
            wanted = _between(self.shortest, self.longest, LARGEST)
            raise Mismatch(f"{at} has {len(value)} items, not a number{wanted}")
        for number, item in enumerate(value):
            self.items.check(item, f"{at}[{number}]")


@dataclass(frozen=True)
class Object(Schema):
    """A mapping with these properties.

    Args:
        required, optional: name → schema.
        other: the schema of all other properties; None where there may be none.
    """

    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    other: Schema | None = None

    def check(self, value: Any, at: str) -> None:
        """See `Schema.check`."""
        if not isinstance(value, Mapping):
            _refuse(value, at, "an object")
        for name in self.required:
            if name not in value:
                raise Mismatch(f"{_below(at, name)} is missing")
        for name, one in value.items():
            if not isinstance(name, str):
                _refuse(name, f"a name in {at or 'it'}", "text")
            schema = self.required.get(name) or self.optional.get(name) or self.other
            if schema is None:
                raise Mismatch(f"{_below(at, name)} is not known")
            schema.check(one, _below(at, name))


def validate(value: Any, schema: Schema, where: object, advice: str = "") -> None:
    """See that a value is what a schema says.

    Args:
        where: the file, and the row where it has some, for the message.
        advice: what to do about it, for the end of the message.

    Raises:
        InputError: "`where` is damaged: field … is …, not …: `advice`".
    """
    try:
        schema.check(value, "")
    except Mismatch as error:
        raise InputError(damage(where, str(error), advice)) from error
    except RecursionError:
        raise InputError(damage(where, "it is nested too deeply", advice)) from None


def parse(text: str | bytes, where: object, advice: str = "") -> Any:
    """The value of JSON as its standard has it: no NaN, no Infinity, no name twice in an object.

    Raises:
        InputError: it is something else, or nested too deeply.
    """
    deep = InputError(damage(where, "it is nested too deeply", advice))
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except RecursionError:
        raise deep from None
    except ValueError as error:
        reason = getattr(error, "msg", None) or str(error)
        raise InputError(damage(where, f"it is no JSON ({reason})", advice)) from error
    if _is_deeper(value, DEEPEST):
        raise deep
    return value


def damage(where: object, reason: str, advice: str = "") -> str:
    """One line on a damaged file."""
    line = f"{where} is damaged: {reason.strip()}" + (f": {advice}" if advice else "")
    return printable(line)


def _is_deeper(value: Any, most: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most == 0 or any(_is_deeper(v, most - 1) for v in inner if isinstance(v, (dict, list)))


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _refuse(value: Any, at: str, wanted: str) -> NoReturn:
    if isinstance(value, (list, dict)):
        text = f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    elif isinstance(value, int) and abs(value) > 10**40:  # its digits may be too many to write
        text = "a number of very many digits"
    else:
        text = repr(value)
    short = text if len(text) <= 60 else f"{text[:57]}…"
    raise Mismatch(f"{at or 'it'} is {short}, not {wanted}")


def _below(at: str, name: str) -> str:
    short = name if name.isidentifier() and len(name) <= 60 else repr(name[:60])
    return f"{at}.{short}" if at else f"field {short}"


def _between(low: float, high: float, limit: float) -> str:
    if low == -limit and high == limit:
        return ""
    if high == limit:
        return f" of at least {low}"
    return f" of at most {high}" if low == -limit else f" from {low} to {high}"
