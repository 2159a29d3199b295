"""``vidllm index``, ``vidllm library``, and an index in the place of a video, from the shell."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from long_tiny import save_loud
from videos import write_video

from vidllm import VideoIndex
from vidllm.cli.main import main
from vidllm.longvideo.parts import folder_of

QUERY = "the red star spins"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_loud(tmp_path_factory.mktemp("m") / "loud")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("v") / "v.mp4", 150, fps=1, size=(64, 48))


def spoken(err: str) -> list[str]:
    """Lines on standard error, without the bar of transformers, which this process lets through."""
    return [
        line for line in err.split("\n") if line and not line.lstrip("\r").startswith("Loading")
    ]


class Shell:
    """Runs the command line in this process."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.capsys = model, capsys

    def __call__(self, *words: object) -> tuple[int, str, list[str]]:
        """Exit code, standard output, lines on standard error."""
        self.capsys.readouterr()
        code = main([*map(str, words)])
        out, err = self.capsys.readouterr()
        return code, out, spoken(err)

    def asks(self, *words: object) -> tuple[int, str, list[str]]:
        return self(*words, "--model", self.model, "--device", "cpu")

    def refused(self, *words: object) -> str:
        """The one line of a command that is refused."""
        code, out, lines = self(*words)
        assert (code, out, len(lines)) == (2, "", 1), lines
        assert lines[0].startswith("vidllm: ")
        return lines[0]

    def json(self, *words: object) -> dict[str, Any]:
        code, out, lines = self.asks(*words, "--json")
        assert code == 0, lines
        return dict(json.loads(out))


