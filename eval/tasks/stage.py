"""`stage`: vidllm's own benchmark, made from seeds; everything that it asks is asked openly.

Items come from the generated files (docs/stage.md); nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidllm.errors import InputError
from vidllm.errors.schema import Array, Object, Schema, String
from vidllm.stage.annotations import questions_file, read_questions, tidy
from vidllm.stage.questions import QA_KINDS, Question
from vidllm.stage.scenes import SPLITS, USUAL, WORLDS, check_version
from vidllm.timecode import AbsoluteTime, RelativeTime, TextTime, TimeCode, answer_text

from ..scores.common import Interval, Scores
from ..scores.metrics import LENGTHS, TIMED, Reply, normal, scores_of, sentences, summarise
from .base import TASKS, TRUE_SPAN, Item, Response, check_split
from .made_clips import ClipRequest, MadeClips, stage_clips
from .options import option, whole_number

if TYPE_CHECKING:
    from vidllm.stage.files import Sample

_KNOWN = " and ".join(map(str, WORLDS))


@TASKS.register("stage")
@dataclass(frozen=True)
class Stage(MadeClips):
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
    max_new_tokens: ClassVar[int] = 128
    usual_limit: ClassVar[int] = 200

    def __post_init__(self) -> None:
        check_version(self.version)

    def make(self, data: Path | None, clips: ClipRequest) -> Path:
        return stage_clips(data, clips, self.version)

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
        return reply_of(item, response).value

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See docs/stage.md; there is no official script."""
        pairs = zip(items, responses, strict=True)
        return scores_of([reply_of(*pair) for pair in pairs], QA_KINDS)

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
