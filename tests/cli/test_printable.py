"""Control characters of file names reach neither the terminal nor JSON as they are."""

from __future__ import annotations

import json

import pytest

from vidllm.cli.main import main
from vidllm.cli.options import emit, say, tell
from vidllm.errors.printable import printable, printable_json

NAME = "a\x1b]0;owned\x07\x1b[2J\u202e\x9b\udcff.mp4"
BAD = set(NAME) - set("a]0;owned[2J.mp4")


def test_control_characters_are_spelt_out() -> None:
    assert printable("a\x1b[31mb\r\n\u202ec\udcff é 你") == r"a\x1b[31mb\r\n\u202ec\udcff é 你"
    assert printable("a\n\tb\x07", lines=True) == "a\n\tb\\x07"


def test_json_keeps_its_value() -> None:
    text = printable_json(json.dumps({"name": NAME, "é": "你"}, ensure_ascii=False))
    assert json.loads(text) == {"name": NAME, "é": "你"}
    assert not BAD & set(text) and "你" in text


@pytest.mark.parametrize("word", ["ask", "index", "demo", "report"])
def test_no_message_carries_a_name_to_the_terminal_as_it_is(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = {"ask": [NAME, "who?"], "index": [NAME], "demo": ["--model", NAME], "report": [NAME]}
    assert main([word, *rest[word]]) == 2
    said = capsys.readouterr().err
    assert r"a\x1b]0;owned\x07" in said and not BAD & set(said)


def test_what_is_printed_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"note: {NAME}")
    tell(f"{NAME}\n  second line")
    emit({"video": NAME})
    said = capsys.readouterr()
    assert not BAD & set(said.out + said.err)
    assert "\n  second line\n" in said.out
