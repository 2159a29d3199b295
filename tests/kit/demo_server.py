"""The web page as a process of its own, a proxy that puts it under a path, and a browser."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
NO_BROWSER = "no Chromium or Chrome on PATH to open the page with"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Milliseconds that an event may take: a page that works needs a hundredth, a starved one more.
WAIT = 120_000
#: The same for a page to be served: nearly all of it goes into imports of torch and Gradio.
START = 5 * WAIT
#: Until the browser has drawn what is there now.
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(files: Path, *options: str) -> Iterator[str]:
    """`python app.py` with these options; gives its address.

    Args:
        files: where the page keeps what visitors upload.
    """
    port = free_port()
    files.mkdir(parents=True, exist_ok=True)
    log = (files.parent / f"{files.name}.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *options],
        cwd=ROOT,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "GRADIO_TEMP_DIR": str(files),
            "TMPDIR": str(files.parent),
        },
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(log.read())
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as page:
            return bool(page.read())
        return False

    try:
        until(answers, "the page was served", START)
        yield url
    finally:
        process.terminate()
        process.wait()
        log.close()


class _Proxy(BaseHTTPRequestHandler):
    """Passes on what lies under a prefix, without the prefix."""

    prefix: str
    port: int
    protocol_version = "HTTP/1.0"

    def _pass(self) -> None:
        if not self.path.startswith(self.prefix + "/"):
            self.send_error(404)
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        inner = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        # As proxies do: the host that the visitor sees stays.
        inner.request(self.command, self.path[len(self.prefix) :], body, dict(self.headers))
        answer = inner.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            while block := answer.read1(65536):
                self.wfile.write(block)
                self.wfile.flush()
        inner.close()

    do_GET = do_POST = do_HEAD = do_OPTIONS = _pass

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@contextmanager
def proxied(url: str, prefix: str) -> Iterator[str]:
    """Another server that shows a page under a prefix; gives the address there."""
    kind = type("Proxy", (_Proxy,), {"prefix": prefix, "port": int(url.rsplit(":", 1)[1])})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def upload(page: Any, file: Path) -> None:
    """Drop a file and wait until its frames are there."""
    from playwright.sync_api import expect

    page.evaluate("document.querySelectorAll('#strip p').forEach(p => p.dataset.old = 1)")
    page.locator("input[type=file]").set_input_files(str(file))
    expect(page.locator("#strip p:not([data-old])").first).to_contain_text("keeps")


def write(page: Any, name: str, text: str) -> None:
    page.locator(f"#{name} textarea, #{name} input").first.fill(text)


def unfold(page: Any) -> None:
    """Open the settings, which are folded away."""
    from playwright.sync_api import expect

    if not page.locator("#compressor").is_visible():
        page.get_by_text("Settings: compressor").click()
        expect(page.locator("#compressor input")).to_be_visible()
        # What has just been put on the page sets its own values until it is drawn.
        page.evaluate(DRAWN)


def number(page: Any, name: str, value: float) -> None:
    """Set a slider by its number."""
    unfold(page)
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def choose(page: Any, name: str, value: str) -> None:
    """Type a name and leave the menu at once, as the quickest of people do."""
    from playwright.sync_api import expect

    unfold(page)
    box = page.locator(f"#{name} input")
    box.click()
    box.fill(value)
    box.press("Enter")
    box.blur()
    expect(box).to_have_value(re.compile(rf"(^|· ){re.escape(value)}(:|$)"))


def place(page: Any) -> float:
    return float(page.evaluate("document.querySelector('#video video').currentTime"))


def moved_to(page: Any, seconds: float) -> None:
    """Wait until the player stands there."""
    page.wait_for_function(
        f"Math.abs(document.querySelector('#video video').currentTime - {seconds}) < 0.15"
    )


def until(happened: Callable[[], Any], what: str, most: int = WAIT) -> None:
    """Wait for what no event tells of, such as a file that goes; most: in milliseconds."""
    waits = threading.Event()
    for _ in range(most // 50):
        if happened():
            return
        waits.wait(0.05)
    raise AssertionError(f"it never came that {what}")


def covers(page: Any) -> list[str]:
    return list(
        page.evaluate("[...document.querySelectorAll('#strip .vl-pic')].map(p => p.innerHTML)")
    )
