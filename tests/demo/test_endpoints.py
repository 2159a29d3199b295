"""The named endpoints through Gradio's own client, and the example program of the documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import write_video

pytest.importorskip("gradio", reason="the page needs gradio")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from vidllm import VideoLLM

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "weights" / "samples" / "red-star.mp4"
QUESTION = "when does the red star spin?"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    made = Client(url, verbose=False)
    yield made
    made.close()


def test_every_endpoint_has_a_name_types_and_defaults(client: Client) -> None:
    told: dict[str, Any] = client.view_api(return_format="dict", print_info=False)  # type: ignore[assignment]
    named = told["named_endpoints"]
    assert set(named) == {"/ask", "/ground", "/caption", "/highlights", "/compare", "/index"}
    types = {
        p["parameter_name"]: set(p["python_type"]["type"].split(" | "))
        for p in named["/ask"]["parameters"]
    }
    assert types == {
        "video": {"filepath"}, "question": {"str"}, "compressor": {"str", "None"},
        "keep": {"float", "None"}, "frames": {"int", "None"}, "max_new_tokens": {"int"},
        "anyway": {"bool"},
    }  # fmt: skip
    needed = [p for p in named["/ask"]["parameters"] if not p["parameter_has_default"]]
    assert [p["parameter_name"] for p in needed] == ["video", "question"]
    for endpoint in named.values():
        assert endpoint["description"]
        assert endpoint["returns"][0]["python_type"]["type"].startswith("dict")


def test_answers_are_those_of_the_python_api(client: Client) -> None:
    video = handle_file(SAMPLE)
    asked = client.predict(video, QUESTION, api_name="/ask")
    answer = VideoLLM.from_pretrained().ask(SAMPLE, QUESTION)
    assert asked["text"] == answer.text and asked["spans"] == answer.as_dict()["spans"]
    assert asked["receipt"]["tokens_kept"] == answer.receipt.tokens_kept
    menus = {"compressor": "uniform", "keep": 0.25, "frames": 16, "max_new_tokens": 32}
    found = client.predict(video, "the red star spins", **menus, api_name="/ground")
    assert found["spans"] and found["receipt"]["frames"] == 16
    assert found["receipt"]["method"] == "uniform"
    assert client.predict(video, **menus, api_name="/caption")["text"]
    shown = client.predict(video, "the red plane blinks", **menus, api_name="/highlights")
    assert len(shown["scores"]) == len(shown["spans"]) > 0
    both = client.predict(video, QUESTION, **menus, api_name="/compare")
    assert set(both) == {"full", "less", "agree", "overlap"}
    assert both["less"]["receipt"]["tokens_kept"] * 4 == both["full"]["receipt"]["tokens_kept"]
    assert client.predict(video, QUESTION, fps=1.0, api_name="/index")["spans"]


def test_wrong_calls_have_a_line(client: Client, tmp_path: Path) -> None:
    video = handle_file(SAMPLE)
    street = handle_file(write_video(tmp_path / "street.mp4", [i / 8 for i in range(12)]))
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video")
    elsewhere = {"path": str(ROOT / "README.md"), "meta": {"_type": "gradio.FileData"}}
    for words, arguments in {
        "question is empty": (video, " "),
        "characters, more than the 2,000": (video, "why " * 1000),
        "no compressor": (video, QUESTION, "nonsense"),
        "the share kept must be from 0.02 to 1": (video, QUESTION, None, 7.0),
        "the number of frames must be": (video, QUESTION, None, None, 1e9),
        "anyway must be true or false": (video, QUESTION, None, None, None, 8, "yes"),
        "garbage.mp4 is not a video": (handle_file(garbage), QUESTION),
        "not of the made world": (street, QUESTION),
        "was uploaded to this page": ("weights/samples/red-star.mp4", QUESTION),
    }.items():
        with pytest.raises(AppError, match=words) as told:
            client.predict(*arguments, api_name="/ask")
        assert str(tmp_path) not in str(told.value)
    for name in ("/compare", "/index"):
        with pytest.raises(AppError, match="anyway must be true or false"):
            client.predict(street, QUESTION, anyway="false", api_name=name)
    with pytest.raises((AppError, ValueError)):
        client.predict(elsewhere, QUESTION, api_name="/ask")
    said = client.predict(street, QUESTION, anyway=True, max_new_tokens=4, api_name="/ask")
    assert "not of the made world" in said["notes"][0]


def test_the_example_program_runs(url: str, tmp_path: Path) -> None:
    program = ROOT / "docs" / "demo_client.py"
    done = subprocess.run(
        [sys.executable, str(program), url, str(SAMPLE), QUESTION],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["spans"] and "from" in done.stdout
