"""Values are compared with schemas, and what is wrong is named in one line."""

from __future__ import annotations

from typing import Any

import pytest

from vidllm.errors import InputError
from vidllm.errors.schema import (
    Anything,
    Array,
    Boolean,
    Integer,
    Nullable,
    Number,
    Object,
    Schema,
    String,
    parse,
    validate,
)

ROW = Object(
    {"id": String(longest=8), "number": Integer(0, 100), "spans": Array(Array(Number(0), 2, 2))},
    {"value": Nullable(Number(0, 1)), "kind": String(enum=("a", "b")), "on": Boolean()},
)
RIGHT: dict[str, Any] = {"id": "x", "number": 3, "spans": [[0, 1.5]]}


@pytest.mark.parametrize("more", [{}, {"value": None}, {"value": 0.5}, {"kind": "b", "on": True}])
def test_what_is_right_passes(more: dict[str, Any]) -> None:
    validate({**RIGHT, **more}, ROW, "rows.jsonl")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"number": 3, "spans": []}, "field id is missing"),
        ({**RIGHT, "number": True}, "field number is True, not a whole number from 0 to 100"),
        ({**RIGHT, "number": 3.0}, "field number is 3.0, not a whole number"),
        ({**RIGHT, "number": 101}, "field number is 101"),
        ({**RIGHT, "number": 10**5000}, "a number of very many digits"),
        ({**RIGHT, "spans": [[0, 1], [2, "3"]]}, "field spans[1][1] is '3', not a number"),
        ({**RIGHT, "spans": [[0]]}, "field spans[0] has 1 items"),
        ({**RIGHT, "value": float("nan")}, "field value is nan, not a number from 0 to 1"),
        ({**RIGHT, "value": 10**400}, "field value is a number of very many digits"),
        ({**RIGHT, "kind": "c"}, "field kind is 'c', not one of a, b"),
        ({**RIGHT, "id": "123456789"}, "field id has 9 characters"),
        ({**RIGHT, "new\x1b[2J": 1}, r"field 'new\x1b[2J' is not known"),
        ([RIGHT], "it is a list of 1, not an object"),
        (None, "it is None, not an object"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(value: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        validate(value, ROW, "line 3 of rows.jsonl", "delete the line")
    line = str(error.value)
    assert line.startswith("line 3 of rows.jsonl is damaged: ")
    assert said in line and line.endswith(": delete the line")
    assert line.isprintable() and len(line) < 300


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}', "[" * 200_000, "", b"\xff", "1 2"],
)
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"run\.json is damaged: it is n"):
        parse(text, "run.json")


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: Any = []
    schema: Schema = Anything()
    for _ in range(100_000):
        deep, schema = [deep], Array(schema)
    with pytest.raises(InputError, match="nested too deeply"):
        validate(deep, schema, "facts")
