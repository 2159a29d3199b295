"""What the page draws: to scale, complete, safe to put into HTML."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio")

from vidllm import Span, TokenMap, VideoClip
from vidllm.ask.comparing import Comparison
from vidllm.ask.serving import Offer
from vidllm.demo import views
from vidllm.demo.drawing import clock, lanes, scores, timeline
from vidllm.demo.jobs import Heard
from vidllm.demo.sessions import Row
from vidllm.demo.strip import DROPPED, KEPT, MERGED, cover, fates, sprite, strip
from vidllm.models.answer import Answer, Receipt

WICKED = '<script>alert("x")</script>&'
RECEIPT = Receipt(8, 32, 8, 2.0, 0.5, {"decode": 0.2, "prefill": 0.05, "generate": 1.0}, 12.0)


class Elements(HTMLParser):
    """Elements of a piece of HTML by class; every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, kind: str) -> list[dict[str, str]]:
        return [a for _, a in self.found if kind in a.get("class", "").split()]


def number(attributes: dict[str, str], name: str) -> float:
    assert attributes[name].endswith("%")
    return float(attributes[name][:-1])


def a_map(slots: int = 4, carrier: list[int] | None = None, place: list[int] | None = None) -> Any:
    """One token of four kept in every slot, unless it is said otherwise."""
    if carrier is None or place is None:
        carrier = [k // 4 if k % 4 == 0 else -1 for k in range(4 * slots)]
        place = [4 * k for k in range(slots)]
    return TokenMap((slots, 2, 2), np.arange(slots) * 2.0 + 1, np.array(carrier), np.array(place))


def a_clip(frames: int = 4) -> VideoClip:
    shades = np.linspace(0, 255, frames).astype(np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (frames, 36, 64, 3))
    seconds = np.arange(frames) * 2.0 + 1
    return VideoClip(pixels, seconds, 30.0, 2.0 * frames, np.arange(frames), "a.mp4")


def test_a_timeline_is_to_scale() -> None:
    spans = [Span(10, 20), Span(35, 40), Span(39, 50)]
    drawn = timeline(40.0, [Row("one", spans), Row(WICKED, [])], [0.0, 10.0, 40.0], a_map())
    assert "<script" not in drawn
    found = Elements(drawn)
    bars = found.of("vl-span")
    # A span behind the end ends with the video; one that overlaps stands in a line of its own.
    assert [(number(b, "x"), number(b, "width")) for b in bars] == [
        (25, 25), (87.5, 12.5), (97.5, 2.5)
    ]  # fmt: skip
    assert bars[0]["y"] == bars[1]["y"] != bars[2]["y"]
    assert [number(t, "x1") for t in found.of("vl-tick")] == [0, 25, 100]
    kept = found.of("vl-bar")
    assert len(kept) == 4 and len({b["height"] for b in kept}) == 1
    middles = [number(b, "x") + number(b, "width") / 2 for b in kept]
    assert middles == pytest.approx([2.5, 7.5, 12.5, 17.5], abs=0.01)
    lanes_ = found.of("vl-lane")
    assert float(kept[0]["height"]) == pytest.approx(float(lanes_[-1]["height"]) / 4)
    tall = float(found.found[0][1]["height"])
    assert all(float(a["y"]) + float(a["height"]) <= tall for a in (*bars, *kept))


@pytest.mark.parametrize("duration", [0.4, 1.0, 7.3, 41.2, 60.0, 599.0, 3600.0, 4 * 3600.0, 1e6])
def test_an_axis_has_few_marks_at_every_length(duration: float) -> None:
    found = Elements(timeline(duration)).found
    words = [a for tag, a in found if tag == "text"]
    places = [number(a, "x") for a in words]
    assert 2 <= len(words) <= 7 and places == sorted(places)
    assert all(0 <= p <= 100 for p in places)
    assert min(b - a for a, b in pairwise(places)) > 12  # of 340 pixels: 40


def test_no_video_and_one_frame_can_be_drawn() -> None:
    assert timeline(0.0) == ""
    assert "1 frame" in timeline(2.0, frames=[0.5])
    one = TokenMap((1, 1, 1), np.array([0.5]), np.array([0]), np.array([0]))
    assert len(Elements(timeline(2.0, kept=one)).of("vl-bar")) == 1
    assert "no time" in timeline(2.0, [Row("answer", ())])


def test_clocks_and_lanes() -> None:
    told = [clock(t) for t in (0, 16.64, 59.96, 60, 3599.96, 3723.4)]
    assert told == ["0:00.0", "0:16.6", "1:00.0", "1:00.0", "1:00:00.0", "1:02:03.4"]
    assert clock(90.4, 0) == "1:30"
    many = [Span(i, 100) for i in range(9)]
    assert [len(lane) for lane in lanes(many)] == [1, 1, 1, 6]
    assert lanes([Span(5, 6), Span(0, 5)]) == [[Span(0, 5), Span(5, 6)]]
    assert lanes([]) == [[]]


def test_a_curve_has_a_step_for_every_value() -> None:
    seconds = np.linspace(0, 10, 101)
    values = np.where(seconds < 2, 0.0, np.where(seconds < 4, 0.5, 0.25))
    steps = Elements(scores(10.0, seconds, values)).of("vl-curve")
    assert len(steps) == 2
    assert float(steps[0]["height"]) == pytest.approx(2 * float(steps[1]["height"]), abs=0.02)
    assert number(steps[0], "x") == pytest.approx(20, abs=0.6)
    assert number(steps[1], "x") + number(steps[1], "width") == pytest.approx(100)
    assert "no moment" in scores(10.0, seconds, np.zeros(101))


def test_a_strip_shows_what_became_of_every_token() -> None:
    # Slot 0: kept, merged into it, dropped, dropped; slot 1: all merged into slot 0; 2, 3 dropped.
    made = a_map(4, [0, 0, -1, -1, 0, 0, 0, 0, *[-1] * 8], [0])
    fate = fates(made)
    assert fate[0].tolist() == [[KEPT, MERGED], [DROPPED, DROPPED]]
    assert (fate[1] == MERGED).all() and (fate[2:] == DROPPED).all()
    data = re.fullmatch(r'<img alt="" src="data:image/png;base64,(.*)">', cover(fate[0]))
    assert data is not None
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))[..., 3]
    assert alpha[0, 0] == 0 < alpha[0, 1] < alpha[1, 0]
    assert cover(np.full((2, 2), KEPT)) == ""
    html = strip(a_clip(), made)
    found = Elements(html)
    assert len(found.of("vl-pic")) == 4 and html.count("<img") == 4
    assert "0:01.0: 1 of 4 tokens" in html and "0:03.0: 0 of 4 tokens" in html
    assert "<img" not in strip(a_clip(), None)
    assert len(Elements(strip(a_clip(8), made)).of("vl-pic")) == 4  # a picture a slot


