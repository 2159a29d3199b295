"""What a page takes from whom, over HTTP, without its script: limits hold on every endpoint."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from demo_server import serving
from tiny import write_video

pytest.importorskip("gradio", reason="the page needs gradio")

import httpx

from vidllm.demo.gate import Gate
from vidllm.demo.settings import Settings
from vidllm.demo.uploads import Uploads
from vidllm.errors import InputError, WorkError

QUESTION = "when does the red star spin?"
MENUS: list[Any] = [QUESTION, "temporal-pool", 0.25, 64, 64]


class Client(httpx.Client):
    """A client without the page's script."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=120)
        config = self.get("/config").json()
        # The page's own events; those for programs have the plain names.
        found = {d["api_name"]: d["id"] for d in config["dependencies"]}
        self.events = {str(name).removeprefix("page_"): found[name] for name in found
                       if str(name).startswith("page_")}  # fmt: skip

    def upload(self, name: str, content: bytes, **headers: str) -> httpx.Response:
        return self.post(
            "/gradio_api/upload", files={"files": (name, content, "video/mp4")}, headers=headers
        )

    def join(self, name: str, data: list[Any], visit: str = "anne") -> httpx.Response:
        body = {"fn_index": self.events[name], "data": data, "session_hash": visit}
        return self.post("/gradio_api/queue/join", json=body)

    def told(self, visit: str) -> str:
        """All that the events of a visit say until they are over."""
        said = ""
        with self.stream("GET", f"/gradio_api/queue/data?session_hash={visit}") as lines:
            for line in lines.iter_lines():
                said += line
                if "close_stream" in line:
                    break
        return said


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "uploads"


@pytest.fixture(scope="module")
def client(files: Path) -> Iterator[Client]:
    limits = ("--max-upload-mb", "0.4", "--max-uploads-mb", "1", "--max-idle-minutes", "0.02")
    with serving(files, *limits, "--waiting", "1") as url:
        yield Client(url)
    assert not list(files.iterdir())  # the page took its folder along


def until(true: Any) -> None:
    """Wait for what another process does."""
    while not true():
        time.sleep(0.02)


def test_only_the_pages_own_host_and_origin_are_served(client: Client) -> None:
    port = client.base_url.port
    for host in (f"localhost:{port}", f"[::1]:{port}", f"192.168.0.7:{port}"):
        assert client.get("/config", headers={"Host": host}).status_code == 200
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "localhost.evil.example"):
        for path in ("/", "/config", "/gradio_api/heartbeat/x"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == 403 and "--allow-host" in answer.text
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert client.upload("a.mp4", b"x", **headers).status_code == 403
    same = client.upload("a.mp4", b"x", Origin=f"http://127.0.0.1:{port}")
    assert same.status_code == 200


def test_every_answer_says_what_a_browser_may_do_with_it(client: Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    scripts = policy.split("script-src", 1)[1].split(";")[0]
    assert "sha256-" in scripts and "unsafe-inline" not in scripts
    assert "object-src 'none'" in policy and "frame-ancestors 'self'" in policy
    (place,) = client.upload("page.html", b"<script>alert(1)</script>").json()
    for path in ("/", "/config", "/theme.css", f"/gradio_api/file={place}", "/nothing"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in client.get(f"/gradio_api/file={place}").headers["content-security-policy"]
    assert client.get("/gradio_api/file=https://example.com/a").status_code == 403


def test_nothing_goes_round_the_queue_or_to_a_private_handler(client: Client) -> None:
    ask = client.events["ask"]
    body = {"data": MENUS, "session_hash": "anne"}
    for path in ("run/page_ask", "api/page_ask", "call/page_ask", "call/v2/page_ask", "run/predict",
                 "component_server", "process_recording", "vibe-edit", "stream/x"):  # fmt: skip
        answer = client.post(f"/gradio_api/{path}", json=body)
        assert answer.status_code in (400, 404) and answer.json()["detail"], path
    # What programs may call waits in the queue as the page's events do.
    program = {"data": [None, QUESTION, None, None, None, 8, False], "session_hash": "anne"}
    for path in ("run/ask", "api/ask"):
        answer = client.post(f"/gradio_api/{path}", json=program)
        assert answer.status_code == 404 and "queue" in answer.json()["detail"], path
    direct = client.post("/gradio_api/run/predict", json={**body, "fn_index": ask})
    assert direct.status_code == 404 and "queue" in direct.json()["detail"]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, ["a"], "Question: this must be a text, got ['a']"),
        (0, None, "Question: this must be a text, got None"),
        (1, 7, "Compressor: this must be a text, got 7"),
        (2, "half", "Share kept: this must be a number from 0.02 to 1, got 'half'"),
        (2, True, "Share kept: this must be a number"),
        (3, 1e308, "Frames: this must be a number from 1 to 256, got 1e+308"),
        (4, {}, "Answer limit: this must be a number from 8 to 1024, got {}"),
    ],
)
def test_a_wrong_type_has_words(client: Client, place: int, value: Any, words: str) -> None:
    data = list(MENUS)
    data[place] = value
    answer = client.join("ask", data)
    assert answer.status_code == 400 and words in answer.json()["detail"]


