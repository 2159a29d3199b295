"""What an answer looks like on a terminal: every time once, captions one a line."""

from __future__ import annotations

import pytest

from vidllm.cli.answers import spoken
from vidllm.models.answer import Answer, Receipt
from vidllm.timecode import Span

HOUR = 2 * 3600.0
RECEIPT = Receipt(8, 8, 4, 1.0, 0.5, {})


def answer(text: str, *spans: tuple[float, float]) -> Answer:
    return Answer(text, tuple(Span(start, end, 0.5) for start, end in spans), RECEIPT)


@pytest.mark.parametrize(
    ("of", "text", "spans", "duration", "told"),
    [
        ("ask", "from 15.8 s to 22.5 s", [(15.8, 22.5)], 36.0, "from 15.8 s to 22.5 s"),
        ("ask", "yellow", [], 36.0, "yellow"),
        ("ask", "It spins at 0:15 - 0:22.", [(15.0, 22.0)], 36.0, "It spins at 0:15 - 0:22."),
        ("ask", "early on", [(12.0, 15.0)], 36.0, "early on\n12.0 s – 15.0 s"),
        ("ask", "from 3987.0 s to 3990.5 s", [(3987.0, 3990.5)], HOUR, "from 1:06:27 to 1:06:30"),
        ("ask", "room 3987 at 61.2 s", [], HOUR, "room 3987 at 1:01"),
        ("ground", "from 15.8 s to 22.5 s", [(15.8, 22.5)], 36.0, "15.8 s – 22.5 s"),
        ("ground", "It spins.", [(3987.0, 3990.0), (5.0, 6.0)], HOUR,
         "1:06:27 – 1:06:30\n0:05 – 0:06"),
        ("ground", "I cannot say.", [], 36.0, "I cannot say."),
        ("caption", "from 5.4 s to 11.7 s the green house jumps . from 9.6 s to 15.4 s a plane .",
         [(5.4, 11.7), (9.6, 15.4)], 36.0,
         "5.4 s – 11.7 s  the green house jumps\n9.6 s – 15.4 s  a plane"),
        ("caption", "from 3987.0 s to 3999.0 s it jumps from 5.0 s to 65.0 s it sits",
         [(3987.0, 3999.0), (5.0, 65.0)], HOUR,
         "0:05 – 1:05  it sits\n1:06:27 – 1:06:39  it jumps"),
        ("caption", '[{"start": 5, "end": 65, "caption": "it\\nsits"}]', [(5.0, 65.0)], HOUR,
         "0:05 – 1:05  it sits"),
        ("caption", "A house, all along.", [], 36.0, "A house, all along."),
        ("caption", "From 5 s to 9 s it sits.\nAt 4000 s it jumps.", [(5.0, 9.0)], HOUR,
         "From 0:05 to 0:09 it sits.\nAt 1:06:40 it jumps."),
    ],
)  # fmt: skip
def test_every_time_is_told_once(
    of: str, text: str, spans: list[tuple[float, float]], duration: float, told: str
) -> None:
    assert spoken(answer(text, *spans), duration, of) == told
