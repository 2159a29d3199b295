"""Every parameter of every command with values that nobody means: one line each, in one process."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vidllm.cli.application import app
from vidllm.cli.failures import ClickException as CLICK
from vidllm.cli.main import main
from vidllm.cli.plugins import Commands
from vidllm.errors import InputError
from vidllm.errors.bounds import (
    BOUNDS,
    REAL,
    WHOLE,
    check,
    guard_command,
    number,
    read_shares,
    within,
)
from vidllm.errors.paths import input_file, input_folder, output_file, output_folder

HUGE = "9" * 30
VALUES = ("0", "-1", "nan", "inf", "-inf", "1e308", HUGE, "1" * 5000, "", "zwölf", "٣", "1;2")
#: Checked by `vidllm.tokens.budget.Limits`, whose line names the limit.
OF_LIMITS = ("max_pixels", "max_seconds", "max_frames")


def commands(found: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words, loaded."""
    inside = getattr(found, "commands", None)
    if isinstance(found, Commands):
        inside = {name: found.get_command(None, name) for name in found.list_commands(None)}
        inside = {k: c.load() if hasattr(c, "load") else c for k, c in inside.items()}
    if inside:
        for name, command in inside.items():
            yield from commands(command, (*words, name))
    else:
        yield words, found


ALL = dict(commands(typer.main.get_command(app)))
#: One benchmark stands for all: their parameters are the same, from the same pattern.
FEW = {w: c for w, c in ALL.items() if w[0] != "eval" or w[1] in ("stage", "charades", "score")}


def filled(command: Any, besides: str, missing: str) -> list[str]:
    """Arguments and options that a command must have, so that it ends before any work."""
    words = []
    for parameter in command.params:
        if parameter.name == besides or not parameter.required:
            continue
        long = [word for word in parameter.opts if word.startswith("--")]
        words += [*long[:1], missing]
    return words


