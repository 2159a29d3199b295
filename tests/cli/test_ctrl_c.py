"""Ctrl-C at a moment that is known: the process sends it to itself when it does a certain thing."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

#: Runs before the command: Ctrl-C comes with the first event "import NAME" or "open PATH".
_PRESSED = """
import os, signal, sys
kind, wanted = os.environ["PRESS"].split(" ")
def hook(event, given):
    if event == kind and str(given[0]).endswith(wanted) and os.environ.pop("PRESS", None):
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
"""
AGAIN = ": run the same command again to go on"
RESUME = ": --resume goes on from the last save, where there is one"


@pytest.mark.parametrize(
    ("event", "words", "line"),
    [
        ("import typer", "ask {sample} when?", ""),
        ("import vidllm.cli.application", "index {sample}", AGAIN),
        ("import av", "ground {sample} it-spins", ""),
        ("import torch", "caption {sample}", ""),
        ("import torch.nn", "chat {sample}", ""),
        ("open config.json", "ask {sample} when?", ""),  # no import is under way
        ("import torch", "index {sample} -o {out}/x.vidx", AGAIN),
        ("import torch", "library add {out} {sample}", AGAIN),
        ("import torch", "eval stage --limit 1 --data {out}/d --out {out}/run", AGAIN),
        ("import torch", "eval stage --limit 1 --data {out}/d", ": nothing is kept without --out"),
        ("import torch", "bench methods --limit 1 --out {out}/methods", AGAIN),
        ("import torch", "train stage --out {out}/model", RESUME),
        ("import torch", "cost --compressor aim --keep 0.5", ""),
        ("import gradio", "demo --port 1", ""),
    ],
)
def test_ctrl_c_has_its_line_from_the_first_moment(
    cli: Run, root: Path, tmp_path: Path, event: str, words: str, line: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_PRESSED)
    sample = root / "weights" / "samples" / "red-star.mp4"
    given = words.format(sample=sample, out=tmp_path).split()
    done = cli(*given, env={"PYTHONPATH": str(tmp_path), "PRESS": event})
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (128 + signal.SIGINT, "", 1), done
    assert re.match(rf"vidllm: stopped after \d+ s{re.escape(line)}", lines[0])
