"""Beside vLLM's own methods, at its start, and behind its server."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import typer
from tiny_engine import Reference, Request, save
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.video_prune import evs, vidcom2

from vidllm.cli import serve_command
from vidllm.compressors import build
from vidllm.errors import InputError
from vidllm.models.serving.client import chat_request
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

GRID = (6, 4, 5)
ROOT = Path(__file__).resolve().parents[2]


def _kept(name: str, features: torch.Tensor, budget: int) -> set[int]:
    tokens = VideoTokens.from_grid(features, [float(t) for t in range(GRID[0])], float(GRID[0]))
    return set(build(name, budget=budget)(tokens).position.tolist())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5])
def test_evs_keeps_what_vllm_keeps(seed: int, share: float) -> None:
    features = torch.randn(*GRID, 32, generator=torch.Generator().manual_seed(seed))
    mask = evs.compute_retention_mask(features.flatten(0, 2), GRID, 1, 1 - share)
    theirs = set(torch.nonzero(mask).flatten().tolist())
    assert _kept("evs", features, len(theirs)) == theirs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5])
def test_vidcom2_differs_from_vllm_in_tokens_that_settle_the_count_alone(
    seed: int, share: float
) -> None:
    """The counts of frames are rounded; ours gives what is missing by share, vLLM by score."""
    features = torch.randn(*GRID, 32, generator=torch.Generator().manual_seed(seed))
    mask = vidcom2.compute_retention_mask(features.flatten(0, 2), GRID, 1, 1 - share)
    theirs = set(torch.nonzero(mask).flatten().tolist())
    ours = _kept("vidcom2", features, len(theirs))
    assert len(ours) == len(theirs) and len(ours - theirs) <= GRID[0] // 2


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    config = transformers.Qwen2VLConfig(architectures=["Qwen2VLForConditionalGeneration"])
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not serve Qwen2VLForConditionalGeneration"):
        EngineArgs(model=str(tmp_path), skip_tokenizer_init=True).create_model_config()


def test_linear_attention_on_a_cpu_is_refused_in_float32(tmp_path: Path) -> None:
    folder = str(save("qwen3_5", tmp_path))
    with pytest.raises(InputError, match="in bfloat16 alone"):
        EngineArgs(model=folder, dtype="float32").create_model_config()
    assert EngineArgs(model=folder, dtype="bfloat16").create_model_config().is_multimodal_model


def test_vllms_own_pruning_does_not_go_with_ours(tmp_path: Path) -> None:
    folder = save("qwen2_5_vl", tmp_path)
    with pytest.raises(InputError, match="leave out"):
        EngineArgs(model=str(folder), video_pruning_rate=0.5).create_model_config()


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"VIDLLM_COMPRESSOR": "semvid", "VIDLLM_KEEP": "0.5"}, "reads the question"),
        ({"VIDLLM_COMPRESSOR": "fastv", "VIDLLM_KEEP": "0.5"}, "inside the decoder"),
    ],
)
def test_an_engine_with_a_method_that_cannot_be_served_does_not_start(
    choice: dict[str, str], reason: str
) -> None:
    code = "from vllm import LLM; LLM(model='any')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **choice},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and "cannot be served by vLLM" in last and reason in last


def test_clients_are_trusted_where_nobody_else_can_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDLLM_COMPRESSOR", "none")  # the command sets it
    asked: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _program, words: asked.append(words))
    command: Any = typer.main.get_command(serve_command.app)
    folder, trust = str(save("qwen3_vl", tmp_path)), "--trust-request-mm-kwargs"
    for host, more, trusted in (
        ("127.0.0.1", [], 1),
        ("0.0.0.0", [], 0),
        ("0.0.0.0", [trust], 1),
        ("localhost", [trust], 1),
    ):
        words = ["--model", folder, "--host", host, *more]
        command.main(args=words, standalone_mode=False)
        assert asked[-1].count(trust) == trusted
        assert (trust in capsys.readouterr().err) == (not trusted)


class Server:
    """`vidllm serve` on a tiny checkpoint."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.log = folder, log
        options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
        chosen = ["--compressor", "aim", "--keep", "0.25", "--port", str(self.port)]
        command = [sys.executable, "-m", "vidllm.cli", "serve", "--model", str(folder)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDLLM_")}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *chosen, *options], stdout=out, stderr=out, env=environment
            )

    def wait(self) -> None:
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise AssertionError(self.log.read_text()[-3000:])


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    made = Server(save("qwen3_vl", place / "model"), place / "log")
    try:
        made.wait()
        yield made
    finally:
        made.process.terminate()
        made.process.wait()


def _client(server: Server) -> tuple[Any, str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    return client, client.models.list().data[0].id


def _clip() -> VideoClip:
    frames = np.full((4, 112, 112, 3), 128, dtype=np.uint8)
    frames[2:] = 40
    seconds = np.array([0.0, 0.5, 3.0, 3.5])
    return VideoClip(
        frames=frames, seconds=seconds, fps=2.0, duration=4.0, indices=np.arange(4), path="made"
    )


def test_a_client_asks_the_server_with_frames_and_their_seconds(server: Server) -> None:
    from openai import BadRequestError

    clip, (client, model) = _clip(), _client(server)

    def read(**chosen: Any) -> int:
        reply = client.chat.completions.create(
            model=model, max_tokens=4, temperature=0, **chat_request(clip, "when?", **chosen)
        )
        assert reply.usage is not None and reply.choices[0].message.content is not None
        return int(reply.usage.prompt_tokens)

    whole = 2 * 16  # tokens of two frames of 4 x 4
    words = read(compressor="none") - whole
    assert read() == words + whole // 4
    assert read(keep=0.5) == words + whole // 2
    assert read(compressor="evs", keep=0.75) == words + 3 * whole // 4
    with pytest.raises(BadRequestError, match="reads the question"):
        read(compressor="semvid", keep=0.5)
    assert read() == words + whole // 4  # the server is still there
    # The same words as with these frames' seconds: 0.25 and 3.25, one token a letter.
    asked = Request("", [(4, 112, 112, 2.0)])
    reference = Reference(server.folder, "qwen3_vl")
    text = reference.processor.apply_chat_template(
        chat_request(clip, "when?")["messages"], tokenize=False, add_generation_prompt=True
    )
    shown = reference.inputs(Request(text, asked.videos))["input_ids"]
    assert words == shown.shape[1] - whole


def test_a_client_that_goes_away_leaves_the_server_to_the_others(server: Server) -> None:
    client, model = _client(server)
    request = chat_request(_clip(), "when?")
    request["extra_body"] |= {"ignore_eos": True}
    stream = client.chat.completions.create(model=model, max_tokens=800, stream=True, **request)
    next(iter(stream))
    stream.close()
    while _running(server):  # until the server has seen it
        time.sleep(0.1)
    reply = client.chat.completions.create(
        model=model, max_tokens=4, **chat_request(_clip(), "when?")
    )
    assert reply.choices[0].message.content is not None


def _running(server: Server) -> bool:
    """Whether a request is under way."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as told:
        lines = told.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith("vllm:num_requests_running")]
    return float(line.rpartition(" ")[2]) > 0


def test_the_client_of_the_page_sends_a_file(server: Server) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    [code] = [c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "openai" in c]
    video = ROOT / "weights" / "samples" / "red-star.mp4"
    here = {":8000": f":{server.port}", "match.mp4": str(video), "frames=64": "frames=8"}
    for said, meant in here.items():
        assert said in code
        code = code.replace(said, meant)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^\d+ tokens read$", done.stdout, re.MULTILINE)