def ended(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ended with: a mistake of the user, or nothing wrong."""
    code = main(words)
    said = capsys.readouterr().err.strip().splitlines()
    last = said[-1] if said else ""
    assert code in (0, 1, 2), (words, code)
    assert "--debug shows where" not in last and "Traceback" not in last, last
    assert code == 0 or (last.startswith("vidllm: ") and len(last) < 3000), (words, said)
    return last if code else ""


@pytest.mark.parametrize("words", FEW, ids=" ".join)
def test_no_value_gets_past_the_bounds(words: tuple[str, ...], tmp_path: Path) -> None:
    """A value that its bound does not allow is refused by name where it is read."""
    command, missing = guard_command(FEW[words]), str(tmp_path / "missing" / "x.mp4")
    for parameter in command.params:
        name, long = str(parameter.name), [w for w in parameter.opts if w.startswith("--")]
        if not long or getattr(parameter, "is_flag", False) or name in OF_LIMITS:
            continue
        kind = str(getattr(parameter, "type_descriptor", getattr(parameter, "type", "")))
        numeric = re.search(r"\b(int|float|INT|FLOAT)\b", kind) is not None
        if not numeric:
            continue
        bound = BOUNDS.get(name, REAL if "float" in kind.lower() else WHOLE)
        for value in VALUES:
            try:
                allowed = bound.allows(int(value) if bound.whole else float(value))
            except ValueError:
                allowed = False
            if allowed:
                continue  # the command would go on to work
            given = [*filled(command, name, missing), f"{long[0]}={value}"]
            with pytest.raises((InputError, CLICK)) as caught:
                command.make_context(" ".join(words), given)
            error: Any = caught.value
            line = str(error) if isinstance(error, InputError) else error.format_message()
            assert long[0] in line, (words, value[:20], line)


SHARED = [w for w, c in FEW.items() if any(p.name == "keep" for p in c.params)]


@pytest.mark.parametrize("words", SHARED, ids=" ".join)
def test_a_share_is_a_percentage_too(words: tuple[str, ...], tmp_path: Path) -> None:
    command, missing = guard_command(FEW[words]), str(tmp_path / "missing" / "x.mp4")
    given = filled(command, "keep", missing)
    for text in ("10%", "0.1"):
        context = command.make_context(" ".join(words), [*given, "--keep", text])
        assert float(context.params["keep"]) == 0.1
    for text in ("0%", "101%", "ten%", "%"):
        with pytest.raises(InputError, match="or a percentage such as 10%"):
            command.make_context(" ".join(words), [*given, "--keep", text])


def test_shares_of_lists_and_of_specs_are_percentages_too() -> None:
    from vidllm.compressors import build

    assert read_shares("1, 50%,12.5 %") == [1.0, 0.5, 0.125]
    assert build("random:keep=12.5%,aim") == build("random:keep=0.125,aim")
    for wrong in ("0.5,", "0.5,150%", "a,b"):
        with pytest.raises(InputError, match="such as 10%"):
            read_shares(wrong)


def test_texts_and_paths_of_every_kind_are_refused_or_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Commands that end where their video, model, run or output is looked at."""
    places = bad_places(tmp_path)
    for place in places.values():
        for words in (
            ["ask", place, "what?"],
            ["ground", place, "it spins"],
            ["caption", place],
            ["index", place],
            ["library", "list", place],
            ["library", "ground", place, "it spins"],
            ["report", place],
            ["eval", "score", place],
            ["eval", "compare", place, place],
            ["eval", "charades", "--data", place],
            ["ask", "none.mp4", "what?", "--model", place],
        ):
            assert ended(words, capsys), words
    for words in (
        ["ask", "none.mp4", ""],
        ["ask", "none.mp4", "  "],
        ["ask", "none.mp4", "what \udcff?"],
        ["ask", "none.mp4", "a " * 200_000],
        ["ask", "https://example.com/x.mp4", "what?"],
        ["list", "\udcff"],
        ["list", "models", "[" * 3000],
        ["cost", "--compressor", "protect(" * 300 + "aim" + ")" * 300, "--keep", "0.5"],
        ["cost", "--compressor", ",".join(["uniform"] * 3000), "--keep", "0.5"],
        ["cost", "--model", "qwen2.5-vl-7b", "--frames", "1000000"],
        ["cost", "--keep", "nan"],
        ["cost", "--seconds", "prefill=nan"],
    ):
        assert ended(words, capsys), words


def bad_places(folder: Path) -> dict[str, str]:
    """Paths at which no file and no folder of anything can be, by kind."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "sock"))
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_text("words")
    return {
        "pipe": str(folder / "pipe"),
        "socket": str(folder / "sock"),
        "device": "/dev/zero",
        "through a device": "/dev/null/x",
        "through a file": str(folder / "file" / "x"),
        "link to nothing": str(folder / "dangling"),
        "loop": str(folder / "loop"),
        "long": str(folder / ("x" * 300)),
        "longer": "/".join(["x" * 200] * 40),
        "half a sign": str(folder / "a\ud800b"),
        "null": str(folder / "a\0b"),
        "nothing": "",
    }


def test_every_bad_place_is_refused_where_it_is_read_and_written(tmp_path: Path) -> None:
    places = bad_places(tmp_path)
    for kind, place in places.items():
        for look in (input_file, input_folder, output_file, output_folder):
            with pytest.raises(InputError) as caught:
                look(place)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 600, kind
    with pytest.raises(InputError, match="is a folder"):
        output_file(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        output_folder(tmp_path / "file")
    with pytest.raises(InputError, match="is no folder"):
        input_folder(tmp_path / "file")
    assert output_file(tmp_path / "new" / "deep" / "x") == tmp_path / "new" / "deep" / "x"
    assert input_file(tmp_path / "file") == tmp_path / "file"
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", "sock", "dangling", "loop", "file"}


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    place = Path("/proc/vidllm-out")  # not even for those who may everything
    with pytest.raises(InputError, match="cannot be written"):
        output_folder(place)
    with pytest.raises(InputError, match="cannot be written"):
        output_file(place / "x.csv")


def test_numbers_are_held_against_their_bounds() -> None:
    for name, value in (("frames", 10**9), ("fps", float("nan")), ("keep", True), ("seed", -1),
                        ("tokens", 2.5), ("budget", None), ("frames", "8")):  # fmt: skip
        with pytest.raises(InputError, match=rf"--{name} must be .*, got "):
            check(name, value, f"--{name}")
    check("keep", 1)
    check("frames", 8.0)
    with pytest.raises(InputError, match="about 5000 digits"):
        within(WHOLE, 10**4999, "x")
    with pytest.raises(InputError, match="5000 digits"):
        number("budget", "1" * 5000, whole=True, told="aim: budget")
