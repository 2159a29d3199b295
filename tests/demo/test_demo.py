"""The web page in a real browser, used as a person would use it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from demo_server import (
    BROWSER,
    NO_BROWSER,
    choose,
    covers,
    moved_to,
    number,
    place,
    proxied,
    serving,
    until,
    upload,
    write,
)
from tiny import save_tiny, write_video
from videos import write_sound

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
SAMPLE = Path(__file__).resolve().parents[2] / "weights" / "samples" / "red-star.mp4"
Open = Callable[..., Any]


def every_tab_is_seen(page: Any) -> None:
    """None is put away in a menu."""
    from playwright.sync_api import expect

    for name in ("Ask", "Find", "Captions", "Highlights", "Long video"):
        tab = page.get_by_role("tab", name=name)
        tab.scroll_into_view_if_needed()
        expect(tab).to_be_in_viewport(ratio=0.95)  # parts of a pixel do not count


def test_ask_click_a_time_and_take_the_answer_home(visit: Open, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = visit()
    video = tmp_path / "holiday.mp4"
    shutil.copy(SAMPLE, video)
    upload(page, video)
    write(page, "question", "when does the red star spin?")
    page.locator("#ask").click()
    expect(page.locator("#account dl")).to_be_visible()
    times = page.locator("#answer .vl-time")
    expect(times).to_have_count(2)
    assert place(page) == 0
    for number_, text in enumerate(times.all_inner_texts()):
        times.nth(number_).click()
        moved_to(page, float(text.split()[0]))
    for stage in ("read video", "encode", "compress", "prefill", "generate", "in all"):
        expect(page.locator("#status")).to_contain_text(stage)
    page.get_by_text("Take the answer with you").click()
    expect(page.locator("#python .cm-content")).to_contain_text("answer = ")
    python = page.locator("#python .cm-content").inner_text()
    with page.expect_download() as saved:
        page.locator("#json").get_by_label("Download").click()
    told = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    # The timeline is to scale.
    start, end = told["answer"]["spans"][0]
    bar = page.locator("#timeline .vl-span").first
    left, width = (float(bar.get_attribute(n).rstrip("%")) for n in ("x", "width"))
    duration = told["video"]["duration"]
    assert left == pytest.approx(100 * start / duration, abs=0.01)
    assert width == pytest.approx(100 * (end - start) / duration, abs=0.01)
    expect(page.locator("#timeline .vl-tick")).to_have_count(64)
    _same_again(python, told, tmp_path)


def _same_again(python: str, told: dict[str, Any], folder: Path) -> None:
    """The copied program, and the call in the JSON, give the answer of the page."""
    check = """
import json
from vidllm.ask.calls import Call
again = Call.from_dict(json.load(open("answer.json"))["call"]).run()
for a in (answer, again):
    print(json.dumps([a.as_dict(), a.kept.as_dict()]))