@pytest.mark.parametrize("frames", [1, 5, 16, 40])
def test_every_frame_is_found_in_the_sprite(frames: int) -> None:
    clip = a_clip(frames)
    data = re.search(r"base64,(.*?)\)", sprite(clip))
    assert data is not None
    sheet = Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("L")
    size = re.search(r"background-size:(\d+)% (\d+)%", sprite(clip))
    assert size is not None
    columns, rows = int(size[1]) // 100, int(size[2]) // 100
    wide, tall = sheet.width // columns, sheet.height // rows
    for number_, picture in enumerate(Elements(strip(clip, None)).of("vl-pic")):
        across, down = (float(v) for v in re.findall(r"([\d.]+)%", picture["style"]))
        left = across / 100 * (sheet.width - wide)
        top = down / 100 * (sheet.height - tall)
        shade = sheet.getpixel((round(left + wide / 2), round(top + tall / 2)))
        assert shade == pytest.approx(int(clip.frames[number_, 0, 0, 0]), abs=4)


def test_what_is_said_is_escaped_and_complete() -> None:
    answer = Answer("x", (Span(1, 2),), RECEIPT, notes=(WICKED,))
    other = Answer("y", (), RECEIPT)
    offer = Offer("compressor", WICKED, "s", None, "", WICKED)
    heard = Heard({"decode": 0.2}, "prefill", 0.0, WICKED)
    for html in (
        views.problem(WICKED),
        views.hint(WICKED),
        views.account(answer),
        views.comparison(Comparison(answer, other), WICKED),
        views.refusals([offer]),
        views.progress(heard, ("decode", "prefill", "generate")),
        views.stopped(1.0, WICKED),
    ):
        assert "<script" not in html
        Elements(html)
    shown = Elements(views.progress(heard, ("decode", "prefill", "generate")))
    assert [len(shown.of(kind)) for kind in ("vl-done", "vl-now", "vl-later")] == [1, 1, 1]
    assert "40 %" in views.progress(Heard(share=0.4))
    told = views.comparison(Comparison(answer, other), "aim")
    assert "0:01.0 – 0:02.0" in told and "12.0 MB" in told and "differ" in told
    assert views.problem("") == ""
    assert "FLOPs" not in views.account(answer)  # of a model whose shapes are not known
