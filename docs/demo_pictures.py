"""Take docs/demo-light.png, demo-dark.png and demo-narrow.png, README's pictures of the web page.

    python docs/demo_pictures.py            # needs Chromium and playwright

A page is served with the shipped weights, used as a visitor would use it, and photographed.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
WAIT = 60_000
QUESTION = "what happens first?"


def main() -> int:
    """Write the pictures; 1 and a line where there is no browser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    folder = parser.parse_args().out
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print(f"demo_pictures: none of {', '.join(BROWSERS)} is on PATH", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    from vidllm.demo.launch import launch

    page = launch(port=None, ready=lambda line: print(line, file=sys.stderr), block=False)
    takes: dict[str, tuple[str, int, Callable[[Any], None]]] = {
        "light": ("light", 1280, _compare),
        "dark": ("dark", 1280, _captions),
        "narrow": ("light", 390, _ask),
    }
    try:
        with sync_playwright() as play:
            chromium = play.chromium.launch(executable_path=browser, args=list(FLAGS))
            for name, (scheme, width, use) in takes.items():
                view = chromium.new_page(viewport={"width": width, "height": 900})
                view.goto(f"{page.local_url}?__theme={scheme}")
                _open(view)
                use(view)
                view.evaluate("document.activeElement && document.activeElement.blur()")
                view.mouse.move(1, 1)
                view.wait_for_timeout(800)  # transitions
                file = folder / f"demo-{name}.png"
                shot = view.screenshot(full_page=True, animations="disabled")
                # 256 colours: half the bytes, and nobody sees it.
                plain = Image.open(io.BytesIO(shot)).convert("RGB")
                plain.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(file, optimize=True)
                print(file)
                view.close()
            chromium.close()
    finally:
        page.close()
    return 0


def _open(view: Any) -> None:
    """Wait for the answer that the page opens with, and hold the player."""
    view.locator("#account dl").wait_for(timeout=WAIT)
    view.locator("#answer .vl-time").first.click()
    view.wait_for_timeout(500)


def _ask(view: Any) -> None:
    view.locator("#question input, #question textarea").first.fill(QUESTION)
    view.locator("#ask").click()
    view.locator("#answer .vl-turn").nth(1).locator("small").wait_for(timeout=WAIT)
    view.locator("#answer .vl-time").last.click()
    view.wait_for_timeout(500)


def _compare(view: Any) -> None:
    view.get_by_text("Settings: compressor").click()
    compressor = view.locator("#compressor input")
    compressor.click()
    compressor.fill("vidcom2")
    compressor.press("Enter")
    compressor.blur()
    view.get_by_text("vidcom2 keeps").wait_for(timeout=WAIT)
    view.locator("#both").click()
    view.locator("#verdict table").wait_for(timeout=WAIT)


def _captions(view: Any) -> None:
    view.get_by_role("tab", name="Captions").click()
    view.locator("#describe").click()
    view.locator("#captions .vl-time").nth(2).click(timeout=WAIT)
    view.wait_for_timeout(500)


if __name__ == "__main__":
    sys.exit(main())
