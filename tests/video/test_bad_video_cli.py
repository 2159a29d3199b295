"""Bad video files through the command line, as a process: exit code 2, one line, no traceback."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from processes import vidllm
from videos import bad_inputs, write_video

KINDS = (
    "text named mp4", "text", "playlist", "audio only", "empty", "missing", "folder", "no header",
)  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_inputs(tmp_path_factory.mktemp("bad"))


def _ask(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return vidllm("ask", path, "When?", *options)


def _refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_refused_in_one_line(kind: str, bad: dict[str, Path]) -> None:
    assert bad[kind].name in _refused(_ask(bad[kind]))


def test_json_changes_nothing_about_a_refusal(bad: dict[str, Path]) -> None:
    _refused(_ask(bad["text named mp4"], "--json"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--frames", "0"), "frames"),
        (("--fps", "-1"), "fps"),
        (("--start", "9"), "start"),
        (("--start", "2", "--end", "1"), "start"),
        (("--reader", "magic"), "reader"),
        (("--max-pixels", "100"), "max"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    options: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "good.mp4", 60)
    assert says in _refused(_ask(path, *options))
