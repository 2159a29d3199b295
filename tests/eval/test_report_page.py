"""The page of `vidllm report`: self-contained, escaped, right in its worst cases, and readable."""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_data import (
    DURATION,
    GRID,
    SETTINGS,
    choice_items,
    grounding_items,
    make_run,
    write_clips,
)
from tiny import save_tiny
from videos import numbers_in, write_video

from vidllm.cli.main import main
from vidllm.errors import InputError
from vidllm.eval.report.answer_frames import (
    Case,
    choose_slots,
    pictures,
    plain_truth,
    timeline_end,
    veiled,
    worst_cases,
)
from vidllm.eval.report.load import load_run
from vidllm.eval.report.report_command import write_report
from vidllm.eval.tasks.base import Item, Response

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
EVIL = '<script>alert(1)</script><img src="http://x.example/a.png" onerror=alert(2)>'


class Checked(HTMLParser):
    """Tags that open and close in order, and every address on the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def evil_run(folder: Path, videos: Path) -> Path:
    """Every text that a model or a file brings is HTML."""
    items = [
        replace(
            item,
            prompt=f"{EVIL} {item.prompt}",
            groups={EVIL: f"{EVIL}{k % 2}"},
            kind=EVIL,
        )
        for k, item in enumerate(grounding_items(3, 2))
    ]
    said = {("aim@0.5", items[0].id): Response(text=EVIL, raw=EVIL)}
    said |= {(s, items[-1].id): Response(error=EVIL) for s in SETTINGS}
    return make_run(folder, items=items, said=said, videos=videos, model=EVIL, commit=EVIL)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), ["v0", "v1"])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """One page of an evil run of charades and an unfinished one of videomme."""
    home = tmp_path_factory.mktemp("page")
    folders = [evil_run(home / "evil", videos)]
    items = choice_items(3)
    folders.append(make_run(home / "choice", "videomme", items=items, videos=videos, only=10))
    return write_report(folders, home / "out", worst=9)[0]


def test_the_page_is_whole_and_asks_nobody(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    checked = Checked(text)
    assert {"main", "table", "picture", "figure", "details"} <= set(checked.tags)
    assert not {"script", "link", "iframe", "object", "form", "video", "base"} & set(checked.tags)
    for address in checked.addresses:
        assert address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#task-"))
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    for kind, data in re.findall(r"data:image/(\w+);base64,([^\"]+)", text):
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()


def test_what_models_and_files_say_is_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("&lt;script") > 10  # question, answer, model, reason, group, …
    table = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "<script" not in table


def test_the_page_tells_of_everything(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for words in (
        "Score against cost",
        "How far spans are off",
        "Letters: generated, and by log-probability",
        "What compression lost",
        "Videos without an answer (1)",
        "Everything that the runs were made with",
        "versions.torch",
    ):
        assert words in text, words
    beside = {file.name for file in page.parent.glob("*.png")}
    for name in ("tokens", "flops", "seconds", "relative", "stages", "iou", "errors-seconds"):
        assert f"charades-{name}.png" in beside
    assert {
        "videomme-letters.png",
        "videomme-calibration.png",
        "videomme-by-duration.png",
    } <= beside
    assert text.count("data:image/png") == 2 * len(beside)  # both themes


def test_an_unfinished_run_and_missing_videos_are_said(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "This run is not finished: 50 of 60 answers are there" in text
    assert re.search(r"No pictures: no video &#39;v2&#39; in \S+", text)


def test_a_real_run_of_a_tiny_model(tmp_path: Path) -> None:
    words = ["eval", "stage", "--limit", "1", "--jobs", "1", "--no-baselines", "--json"]
    words += ["--model", save_tiny(tmp_path / "model"), "--data", tmp_path / "data"]
    words += ["--compressor", "uniform,temporal-pool", "--keep", "0.5", "--out", tmp_path / "run"]
    assert main([str(word) for word in words]) == 0
    said = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    page = write_report([tmp_path / "run"], worst=2)[0]
    assert page == tmp_path / "run" / "report" / "report.html"
    text = page.read_text(encoding="utf-8")
    Checked(text)
    assert text.count("data:image/jpeg") == 2 * 8 and "No pictures" not in text
    rows = csv.DictReader((page.parent / "report.csv").open(encoding="utf-8"))
    scores = {row["setting"]: float(row["score"]) for row in rows}
    assert scores == {label: one["headline"]["value"] for label, one in said.items()}
    assert list(scores) == ["none@1", "uniform@0.5", "temporal-pool@0.5"]


def test_worst_cases_are_those_that_lost_most_each_question_once(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", items=grounding_items(6, 4)))
    found = worst_cases(run, 6)
    losses = [case.loss or 0 for case in found]
    assert losses == sorted(losses, reverse=True) and losses[-1] > 0
    assert len({case.item.id for case in found}) == 6
    assert {case.row.setting.split("@")[0] for case in found} == {"aim"}  # uniform is a control
    every = {
        name: max(full.value - run.rows[s][name].value for s in ("aim@0.5", "aim@0.25"))  # type: ignore[operator]
        for name, full in run.rows["none@1"].items()
    }
    assert losses == pytest.approx(sorted(every.values(), reverse=True)[:6])
    for case in found:
        assert case.full is not None and case.loss == case.full.value - case.row.value  # type: ignore[operator]
        assert {label for label, _ in case.others} == {*SETTINGS} - {"none@1", case.row.setting}


def test_of_equal_losses_other_videos_and_larger_shares_come_first(tmp_path: Path) -> None:
    items = choice_items(3, 3)
    right = {("none@1", i.id): Response(text=f"{i.truth}.") for i in items}
    wrong = {(s, i.id): Response(text="?") for s in SETTINGS[1:] for i in items}
    run = load_run(make_run(tmp_path / "r", "videomme", items=items, said=right | wrong))
    found = worst_cases(run, 3)
    assert [case.row.setting for case in found] == ["aim@0.5"] * 3
    assert len({case.item.vid for case in found}) == 3


def test_without_compression_the_lowest_values_are_the_worst(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "r", settings=("none@1",)))
    found = worst_cases(run, 4)
    values = sorted(row.value or 0.0 for row in run.rows["none@1"].values())
    assert [case.row.value for case in found] == values[:4]
    assert all(case.full is None and case.loss is None for case in found)


def case_of(folder: Path, videos: Path, video: str = "v1") -> Case:
    run = load_run(make_run(folder, videos=videos))
    name = next(name for name, item in run.items.items() if item.video == video)
    return Case(run.items[name], run.rows["aim@0.5"][name], None, None, run.family)


def test_frames_are_those_that_the_map_speaks_of(tmp_path: Path, videos: Path) -> None:
    case = case_of(tmp_path / "r", videos)
    seen = pictures(case, lambda item: videos / f"{item.video}.mp4")
    assert not seen.reason and len(seen.stills) == GRID[0]
    middles = [(k + 0.5) * DURATION / GRID[0] for k in range(GRID[0])]
    assert [still.second for still in seen.stills] == pytest.approx(middles)
    assert sum(still.kept for still in seen.stills) == seen.kept == 72
    assert {still.total for still in seen.stills} == {24}
    start, end = case.item.truth
    assert [s.in_truth for s in seen.stills] == [start <= t <= end for t in middles]
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(s.picture.split(",")[1]))))
        for s in seen.stills
    ]
    assert {frame.shape for frame in shown} == {(150, 200, 3)}
    bare = replace(case, row=replace(case.row, file=tmp_path / "none.jsonl", offset=0))
    (tmp_path / "none.jsonl").write_text('{"kept": null}\n')
    whole = pictures(replace(bare, full=case.row), lambda item: videos / "v1.mp4")
    plain = [
        Image.open(io.BytesIO(base64.b64decode(s.picture.split(",")[1]))) for s in whole.stills
    ]
    assert numbers_in(np.stack([np.asarray(p) for p in plain])) == [
        round(t * 10 - 0.5) for t in middles
    ]
    assert "no map of kept tokens" in whole.notes[0]


def test_a_video_that_is_not_there_costs_only_its_pictures(tmp_path: Path, videos: Path) -> None:
    case = case_of(tmp_path / "r", videos, "v3")

    def gone(item: Item) -> Path:
        raise InputError(f"no video {item.video!r}")

    assert pictures(case, gone).reason == "no video 'v3'"
    (tmp_path / "v3.mp4").write_bytes(b"not a video")
    broken = pictures(case, lambda item: tmp_path / "v3.mp4")
    assert not broken.stills and "v3.mp4" in broken.reason
    short = write_video(tmp_path / "short.mp4", 5, fps=10)
    assert "outside" in pictures(case, lambda item: short).reason


def test_the_veil_covers_what_was_dropped_and_nothing_else() -> None:
    frame = np.full((300, 400, 3), 200, np.uint8)
    heat = np.array([[1.0, 0.0], [0.5, 0.25]])
    shown = veiled(frame, heat, np.array([[True, False], [True, False]])).astype(int)
    assert shown.shape == (150, 200, 3)
    kept, dropped, half, quarter = shown[37, 50], shown[37, 150], shown[112, 50], shown[112, 150]
    assert kept.tolist() == [200, 200, 200]
    assert dropped.max() < 140 and np.ptp(dropped) < 30  # grey
    assert half[0] - half[2] > 30 < quarter[0] - quarter[2]  # the more are merged, the stronger
    assert quarter[0] - quarter[2] > half[0] - half[2]
    assert shown[0, 50, 0] > 200 and shown[0, 150, 0] < 140  # only kept cells are outlined


def test_slots_are_spread_and_hold_the_spans() -> None:
    seconds = np.arange(64) * 0.5
    slots = choose_slots(seconds, [(3.1, 3.9), (20.0, 20.2)])
    assert len(slots) == 8 and slots == sorted(set(slots))
    assert 7 in slots and 40 in slots and slots[0] == 0 and slots[-1] == 63
    assert choose_slots(np.arange(5.0), [(1, 2)]) == [0, 1, 2, 3, 4]
    assert len(choose_slots(seconds, [(k, k + 1) for k in range(30)])) == 8
    assert len(choose_slots(seconds, [])) == 8


def test_truths_and_timelines_for_people(tmp_path: Path, videos: Path) -> None:
    case = case_of(tmp_path / "r", videos)
    assert plain_truth(case) == "0.2 to 1.1 s" and timeline_end(case) == DURATION
    filled = {"answer": "from {} to {} it spins", "spans": [[1, 2.25]]}
    made = replace(case, item=Item("q", "v", "v", "?", filled), family="made")
    assert plain_truth(made) == "from 1.0 s to 2.2 s it spins"
    letter = Item("q", "v", "v", "?", "B", choices=("a cat", "a dog"))
    assert plain_truth(replace(case, item=letter, family="choice")) == "B. a dog"
    unknown = replace(
        case, row=replace(case.row, response=Response(spans=((1.0, 7.5),)), parsed=None)
    )
    assert timeline_end(replace(unknown, item=replace(case.item, duration=None))) == 7.5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH to open the page with")
def test_the_page_in_a_browser(page: Path) -> None:
    from playwright.sync_api import sync_playwright

    measure = """() => [...document.querySelectorAll('body *')].filter(e =>
        !e.closest('.scroll, details:not([open])') &&
        e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
    shown = "() => [...document.images].filter(i => i.complete && i.naturalWidth > 0).length"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        grounds = {}
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
            tab = browser.new_page(
                viewport={"width": width, "height": 800},
                color_scheme=scheme,  # type: ignore[arg-type]
            )
            asked: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("dialog", lambda dialog: pytest.fail("a script ran"))
            tab.goto(page.as_uri())
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
            assert tab.evaluate(measure) == 0, (scheme, width)
            assert tab.evaluate(shown) == tab.evaluate("() => document.images.length")
            grounds[scheme, width] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            first = tab.locator("picture img").first.evaluate("i => i.currentSrc")
            data = Image.open(io.BytesIO(base64.b64decode(first.split(",")[1]))).convert("RGB")
            assert f"rgb{data.getpixel((0, 0))}" == grounds[scheme, width]
        assert grounds["dark", 1280] != grounds["light", 1280] == grounds["light", 360]
        browser.close()


def test_the_picture_of_readme(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "docs" / "report_picture.py"
    spec = importlib.util.spec_from_file_location("report_picture", file)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    run, out = make_run(tmp_path / "r"), tmp_path / "report.png"
    monkeypatch.setattr(sys, "argv", ["report_picture", str(run), "--out", str(out)])
    assert script.main() == 0
    for name in ("report.png", "report-dark.png"):
        assert Image.open(tmp_path / name).size == (2000, 820)
    monkeypatch.setattr(sys, "argv", ["report_picture", str(tmp_path / "nothing")])
    assert script.main() == 2
    monkeypatch.setattr(sys, "argv", ["report_picture", str(run), "--second", "CIDEr"])
    assert script.main() == 2