def test_an_event_that_is_none_has_words(client: Client) -> None:
    assert "5 inputs, got 1" in client.join("ask", [1]).json()["detail"]
    post = "/gradio_api/queue/join"
    for body in (b"no json", b"[1]", b'{"data": 3}', b"[" * 100_000):
        assert "JSON object" in client.post(post, content=body).json()["detail"]
    for number in (None, -1, 999, "0", 1.5, True):
        wrong = client.post(post, json={"data": [], "fn_index": number, "session_hash": "a"})
        assert wrong.status_code == 400 and "no event" in wrong.json()["detail"]
    visit = {"data": MENUS, "fn_index": client.events["ask"], "session_hash": "a" * 65}
    assert "1 to 64 characters" in client.post(post, json=visit).json()["detail"]
    long = client.join("ask", ["x" * 300_000, *MENUS[1:]])
    assert long.status_code == 413 and "too long" in long.json()["detail"]


def test_a_question_has_a_greatest_length(client: Client) -> None:
    assert client.join("ask", ["why " * 1000, *MENUS[1:]], "long").status_code == 200
    said = client.told("long")
    assert "the question has 4,000 characters, more than the 2,000" in said


def test_who_may_not_wait_is_told_so_and_keeps_the_video(client: Client, tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", [i / 8 for i in range(24)])
    (place,) = client.upload("v.mp4", video.read_bytes()).json()
    file = {"path": place, "meta": {"_type": "gradio.FileData"}}
    visits = ("one", "two", "three", "four")
    with ExitStack() as pages:
        for visit in visits:  # as a browser says that its page is open
            pages.enter_context(client.stream("GET", f"/gradio_api/heartbeat/{visit}"))
            assert client.join("video", [file, *MENUS[:4]], visit).status_code == 200
            assert "tokens" in client.told(visit)
        for visit in 3 * visits:
            assert client.join("ask", MENUS, visit).status_code == 200
        said = [client.told(visit) for visit in visits]
        busy = sum(text.count("the model is busy and 1 wait for it already") for text in said)
        assert 1 <= busy <= 10  # of twelve, two at least were answered
        assert any("vl-tiles" in text for text in said)
        for visit in visits:
            assert client.join("ask", MENUS, visit).status_code == 200
            assert "vl-tiles" in client.told(visit)  # the video was not lost


def test_uploads_have_limits_and_go(client: Client, files: Path) -> None:
    def now() -> list[Path]:  # not by rglob: earlier uploads may go while it looks
        return [Path(place, name) for place, _, names in os.walk(files) for name in names]

    kept = set(now())

    def there() -> list[str]:
        return [file.name for file in now() if file not in kept]

    big = client.upload("big.mp4", bytes(500_000))
    assert big.status_code == 413 and "larger than the 0.4 MB" in big.text and not there()

    def endless() -> Iterator[bytes]:  # says no length
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="e.mp4"\r\n\r\n'
        for _ in range(100):
            yield bytes(10_000)

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/gradio_api/upload", content=endless(), headers=kind)
    assert answer.status_code == 413 and not there()
    many = [("files", (f"{i}.mp4", bytes(300_000))) for i in range(3)]
    assert client.post("/gradio_api/upload", files=many).status_code == 413 and not there()
    go_on = threading.Event()

    def held() -> Iterator[bytes]:
        yield from islice(endless(), 2)
        go_on.wait()

    def refused() -> bool:
        answer = client.upload("more.mp4", os.urandom(350_000))
        return answer.status_code == 507 and "as many uploads as it may" in answer.text

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):  # while both are under way
            pool.submit(client.post, "/gradio_api/upload", content=held(), headers=kind)
        try:
            until(refused)
        finally:
            go_on.set()
    # None of them has a page that is open, so all go by themselves.
    until(lambda: not there())
    assert client.upload("again.mp4", bytes(1000)).status_code == 200


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_what_a_full_disk_cut_off_is_deleted(tmp_path: Path, error: int) -> None:
    uploads = Uploads(10**9, tmp_path)
    host: Any = SimpleNamespace(settings=Settings())
    sent: list[Any] = []

    async def full(scope: Any, receive: Any, send: Any) -> None:
        (uploads.folder / "tmpabc").write_bytes(b"half")
        raise OSError(error, os.strerror(error))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload",
             "headers": [(b"host", b"localhost"), (b"content-length", b"4")]}  # fmt: skip
    asyncio.run(Gate(host, uploads, ()).middleware(full)(scope, receive, send))
    assert sent[0]["status"] == 507 and b"no room" in sent[1]["body"]
    assert not list(uploads.folder.iterdir())
    uploads.clear()
    assert not uploads.folder.exists()


def test_a_folder_that_cannot_hold_uploads_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorkError, match=r"file cannot hold uploads .*GRADIO_TEMP_DIR"):
        Uploads(1, tmp_path / "file")
    assert "is full: make room" in str(Uploads(1, tmp_path).full())


def test_one_place_is_not_given_twice(tmp_path: Path) -> None:
    uploads = Uploads(100, tmp_path)
    with uploads.coming(60), pytest.raises(Exception, match="as many uploads"), uploads.coming(60):
        pass
    with uploads.coming(100):
        pass
    (uploads.folder / "whole.mp4").write_bytes(bytes(60))
    with pytest.raises(InputError, match="as many uploads"), uploads.coming(60):
        pass


def test_the_page_of_a_proxy_is_named(tmp_path: Path) -> None:
    host: Any = SimpleNamespace(settings=Settings(hosts=("demo.example",)))
    gate = Gate(host, Uploads(1, tmp_path), ())
    named = {"host": "demo.example", "origin": "https://demo.example"}
    gate.check_origin(httpx.Headers(named), "POST")  # type: ignore[arg-type]
    inner = {"host": "127.0.0.1:7860", "origin": "https://demo.example"}
    gate.check_origin(httpx.Headers(inner), "POST")  # type: ignore[arg-type]
    assert json.dumps(sorted(gate.named)) == '["demo.example"]'
