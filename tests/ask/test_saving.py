"""Models and adapters handed over: saved, loaded again, and pushed to a hub."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

from vidllm import InputError, VideoLLM, WorkError

QUESTION = "when does the red circle move left?"


def test_the_shipped_model_is_saved_whole(root: Path, tmp_path: Path) -> None:
    """Its weights may be changes to another model's; what is saved needs no other model."""
    llm = VideoLLM.from_pretrained(device="cpu")
    clip = llm.sample(next((root / "weights" / "samples").glob("*.mp4")))
    llm.save_pretrained(tmp_path / "own")
    again = VideoLLM.from_pretrained(tmp_path / "own", device="cpu")
    options: dict[str, Any] = {"max_new_tokens": 8}
    assert again.ask(clip, QUESTION, **options).raw == llm.ask(clip, QUESTION, **options).raw
    assert again.compressor.name == llm.compressor.name
    assert (again.footage is None) == (llm.footage is None)
    assert not again.compressor.notes()  # a learned method brings its weights
    assert not json.loads((tmp_path / "own" / "config.json").read_text()).get("base")


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a push needs: it keeps the files of commits."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if "denied" in self.path or b"denied" in body[:200]:
            self._say({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            self._say({"url": self._place(), "name": "me/tiny", "id": "1"})
        elif "/preupload/" in self.path:
            told = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._say({"files": told})
        elif "/commit/" not in self.path:  # it looks at the head of the card
            self._say({"errors": [], "warnings": []})
        else:
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self._place()}/commit/1"
            self._say({"commitUrl": url, "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        self._say({"id": "me/tiny", "sha": "1"})

    def _place(self) -> str:
        return f"http://{self.headers['Host']}/me/tiny"

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _say(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PUSH = """
import sys
from vidllm import VideoLLM, VidllmError
vl = VideoLLM.from_pretrained(sys.argv[1], device="cpu")
for repo in ("me/tiny", "denied/tiny"):
    try:
        print(vl.push_to_hub(repo, token="hf_" + 34 * "a"))
    except VidllmError as error:
        print(error)
"""


def test_a_model_is_pushed_to_a_hub(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    port = hub.server_address[1]
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env |= {"HF_HOME": str(tmp_path / "home"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, folder], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    pushed, denied = done.stdout.splitlines()
    assert pushed == f"http://127.0.0.1:{port}/me/tiny/commit/1"
    assert denied.startswith("'denied/tiny' cannot be pushed: the hub refuses this account: log in")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(Hub.files)
    assert b'VideoLLM.from_pretrained("me/tiny")' in Hub.files["README.md"]
    again = tmp_path / "again"
    again.mkdir()
    for name, data in Hub.files.items():
        (again / name).write_bytes(data)
    VideoLLM.from_pretrained(again, device="cpu")


def test_without_a_hub_there_is_one_clear_line(tmp_path: Path) -> None:
    llm = VideoLLM.from_pretrained(save_tiny(tmp_path / "tiny"), device="cpu")
    with pytest.raises(WorkError, match="HF_HUB_OFFLINE is set, so the hub is not asked"):
        llm.push_to_hub("me/tiny")
    for name in ("tiny", "me/tiny/x", "", 3):
        with pytest.raises(InputError, match="a place on the hub is OWNER/NAME"):
            llm.push_to_hub(name)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no model 'me/adapters'"):
        VideoLLM.from_pretrained(tmp_path / "tiny", adapter="me/adapters")
