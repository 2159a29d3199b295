"""NExT-GQA: multiple choice with the part of the video that shows the answer.

A video-LLM is asked twice about each question: for the letter (kind "answer", as NExT-QA asks),
and for the time at which the answer can be seen (kind "ground", without the options and without
its own answer, so that neither item depends on the other). The two items are joined by their
question. A method that answers both in one go would be asked otherwise; say so when comparing.

Verified in the authors' repository: `test.csv` and `val.csv` have the columns video_id, question,
answer (the text), qid, type, a0 … a4; `gsub_test.json` and `gsub_val.json` hold {video_id:
{"duration", "location": {qid: [[s, e], …]}, "fps"}}. Questions without a location are not scored
by the authors and not asked here. `map_vid_vidorID.json` gives a video's file, "1164/3238737531";
without it files are looked for by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors.schema import Array, Object, String

from ..scores.choices import accuracy, mark, mark_log_probabilities
from ..scores.common import Scores, same_length
from ..scores.gqa import best, gqa_scores
from ..scores.letters import read_letter
from .base import TASKS, TRUE_SPAN, Item, Response
from .choice import letter_for, question_text
from .files import annotation_files, field, optional_file, read_json, read_records, spans
from .spans_text import first_span, one_time
from .timed import TimedTask

GROUND = (
    "Which part of the video shows the answer to this question: '{question}' Answer with its start "
    "and end, in the format '<start time> - <end time> seconds'."
)
TYPES = {"C": "causal", "T": "temporal", "D": "descriptive"}
_LETTERS = "ABCDE"


@TASKS.register("nextgqa")
class NextGQA(TimedTask):
    """A span of an answer that names one time alone is that point, as the authors allow.

    Official: letters are read by NExT-QA's loose parser, and questions without a predicted span
    are left out.
    """

    truth = Object({"answer": String(), "spans": Array(TRUE_SPAN)})
    family = "grounding"
    headline = "Acc@GQA"
    summary = "the answer and the part that shows it; Acc@GQA, IoP, IoU"
    splits = ("test", "val")
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (f"{name}.csv|nextgqa/{name}.csv", f"gsub_{name}.json|nextgqa/gsub_{name}.json")
        for name in splits
    }
    citation = "Xiao et al., CVPR 2024, arXiv 2309.01327"
    licence = "MIT; the videos are VidOR's (YFCC100M)"
    home = "https://github.com/doc-doc/NExT-GQA"

    def items(self, data: Path, split: str) -> list[Item]:
        """Two a question, its answer first."""
        questions, places = annotation_files(self, data, split)
        located = read_json(places, dict)
        named = optional_file(data, "map_vid_vidorID.json", "nextgqa/map_vid_vidorID.json")
        paths = {} if named is None else read_json(named, dict)
        found = []
        for where, row in read_records(questions):
            vid, qid = (field(row, name, str, where=where) for name in ("video_id", "qid"))
            place = f"{places.name}, {vid}"
            entry = field(located, vid, dict, where=places.name, default={})
            at = field(entry, "location", dict, where=place) if entry else {}
            if qid in at:
                seen = spans(at, qid, where=f"{place}, location")
                duration = field(entry, "duration", float, where=place)
                video = field(paths, vid, str, where="map_vid_vidorID.json", default=vid)
                found += _pair(row, where, f"{vid}_{qid}", video, duration, seen)
        return found

    def read(self, item: Item, response: Response) -> Any:
        """The letter, or [start, end] in seconds."""
        if response.error is not None:
            return None
        if item.kind == "answer":
            return read_letter(response.text, _LETTERS, item.choices)
        if (found := first_span(item, response)) is not None:
            return list(found)
        time = one_time(item, response)
        return None if time is None else [time, time]

    def value(self, item: Item, response: Response) -> float:
        """1 for the right letter; IoP of a span."""
        found = self.read(item, response)
        if item.kind == "answer":
            return float(found == item.truth["answer"])
        return best(found, item.truth["spans"])[0]

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.gqa.gqa_scores`; `Acc@QA_logprob` is by the most probable letter."""
        same_length(items=items, responses=responses)
        joined = _joined(items, responses)
        asked = [pair["answer"] for pair in joined.values() if "answer" in pair]
        truth = [item.truth["answer"] for item, _ in asked]
        marked = mark(
            [None if r.error is not None else r.text for _, r in asked],
            truth,
            options=[item.choices for item, _ in asked],
            official=official,
            benchmark="nextqa",
        )
        right = {_question(i): m.right for (i, _), m in zip(asked, marked, strict=True)}
        any_item = {name: next(iter(pair.values()))[0] for name, pair in joined.items()}
        found = gqa_scores(
            [self._span(pair) for pair in joined.values()],
            [item.truth["spans"] for item in any_item.values()],
            [right.get(name, False) for name in joined],
            official=official,
        )
        rows = [_letters(response) for _, response in asked]
        likely = mark_log_probabilities(rows, truth) if any(rows) else None
        found["Acc@QA_logprob"] = None if likely is None else accuracy(likely)
        unread = [self.read(i, r) is None for i, r in zip(items, responses, strict=True)]
        found["parse_failures"] = sum(unread) / len(unread) if unread else None
        return found

    def samples(
        self, items: Sequence[Item], responses: Sequence[Response]
    ) -> list[tuple[str, float]]:
        """One a question: whether its answer is right and its span has an IoP of 0.5."""
        found = []
        for pair in _joined(items, responses).values():
            item = next(iter(pair.values()))[0]
            right = "answer" in pair and self.value(*pair["answer"]) == 1.0
            inside = "ground" in pair and self.value(*pair["ground"]) >= 0.5
            found.append((item.vid, float(right and inside)))
        return found

    def _span(self, pair: Mapping[str, tuple[Item, Response]]) -> Any:
        return self.read(*pair["ground"]) if "ground" in pair else None


def _pair(
    row: dict[str, Any],
    where: str,
    name: str,
    video: str,
    duration: float,
    seen: list[tuple[float, float]],
) -> list[Item]:
    choices = tuple(field(row, f"a{k}", str, where=where) for k in range(5))
    answer = field(row, "answer", str, where=where)
    question = " ".join(field(row, "question", str, where=where).split()).rstrip(" ?") + "?"
    kind = field(row, "type", str, where=where)
    truth = {
        "answer": letter_for(answer, choices, f"{where}: the field 'answer'"),
        "spans": [list(span) for span in seen],
    }
    shared: dict[str, Any] = {
        "vid": field(row, "video_id", str, where=where),
        "video": video,
        "truth": truth,
        "duration": duration,
        "groups": {"type": TYPES.get(kind[:1], kind), "question": kind},
    }
    prompt = question_text(question, choices)
    ground = GROUND.format(question=question)
    return [
        Item(f"{name}:answer", prompt=prompt, kind="answer", choices=choices, **shared),
        Item(f"{name}:ground", prompt=ground, kind="ground", **shared),
    ]


def _question(item: Item) -> str:
    return item.id.rpartition(":")[0]


def _joined(
    items: Sequence[Item], responses: Sequence[Response]
) -> dict[str, dict[str, tuple[Item, Response]]]:
    """Question → kind → its item and response."""
    found: dict[str, dict[str, tuple[Item, Response]]] = {}
    for item, response in zip(items, responses, strict=True):
        found.setdefault(_question(item), {})[item.kind] = (item, response)
    return found


def _letters(response: Response) -> list[float] | None:
    given = response.letters or {}
    row = [given.get(letter) for letter in _LETTERS]
    return None if None in row else [float(p) for p in row if p is not None]
