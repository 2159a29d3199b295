"""The page for everybody: wide and narrow, light and dark, by keyboard and by finger."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo_server import BROWSER, NO_BROWSER, moved_to, unfold
from tiny import write_video

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
Open = Callable[..., Any]
QUESTION = "when does the red star spin?"
TABS = ("Ask", "Find", "Captions", "Highlights", "Long video")
#: What must not lie on each other, from top to bottom.
BLOCKS = ("#about", "#video", "#timeline", "#upload", "#tabs", "#question", "#examples", "#ask",
          "#both", "#clear", "#method", "#status", "#stop", "#full", "#less",
          "#verdict", "#strip", "#compressor", "#recipe", "#keep", "#frames", "#most",
          "#refused", "#python", "#json")  # fmt: skip
#: Blocks that share pixels, though neither holds the other; and what is wider than the page.
OVERLAPS = """(places) => {
  const found = places.map(p => document.querySelector(p)).filter(e => e && e.checkVisibility());
  const wrong = [];
  for (const one of found) for (const two of found) {
    if (one === two || one.contains(two) || two.contains(one)) continue;
    const [a, b] = [one.getBoundingClientRect(), two.getBoundingClientRect()];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1) wrong.push(`#${one.id} on #${two.id}`);
  }
  const most = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > most) wrong.push('wider than the window');
  return [found.length, wrong];
}"""


def serious(axe: Any, page: Any) -> list[str]:
    """What axe-core finds on the page that keeps people out."""
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps_and_axe_finds_nothing(visit: Open, scheme: str) -> None:
    from playwright.sync_api import expect

    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-core comes with axe-playwright-python, of the extra vidllm[test]",
    ).Axe()
    page = visit(scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    unfold(page)
    for words in ("Load another model", "methods that this model", "Take the answer with you"):
        page.get_by_text(words).click()
    page.locator("#both").click()
    expect(page.locator("#verdict table")).to_be_visible()
    expect(page.locator("#json .cm-content")).to_be_visible()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function("wide => document.documentElement.clientWidth <= wide", arg=width)
        count, wrong = page.evaluate(OVERLAPS, list(BLOCKS))
        assert count == len(BLOCKS) and not wrong
        page.mouse.move(1, 1)
        page.evaluate("document.getAnimations().forEach(a => a.finish())")
        assert not serious(axe, page)
    for name in TABS:
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_visible()
        tab.click()
        assert tab.bounding_box()["x"] + tab.bounding_box()["width"] <= width
    assert not serious(axe, page)  # the last one


def test_the_page_opens_with_an_answer_and_examples_go_with_the_clip(visit: Open) -> None:
    from playwright.sync_api import expect

    page = visit()
    expect(page.locator("#answer .vl-turn")).to_have_count(1)
    expect(page.locator("#answer")).to_contain_text("made once, for all visitors")
    expect(page.locator("#answer .vl-time")).to_have_count(2)
    page.wait_for_function("document.querySelector('#video video').currentTime > 0.1")
    about = page.locator("#about")
    expect(about).to_contain_text("vidllm-stage, 7.0 M parameters")
    expect(about).to_contain_text("knows a made world only")
    about.get_by_text("Load another model").click()
    expect(about.get_by_role("link").first).to_have_attribute(
        "href", re.compile(r"https://huggingface\.co/\w+/")
    )
    examples = page.locator("#examples .vl-example")
    examples.filter(has_text="what happens first?").click()
    expect(page.locator("#question textarea, #question input")).to_have_value("what happens first?")
    page.locator("#ask").click()
    expect(page.locator("#answer .vl-turn")).to_have_count(2)
    expect(page.locator("#answer small")).to_have_count(2)
    expect(page.locator("#answer .vl-asked").first).to_have_text(QUESTION)
    page.get_by_text("pink-hand.mp4").click()
    expect(examples.first).to_have_text("when does the pink hand grow?")
    expect(page.locator("#question textarea, #question input")).to_have_value(
        "when does the pink hand grow?"
    )
    expect(page.locator("#answer .vl-turn")).to_have_count(0)
    expect(page.locator("#strip p").first).to_contain_text("mrt5 keeps")


def test_by_keyboard_from_upload_to_a_time(visit: Open, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = visit()
    page.on("filechooser", lambda _: None)  # choosers are caught from here on, not only from below
    stops: list[str] = []

    def tab_to(place: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            stops.append(place)
            if page.evaluate("p => document.activeElement?.matches(p) ?? false", place):
                return
        raise AssertionError(f"Tab never comes to {place}")

    page.evaluate("document.querySelectorAll('#strip p').forEach(p => p.dataset.old = 1)")
    tab_to("#upload, #upload *")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(write_video(tmp_path / "mine.mp4", [i / 8 for i in range(24)])))
    expect(page.locator("#strip p:not([data-old])").first).to_contain_text("keeps")
    tab_to("#question textarea, #question input")
    page.keyboard.press("Control+a")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("#account dl")).to_be_visible()
    time = page.locator("#answer .vl-time").last
    expect(time).to_be_visible()
    wanted = float(time.get_attribute("data-seconds") or "nan")
    page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    page.locator("#tabs [role=tab]").first.focus()
    tab_to("#answer .vl-turn:last-child .vl-time:last-of-type")
    page.keyboard.press("Enter")
    moved_to(page, wanted)
    # Inside the tab the way goes on to what comes next: question, examples, Ask, Compare, Clear.
    for place in ("#question textarea, #question input", ".vl-example", "#ask", "#both", "#clear"):
        tab_to(place)
    assert len(stops) < 60


def test_on_a_phone_a_tapped_time_brings_the_player_and_a_word_explains_itself(
    visit: Open,
) -> None:
    from playwright.sync_api import expect

    page = visit(width=390)
    time = page.locator("#answer .vl-time").last
    time.evaluate("e => e.scrollIntoView({block: 'start'})")
    expect(page.locator("#video")).not_to_be_in_viewport()
    time.click()
    moved_to(page, float(time.get_attribute("data-seconds") or "nan"))
    expect(page.locator("#video")).to_be_in_viewport(ratio=0.9)
    for word in page.locator("#account .vl-term, #status .vl-term, #strip .vl-term").all():
        word.focus()
        tip = word.get_by_role("tooltip")
        expect(tip).to_be_visible()
        box = tip.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
