"""One page and one browser for the tests that use them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_server import BROWSER, FLAGS, WAIT, serving

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page keeps what visitors upload."""
    return tmp_path_factory.mktemp("page") / "uploads"


@pytest.fixture(scope="session")
def url(uploads: Path) -> Iterator[str]:
    """One page with the shipped model, for all tests that do not change its options."""
    limits = ("--max-upload-mb", "3", "--max-seconds", "120", "--max-frames", "2048")
    with serving(uploads, *limits) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; closed with every file, since its event loop runs until then."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, url: str) -> Iterator[Open]:
    """Opens a page for a new visitor; behind the test no request has left the machine.

    Nor has the browser kept anything back for the page's own policy.
    """
    seen: list[str] = []
    kept_back: list[str] = []
    contexts = []

    def open_page(address: str = url, width: int = 1280, scheme: str = "light") -> Any:
        from playwright.sync_api import expect

        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("request", lambda request: seen.append(request.url))
        page.on(
            "console",
            lambda said: kept_back.append(said.text) if "Security Policy" in said.text else None,
        )
        page.goto(f"{address}?__theme={scheme}")
        expect(page.locator("#ask")).to_be_visible()
        expect(page.locator("#strip p").first).to_contain_text(re.compile("keeps|saw"))
        return page

    yield open_page
    for context in contexts:
        context.close()
    away = [u for u in seen if not re.match(r"http://127\.0\.0\.1[:/]|data:|blob:", u)]
    assert seen and not away
    assert not kept_back
