"""`vidllm chat` as people meet it: questions through a pipe and at a terminal, in one process."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_tiny import TAKES_VIDEOS, save_hub
from tiny import save_tiny
from videos import write_video

from vidllm import VideoLLM
from vidllm.cli.main import main

CHAT = [str(Path(sys.executable).parent / "vidllm"), "chat"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("v") / "v.mp4", 20, size=(64, 48))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a tiny model of a hub family."""
    folder = save_hub(tmp_path_factory.mktemp("m") / "hub", "qwen2_5_vl", TAKES_VIDEOS)
    return ["--model", str(folder), "--device", "cpu", "--max-new-tokens", "3"]


def test_the_sample_answers_question_after_question(root: Path) -> None:
    sample = root / "weights" / "samples" / "red-star.mp4"
    asked = ["when does the red star spin?", "", "a <|mark|>?", "when does the red star spin?"]
    done = subprocess.run(
        [*CHAT, str(sample)], input="\n".join([*asked, "exit", "never asked"]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    first, second = done.stdout.splitlines()  # each question stands alone
    assert first == second and first.startswith("from ") and first.count(" s") == 2
    receipts = [line for line in done.stderr.splitlines() if " tokens " in line]
    refused, last = [line for line in done.stderr.splitlines() if line.startswith("vidllm: ")]
    assert len(receipts) == 2 and "control tokens" in refused
    assert (last, done.returncode) == ("vidllm: 1 of 3 questions were not answered", 1)


def test_a_program_gets_a_json_line_a_question_and_ctrl_c_its_line(
    video: Path, hub: list[str]
) -> None:
    options = [*hub, "--compressor", "uniform", "--keep", "50%", "--frames", "4", "--json"]
    with subprocess.Popen(
        [*CHAT, str(video), *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdin is not None and running.stdout is not None

        def asked(question: bytes) -> dict[str, Any]:
            assert running.stdin is not None and running.stdout is not None
            running.stdin.write(question + b"\n")
            running.stdin.flush()
            return dict(json.loads(running.stdout.readline()))

        answer = asked(b"what spins?")
        assert (answer["video"], answer["question"]) == (str(video), "what spins?")
        receipt = answer["receipt"]
        assert (receipt["method"], receipt["frames"]) == ("uniform", 4)
        assert receipt["tokens_kept"] * 2 == receipt["tokens_full"]
        assert "half a sign" in asked(b"what \xff?")["error"]
        assert "more than" in asked(b"long " * 100_000)["error"]
        again = asked(b"what spins?")
        assert (again["raw"], again["spans"]) == (answer["raw"], answer["spans"])
        running.send_signal(signal.SIGINT)  # it waits for a question
        out, err = running.communicate()
    lines = err.decode().splitlines()
    assert (running.returncode, out) == (130, b"")
    assert lines[-1] == "vidllm: stopped, 2 questions answered"
    assert [line.startswith("vidllm: ") for line in lines].count(True) == 3  # two refused


def test_a_terminal_is_prompted_until_ctrl_d(video: Path, hub: list[str]) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*CHAT, str(video), *hub], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        os.close(theirs)
        assert running.stderr is not None and running.stdout is not None
        assert (
            b"a question a line; each stands alone; exit or quit or Ctrl-D to end"
            in running.stderr.readline()
        )
        assert running.stderr.read(2) == b"> "
        os.write(ours, b"  \n<|im_end|>\nwhat spins?\n\x04")
        out, err = running.communicate()
    os.close(ours)
    assert running.returncode == 0  # a question that was refused is no failure of a chat
    assert out.count(b"\n") == 1 and err.count(b"> ") == 3 and b"control token" in err


def test_a_hub_model_is_told_earlier_turns_where_that_is_asked_for(
    video: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*options: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("what spins?\nwhen?\nquit\n"))
        assert main(["chat", str(video), *hub, "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    alone, told = said(), said("--turns", "1")
    llm = VideoLLM.from_pretrained(hub[1], device="cpu")
    assert told[0]["raw"] == alone[0]["raw"]
    history = [("what spins?", told[0]["text"])]
    for turns, found in (([], alone), (history, told)):
        want = llm.ask(video, "when?", history=turns, max_new_tokens=3)
        assert found[1]["raw"] == want.raw


def test_the_video_is_encoded_once(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, passes = save_tiny(tmp_path / "tiny"), []
    monkeypatch.setattr(sys, "stdin", io.StringIO("when?\nwhat spins?\nwhen?\n"))
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: passes.append(type(module).__module__)
    )
    try:
        assert main(["chat", str(video), "--model", str(folder), "--anyway", "--json"]) == 0
    finally:
        hook.remove()
    out, _ = capsys.readouterr()
    assert len([json.loads(line) for line in out.splitlines()]) == 3
    towers = [name for name in passes if name.startswith("vidllm.encoders.vision")]
    assert len(towers) > 0 and len(passes) > len(towers)
    assert passes[::-1].index(towers[0]) > len(passes) / 3  # only before the first answer


@pytest.mark.parametrize(
    ("words", "says"),
    [(["none.mp4"], "no such file"), (["{video}", "--keep", "0"], "--keep must be above 0"),
     (["{video}", "--model", "no/such/folder"], "no such model folder")],
)  # fmt: skip
def test_what_no_question_can_mend_is_refused_at_once(
    words: list[str], says: str, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *(word.format(video=video) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1