"""
    (folder / "answer.json").write_text(json.dumps(told))
    (folder / "copied.py").write_text(python + check)
    done = subprocess.run(
        [sys.executable, "copied.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[-2:]:
        answer, kept = json.loads(line)
        for made in (answer, told["answer"]):
            for clock in ("seconds", "own_seconds", "total_seconds"):
                made["receipt"].pop(clock, None)
        assert answer == told["answer"] and kept == told["kept"]


def test_what_is_kept_is_seen_without_the_llm(visit: Open) -> None:
    from playwright.sync_api import expect

    page = visit()
    note = page.locator("#strip p").first
    expect(note).to_contain_text("The last answer saw 128 of 1,024 tokens")
    bars = page.locator("#timeline .vl-bar")
    expect(bars).not_to_have_count(0)
    told = bars.count()
    first = covers(page)
    number(page, "keep", 0.5)
    expect(note).to_contain_text("512 of 1,024 tokens (50 %)")
    expect(note).to_contain_text("without the LLM")
    second = covers(page)
    assert len(first) == len(second) == 64 and first != second
    expect(bars).not_to_have_count(told)
    choose(page, "compressor", "uniform")
    expect(note).to_contain_text("uniform keeps 512 of 1,024")
    assert covers(page) != second
    choose(page, "compressor", "fastv")
    expect(note).to_contain_text("chooses while the LLM runs")
    assert not any("img" in cover for cover in covers(page))
    page.locator("#ask").click()
    expect(note).to_contain_text("The last answer saw 512 of 1,024")
    assert any("img" in cover for cover in covers(page))
    choose(page, "compressor", "mustdrop-cache")
    expect(page.locator("#problem")).to_contain_text("mustdrop-filter,mustdrop-cache")
    choose(page, "recipe", "storm-sampling")
    expect(note).to_contain_text("keeps 128 of 1,024 tokens (12.5 %)")
    expect(page.locator("#problem")).to_be_hidden()
    # Another share by hand, and it is that recipe no more.
    number(page, "keep", 0.25)
    expect(note).to_contain_text("keeps 256 of 1,024 tokens")
    expect(page.locator("#recipe input")).to_have_value("none")
    page.get_by_text("methods that this model cannot serve").click()
    refused = page.locator("#refused tr", has_text="mustdrop-cache")
    expect(refused).to_contain_text("mustdrop-filter,mustdrop-cache")


def test_full_and_compressed_side_by_side(visit: Open) -> None:
    from playwright.sync_api import expect

    page = visit()
    expect(page.locator("#compare")).to_be_hidden()
    expect(page.locator("#method")).to_contain_text("with every token, and with mrt5, keep 0.125")
    page.locator("#both").click()
    verdict = page.locator("#verdict")
    expect(verdict.locator("table")).to_be_visible()
    expect(verdict).to_contain_text("the answers agree")
    rows = dict.fromkeys(("video tokens", "TTFT", "KV cache", "peak memory", "FLOPs"))
    for name in rows:
        cells = verdict.locator("tr", has_text=name).locator("td").all_inner_texts()
        assert len(cells) == 3 and re.match(r"[\d.,]+", cells[0])
    expect(page.locator("#less h4")).to_have_text("mrt5, keep 0.125")
    times = page.locator("#full .vl-time").first
    times.click()
    moved_to(page, float(times.inner_text().split()[0]))
    expect(page.locator("#less .vl-time").first).to_be_visible()
    expect(page.locator("#timeline .vl-span-1")).to_have_count(1)


def test_moments_captions_highlights_and_a_long_video(visit: Open) -> None:
    from playwright.sync_api import expect

    page = visit()

    def go_to_row(name: str, row: int) -> None:
        cell = page.locator(f"#{name} .vl-time").nth(2 * row)
        expect(cell).to_contain_text("0:")
        cell.click()
        minutes, seconds = cell.inner_text().strip().split(":")
        moved_to(page, 60 * float(minutes) + float(seconds))

    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        every_tab_is_seen(page)
    page.get_by_role("tab", name="Find").click()
    write(page, "query", "the red star spins")
    page.locator("#find").click()
    go_to_row("found", 0)
    page.get_by_role("tab", name="Captions").click()
    page.locator("#describe").click()
    go_to_row("captions", 1)
    page.get_by_role("tab", name="Highlights").click()
    write(page, "theme", "the red plane blinks")
    page.locator("#show").click()
    expect(page.locator("#curve .vl-curve").first).to_be_visible()
    go_to_row("peaks", 0)
    page.get_by_role("tab", name="Long video").click()
    page.locator("#read").click()
    expect(page.locator("#index")).to_contain_text("at 1 frame a second")
    write(page, "long-question", "when does the red star spin?")
    page.locator("#long-ask").click()
    time = page.locator("#long-answer .vl-time").first
    expect(time).to_be_visible()
    time.click()
    moved_to(page, float(time.inner_text().split()[0]))


def test_stop_ends_the_work(visit: Open, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = visit()
    video = write_video(tmp_path / "many.mp4", [i / 30 for i in range(2000)])
    upload(page, video)
    choose(page, "compressor", "none")
    expect(page.locator("#strip p").first).to_contain_text("none keeps")
    number(page, "frames", 2000)
    page.locator("#ask").click()
    status = page.locator("#status")
    # A stage of asking, and none of reading the video for so many frames: the run has begun.
    expect(status).to_contain_text("prefill")
    expect(status.locator(".vl-now")).to_be_visible()
    page.locator("#stop").click()
    expect(status).to_contain_text("stopped after")
    assert page.locator("#account dl").count() == 0
    number(page, "frames", 8)
    page.locator("#ask").click()
    expect(page.locator("#account")).to_contain_text("of 128")


def test_bad_input_is_a_line_on_the_page(visit: Open, tmp_path: Path, uploads: Path) -> None:
    from playwright.sync_api import expect

    page = visit(width=390)
    every_tab_is_seen(page)
    problem = page.locator("#problem")
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(Random(0).randbytes(5000))  # drawn anew, it would be "audio" now and then
    write_sound(tmp_path / "sound.m4a").rename(tmp_path / "sound.mp4")
    long = write_video(tmp_path / "long.mp4", [0.0, 100.0, 200.0])
    short = write_video(tmp_path / "short.mp4", [i / 8 for i in range(24)])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(short.read_bytes()[:600])
    lines = {
        garbage: "garbage.mp4 is not a video",
        tmp_path / "sound.mp4": "sound.mp4 has no video",
        cut: "cut.mp4",
        long: "above the limit of 120",
    }
    field = page.locator("input[type=file]")
    for file, line in lines.items():
        field.set_input_files(str(file))
        expect(problem).to_contain_text(line)
        # The event that says so also empties the box: a file put there before would go with it.
        expect(problem).not_to_contain_text("processing |")
        expect(field).to_be_attached()  # the box is free for another file
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(4_000_000))
    field.set_input_files(str(big))
    expect(page.get_by_text(re.compile("size", re.I)).first).to_be_visible()
    page.reload()
    expect(page.locator("#strip p").first).to_contain_text("saw")  # what it opens with is there
    upload(page, short)
    assert not [f for f in uploads.rglob("*") if f.name in {"garbage.mp4", "cut.mp4", "big.mp4"}]
    write(page, "question", " ")
    page.locator("#ask").click()
    expect(problem).to_contain_text("the question is empty")
    write(page, "question", "when does the zebra spin?")
    page.locator("#ask").click()
    expect(page.locator("#account")).to_contain_text("does not know: zebra")
    expect(problem).to_contain_text("not of the made world")  # and no more of the question
    assert page.get_by_text("Traceback").count() == 0


def test_visitors_do_not_meet_and_leave_nothing(visit: Open, tmp_path: Path, uploads: Path) -> None:
    from playwright.sync_api import expect

    one, two = visit(), visit()
    mine = write_video(tmp_path / "mine.mp4", [i / 8 for i in range(20)])
    upload(one, mine)
    assert list(uploads.rglob("mine.mp4"))  # its frames are on the page
    for page in (one, two):
        page.locator("#ask").click()
    expect(one.locator("#account")).to_contain_text("of 320")
    expect(two.locator("#account")).to_contain_text("of 1,024")
    assert "mine.mp4" not in two.content()
    one.close()
    until(lambda: not list(uploads.rglob("mine.mp4")), "the file went with its visitor")


def test_behind_a_path_prefix(visit: Open, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    model = save_tiny(tmp_path / "model")
    options = ("--model", str(model), "--root-path", "/video/demo")
    with serving(tmp_path / "files", *options) as inner, proxied(inner, "/video/demo") as outer:
        page = visit(outer + "/")
        upload(page, write_video(tmp_path / "clip.mp4", [i / 8 for i in range(24)]))
        page.wait_for_function("document.querySelector('#video video').duration > 2")
        page.locator("#ask").click()
        expect(page.locator("#account")).to_contain_text("of 64")
    assert not list((tmp_path / "files").rglob("clip.mp4"))  # the server took it along
