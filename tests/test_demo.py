"""The web page in a real browser: ask the sample, read the answer, jump to its time."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import save_tiny, write_video

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[str]:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vidllm.cli",
        "demo",
        "--model",
        str(folder),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, cwd=root, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().decode() if process.stderr else "no page")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            break
        except OSError:
            time.sleep(0.5)
    yield url
    process.terminate()
    process.wait(20)


def test_launcher_shows_the_same_page() -> None:
    """app.py holds nothing of its own."""
    text = (Path(__file__).parent.parent / "app.py").read_text()
    assert "vidllm.demo" in text and len(text.splitlines()) < 12


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH to open the page with")
def test_ask_on_the_page(page_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    video = write_video(tmp_path / "clip.mp4", [i / 8 for i in range(24)])
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        page = browser.new_page()
        page.goto(page_url)
        page.locator("#ask").click()
        expect(page.get_by_text("there is no video")).to_be_visible(timeout=30_000)
        page.locator("#video input[type=file]").set_input_files(str(video))
        expect(page.locator("#video video")).to_be_visible(timeout=30_000)
        page.locator("#question textarea, #question input").first.fill("when does the zebra spin?")
        page.locator("#ask").click()
        receipt = page.locator("#receipt textarea, #receipt input").first
        expect(receipt).to_have_value(re.compile("24 frames · tokens 96 "), timeout=90_000)
        expect(page.locator("#notes")).to_contain_text("zebra")
        assert page.get_by_text("Traceback").count() == 0
        browser.close()