@pytest.fixture
def shell(model: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(model, capsys)


@pytest.fixture(scope="module")
def index(model: Path, video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i") / "v.vidx"
    assert main(["index", str(video), "-o", str(path), "--model", str(model)]) == 0
    return path


def test_index_says_what_it_did(shell: Shell, video: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.vidx"
    code, out, lines = shell.asks("index", video, "-o", path)
    assert (code, out) == (0, f"{path}\n")
    (line,) = lines
    size = path.stat().st_size / 1e6
    assert line.startswith("2:30 indexed in 0:0") and "×) · 150 frames, 150 encoded · " in line
    assert line.endswith(f" · {size:.3g} MB ({size / 2.5:.2g} MB a minute)")
    code, out, lines = shell.asks("index", video, "-o", path)
    assert (code, out) == (0, f"{path}\n")
    assert lines[0].startswith("2:30 was indexed before, with the same settings")
    told = shell.json("index", video, "-o", path, "--force", "--near", 0, "--precision", "float32")
    assert told["index"] == str(path) and told["video"] == str(video)
    assert told["made"]["frames"] == 150 and told["complete"] and told["lost"] == []
    assert told["recipe"] == "temporal-pool:keep=0.25" and told["near_error"] == 0
    assert told["mb_per_minute"] == pytest.approx(path.stat().st_size / 2.5e6, rel=0.01)


def test_ask_ground_and_caption_take_an_index(shell: Shell, index: Path, video: Path) -> None:
    held = VideoIndex.load(index)
    code, out, lines = shell.asks("ground", index, QUERY)
    assert code == 0 and " s – " in out
    assert lines[0].startswith("note: looked at 2 windows of 2:00")
    assert lines[1].startswith("note: then closely at ") and "tokens 600 → " in lines[-1]
    told = shell.json("ground", index, QUERY)
    assert told["video"] in (str(index), str(video)) and told["spans"]
    asked = shell.json("ask", index, f"when does {QUERY}?")
    assert asked["text"] and asked["receipt"]["frames"] == 150
    told = shell.json("caption", index, "--start", 30, "--end", 90)
    assert all(30 <= a <= b <= 90 for a, b in told["spans"])
    assert held.path.read_bytes() == index.read_bytes()


def test_a_chat_about_an_index_and_captions_a_line_each(
    shell: Shell, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"when does {QUERY}?\nwhat spins?\n"))
    code, out, _ = shell.asks("chat", index, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [one["question"] for one in told] == [f"when does {QUERY}?", "what spins?"]
    assert told[0]["spans"] and told[0]["receipt"]["frames"] == 150
    assert "--max-new-tokens" in shell.refused("chat", index, "--max-new-tokens", 5)
    spans = shell.json("caption", index)["spans"]
    code, out, _ = shell.asks("caption", index)
    assert code == 0 and out.count("\n") == max(1, len(spans))


def test_what_makes_no_sense_for_an_index_is_refused(
    shell: Shell, index: Path, video: Path, tmp_path: Path
) -> None:
    for option, value in (("--frames", 8), ("--fps", 1), ("--tokens", 9), ("--keep", 0.5),
                          ("--compressor", "uniform"), ("--start", 3), ("--reader", "decord"),
                          ("--max-new-tokens", 5), ("--recipe", "storm")):  # fmt: skip
        line = shell.refused("ask", index, "when?", option, value)
        assert option in line and "index" in line
    assert "--show-prompt" in shell.refused("ground", index, QUERY, "--show-prompt")
    assert "QUERY is empty" in shell.refused("ground", index, " ")
    assert "start and end" in shell.refused(
        "caption", index, "--start", 900, "--model", shell.model
    )
    assert "another model" in shell.refused("ask", index, "when?")  # than the shipped one
    for option, value in (("--frames", 8), ("--start", 3), ("--tokens", 9), ("--max-frames", 9)):
        assert option in shell.refused("index", video, option, value)
    bad = tmp_path / "bad.vidx"
    bad.write_bytes(index.read_bytes()[:-9])
    assert "bad.vidx is damaged" in shell.refused("ask", bad, "when?")
    assert "no such file" in shell.refused("index", tmp_path / "none.mp4")
    assert "is no index" in shell.refused(
        "index", video, "-o", video, "--model", shell.model, "--force"
    )
    taken = shell.refused("index", video, "-o", index, "--fps", 2, "--model", shell.model)
    assert "fps 1, not 2: --force" in taken
    assert "nasva" in shell.refused("index", video, "--compressor", "nasva", "--keep", 0.5,
                                    "--model", shell.model)  # fmt: skip
    assert "no such" in shell.refused("ask", tmp_path / "none.vidx", "when?")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "squeezetime"], "leave out --recipe squeezetime"),
        (["--model", "vidllm-squeezetime"], "leave out --model"),
    ],
)
def test_a_system_that_makes_no_index_is_refused_by_what_brought_it(
    capsys: pytest.CaptureFixture[str], video: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    for command in (
        ["index", video, "--out", tmp_path / "v.vidx"],
        ["library", "add", tmp_path / "lib", video],
    ):
        assert main([*map(str, command), *words, "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        (line,) = spoken(err)
        assert out == "" and "an index needs a video-LLM" in line and line.endswith(says)


def test_a_library_from_the_shell(shell: Shell, index: Path, tmp_path: Path) -> None:
    folder, more = tmp_path / "library", []
    for k in (1, 2):
        more.append(write_video(tmp_path / f"w{k}.mp4", 10 * k, fps=1, size=(64, 48), noise=k))
    code, out, lines = shell.asks("library", "add", folder, index, *more)
    assert (code, out) == (0, "") and lines == ["v: 2:30", "w1: 0:10", "w2: 0:20"]
    code, out, lines = shell("library", "list", folder)
    assert code == 0 and lines == []
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["v", "2:30"], ["w1", "0:10"], ["w2", "0:20"],
    ]  # fmt: skip
    code, out, lines = shell.asks("library", "ground", folder, QUERY, "--limit", 4)
    assert code == 0 and len(out.splitlines()) == 4
    assert lines[-1].startswith("4 moments in 3 videos · ")
    told = shell.json("library", "ground", folder, QUERY)
    assert {hit["name"] for hit in told["hits"]} <= {"v", "w1", "w2"}
    assert shell("library", "remove", folder, "w1")[0] == 0
    listed = json.loads(shell("library", "list", folder, "--json")[1])
    assert [entry["name"] for entry in listed["videos"]] == ["v", "w2"]
    (folder / "v.vidx").unlink()
    lines = shell("library", "list", folder)[2]
    assert len(lines) == 1 and "v.vidx is missing" in lines[0]
    assert "v.vidx is missing" in shell.asks("library", "ground", folder, QUERY)[2][0]
    code, out, lines = shell.asks("library", "add", folder, tmp_path / "none.mp4", more[0])
    assert code == 1 and "none.mp4: no such file" in lines[0] and lines[1] == "w1: 0:10"
    assert lines[2] == "vidllm: 1 of 2 were not added: none.mp4"
    assert "no video 'x'" in shell.refused("library", "remove", folder, "x")
    assert "is no library" in shell.refused("library", "list", tmp_path / "nothing")
    assert "is no library" in shell.refused("library", "ground", tmp_path / "nothing", QUERY)
    assert "--frames" in shell.refused("library", "ground", folder, QUERY, "--frames", 3)


def test_ctrl_c_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "busy.mp4", 480, fps=2, size=(192, 144), noise=10.0)
    words = ["index", video, "--model", model, "--fps", 2, "-o", tmp_path / "busy.vidx"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vidllm.cli", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # Where the second block lies, the place behind the first one has been told.
    blocks = folder_of(tmp_path / "busy.vidx")
    while process.poll() is None:
        if (blocks / "block-000001.safetensors").exists():
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    out, said = process.communicate()
    assert (process.returncode, out) == (130, "")
    (line,) = spoken(said)
    assert line.startswith("vidllm: stopped at ") and line.endswith(
        " of 4:00: run the same command again to go on"
    )
    assert main([*map(str, words), "--json"]) == 0
    assert VideoIndex.load(tmp_path / "busy.vidx").facts["complete"]
    assert not blocks.exists()
