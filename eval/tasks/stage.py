"""`stage`: vidllm's own benchmark, made from seeds; everything that it asks is asked openly.

Items come from the generated files (docs/stage.md); nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidllm.errors import InputError
from vidllm.errors.schema import Array, Object, Schema, String
from vidllm.stage.annotations import questions_file, read_questions, tidy
from vidllm.stage.questions import QA_KINDS, Question
from vidllm.stage.scenes import SPLITS, USUAL, WORLDS, check_version
from vidllm.timecode import AbsoluteTime, RelativeTime, TextTime, TimeCode, answer_text

from ..scores.common import Interval, Scores, average
from ..scores.metrics import (
    LENGTHS,
    THRESHOLDS,
    TIMED,
    Reply,
    event_f1,
    normal,
    sentences,
    set_iou,
    summarise,
)
from .base import TASKS, TRUE_SPAN, Item, Response, Task, check_split
from .options import option, whole_number

if TYPE_CHECKING:
    from vidllm.stage.files import Sample

_KNOWN = " and ".join(map(str, WORLDS))


@TASKS.register("stage")
@dataclass(frozen=True)
class Stage(Task):
    """Grounding, short answers, highlights, dense captions and when-and-why on made videos.

    Args:
        version: of the made world, see docs/stage.md.

    Raises:
        InputError: no such version.
    """

    version: int = option(
        "version", USUAL, whole_number, f"Version of the made world: {USUAL}; there are {_KNOWN}."
    )

    family: ClassVar[str] = "made"
    summary: ClassVar[str] = "grounding, QA, captions, highlights and when-and-why on made videos"
    headline: ClassVar[str] = "mIoU"
    splits: ClassVar[tuple[str, ...]] = ("test", *(split for split in SPLITS if split != "test"))
    files: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(SPLITS, ())
    citation: ClassVar[str] = "vidllm, docs/stage.md"
    licence: ClassVar[str] = "made from seeds: no rights of others"
    max_new_tokens: ClassVar[int] = 128
    #: Clips if nobody says how many.
    usual_limit: ClassVar[int] = 200

    def __post_init__(self) -> None:
        check_version(self.version)

    def prepare(
        self,
        data: Path | None,
        split: str,
        *,
        seed: int,
        limit: int | None = None,
        jobs: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Make the clips that are not there yet, and say in which folder they and their files are.

        Args:
            data: folder of all stage benchmarks; None for `~/.cache/vidllm/stage`.
            split, seed: which benchmark. limit: clips. jobs: processes that write videos.
            progress: called with (videos written, videos to write).

        Raises:
            InputError: wrong arguments, or a folder that holds something else.
            WorkError: files that cannot be written.
        """
        from vidllm.stage.files import default_folder, write_stage

        check_split(self, split)
        folder = default_folder() if data is None else data.expanduser()
        count = self.usual_limit if limit is None else limit
        samples = write_stage(
            folder, split, seed, count, version=self.version, jobs=jobs, progress=progress
        )
        return samples[0].path.parent

    def items(self, data: Path, split: str) -> list[Item]:
        """Everything that is asked, clip by clip, of the files that `prepare` wrote."""
        file = questions_file(data, check_split(self, split))
        if not file.is_file():
            raise InputError(f"{file} is missing: `vidllm eval stage` makes it")
        return [
            Item(
                id=f"{vid}-{k}",
                vid=vid,
                video=f"{vid}.mp4",
                prompt=tidy(question.text),
                truth={"answer": question.answer, "spans": [list(s) for s in question.spans]},
                kind=question.kind,
                duration=duration,
                groups=_groups(question, duration),
            )
            for vid, (duration, questions) in read_questions(data, split).items()
            for k, question in enumerate(questions)
        ]

    def truth_schema(self, item: Item) -> Schema:
        """See `Task.truth_schema`: a question for a time has one, a caption one a sentence."""
        least, most = int(item.kind in TIMED), 10**6
        told = item.truth.get("answer") if isinstance(item.truth, Mapping) else None
        if item.kind == "caption" and isinstance(told, str):
            least = most = max(1, len(sentences(told)))
        return Object({"answer": String(), "spans": Array(TRUE_SPAN, least, most)})

    def read(self, item: Item, response: Response) -> Any:
        """The spans of a question for a time, None without any; the words of another."""
        reply = reply_of(item, response)
        if not reply.is_timed:
            return normal(reply.text)
        return [list(span) for span in reply.spans] or None

    def value(self, item: Item, response: Response) -> float:
        """IoU, exact match, right cause with half of the span, or F1 of events, by kind."""
        reply = reply_of(item, response)
        return float(reply.is_right) if reply.kind in QA_KINDS else _VALUES[reply.kind](reply)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See docs/stage.md; there is no official script."""
        by_kind: dict[str, list[Reply]] = {}
        for pair in zip(items, responses, strict=True):
            by_kind.setdefault(pair[0].kind, []).append(reply_of(*pair))
        ground, why = by_kind.get("ground", []), by_kind.get("why", [])
        ious = [reply.iou for reply in ground]
        right = {kind: [r.is_right for r in by_kind[kind]] for kind in QA_KINDS if kind in by_kind}
        timed = [reply for found in by_kind.values() for reply in found if reply.is_timed]
        scores: Scores = {"mIoU": average(ious)}
        scores |= {f"R1@{m}": average([value >= m for value in ious]) for m in THRESHOLDS}
        scores["qa_accuracy"] = average([one for found in right.values() for one in found])
        scores["why_mIoU"] = average([reply.iou for reply in why])
        for name, kind in (
            ("why_accuracy", "why"),
            ("highlights_mIoU", "highlights"),
            ("caption_f1", "caption"),
        ):
            scores[name] = average([_VALUES[kind](reply) for reply in by_kind.get(kind, [])])
        scores["parse_failures"] = average([not reply.spans for reply in timed])
        return scores | {f"qa_accuracy/{kind}": average(found) for kind, found in right.items()}

    def detail(
        self, items: Sequence[Item], responses: Sequence[Response], seed: int
    ) -> dict[str, Any]:
        """All of `metrics.summarise`: rounded, nested, with the interval of the mIoU."""
        pairs = zip(items, responses, strict=True)
        return summarise([reply_of(*pair) for pair in pairs], QA_KINDS, seed)

    def baselines(self, data: Path, split: str, items: Sequence[Item], seed: int) -> dict[str, Any]:
        """What answers score that never look at a video, on the same questions.

        Args:
            data: the folder that `prepare` gave.
            items: that were asked. seed: of the random spans.
        """
        from .baselines import baselines, cached_fit

        return baselines(_samples(data, split, items), cached_fit(data.parent, self.version), seed)


def reply_of(item: Item, response: Response) -> Reply:
    """What a model said beside what is true."""
    duration = float(item.duration or response.duration or 0.0)
    code = _code(response.raw)
    found = code.find(response.raw, duration)
    spans: list[Interval] = [(start, end) for start, end in response.spans]
    if len(spans) != len(found):  # no rows of this harness
        spans = [(f.span.start, f.span.end) for f in found]
    ends = [*(f.begin for f in found[1:]), len(response.raw)]
    said = [response.raw[f.end : end].strip() for f, end in zip(found, ends, strict=False)]
    if item.kind == "caption" and (events := code.captions(response.raw, duration)):
        # Captions name some of the spans, in order; theirs are taken from the response, which
        # knows how many time tokens the model has.
        at, chosen = 0, []
        for span, _ in events:
            while found[at].span != span:
                at += 1
            chosen.append(spans[at])
            at += 1
        spans, said = chosen, [sentence for _, sentence in events]
    return Reply(
        id=item.id,
        vid=item.vid,
        kind=item.kind,
        question=item.prompt,
        duration=duration,
        truth=str(item.truth["answer"]),
        truth_spans=tuple((float(s), float(e)) for s, e in item.truth["spans"]),
        text=answer_text(response.text),
        spans=tuple(spans),
        said=tuple(said),
    )


def _explains(reply: Reply) -> float:
    """1 for the right cause and a span that is at least half right."""
    if reply.iou < 0.5:
        return 0.0
    return float(normal(reply.said[0]) == normal(sentences(reply.truth)[0]))


#: What an answer earns, by the kind of its question.
_VALUES: dict[str, Callable[[Reply], float]] = {
    "ground": lambda reply: reply.iou,
    "why": _explains,
    "highlights": lambda reply: set_iou(reply.spans, reply.truth_spans),
    "caption": lambda reply: event_f1(
        reply.spans, reply.said, reply.truth_spans, sentences(reply.truth)
    ),
}


def _groups(question: Question, duration: float) -> dict[str, str]:
    """The kind of a question, and of one to ground the share of the clip that its span takes."""
    if question.kind != "ground":
        return {"kind": question.kind}
    (start, end), *_ = question.spans
    share = (end - start) / duration + 1e-9
    low, high = [(a, b) for a, b in LENGTHS if a <= share][-1]
    return {"kind": question.kind, "length": f"{100 * low:.0f}-{100 * high:.0f}%"}


def _code(raw: str) -> TimeCode:
    """The time code whose tokens stand in an answer, plain seconds without any."""
    if re.search(r"<t\d+>", raw):
        return RelativeTime()
    return AbsoluteTime() if "<TIME_" in raw else TextTime()


def _samples(data: Path, split: str, items: Sequence[Item]) -> list[Sample]:
    from vidllm.stage.files import Sample

    asked = dict.fromkeys(item.vid for item in items)
    found = read_questions(data, split)
    return [Sample(vid, data / f"{vid}.mp4", *found[vid]) for vid in asked]
