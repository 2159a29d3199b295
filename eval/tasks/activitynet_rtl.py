"""ActivityNet-RTL: questions whose answer is a time that needs reasoning (LITA).

Verified: `annot_val_1_q229.json`, in LITA-Datasets' folder temporal_reasoning, is a list of 229
{"vid" (without "v_"), "question_id", "question", "answer": "<12.3> <45.6> explanation",
"duration"}. The explanation is scored by GPT-4 in the paper; here only its time is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from vidllm.errors import InputError

from ..scores.common import Interval, Scores
from ..scores.spans import by_video, ious, rtl_scores
from .base import TASKS, Item, Response
from .files import annotation_files, field, read_records
from .spans_text import first_span, lita_span
from .timed import SpanTask, read_all, seconds_of

#: LITA is asked the bare question; other models must be told what the answer starts with.
PROMPT = (
    "{question} Begin the answer with the time, in the format '<start time> - <end time> seconds', "
    "then explain."
)


@TASKS.register("activitynet-rtl")
class ActivityNetRTL(SpanTask):
    """Means by video, then over videos. Official: an answer without a time is the whole video."""

    summary = "when-questions that need reasoning; mIoU and P@0.5 by video"
    splits = ("val",)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "val": ("annot_val_1_q229.json|temporal_reasoning/annot_val_1_q229.json",)
    }
    citation = "LITA, arXiv 2403.19046"
    licence = "NVIDIA, non-commercial"
    home = "https://huggingface.co/datasets/deahuang/LITA-Datasets"
    max_new_tokens = 256

    def items(self, data: Path, split: str) -> list[Item]:
        """One a question."""
        (path,) = annotation_files(self, data, split)
        found = []
        for where, row in read_records(path):
            vid = field(row, "vid", str, where=where).removeprefix("v_")
            duration = field(row, "duration", float, where=where)
            answer = field(row, "answer", str, where=where)
            true = lita_span(Response(text=answer), duration)
            if true is None:
                raise InputError(f"{where}: the field 'answer' must begin with '<start> <end>'")
            question = " ".join(field(row, "question", str, where=where).split())
            found.append(
                Item(
                    id=field(row, "question_id", str, where=where),
                    vid=vid,
                    video=f"v_{vid}",
                    prompt=PROMPT.format(question=question),
                    truth=list(true),
                    duration=duration,
                )
            )
        return found

    def official_span(self, item: Item, response: Response) -> Interval | None:
        """As LITA's script."""
        return lita_span(response, seconds_of(item, response))

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """See `scores.spans.rtl_scores`."""
        said = read_all(self.official_span if official else first_span, items, responses)
        truth, videos = [i.truth for i in items], [i.vid for i in items]
        pairs = zip(items, responses, strict=True)
        durations = [seconds_of(i, r) or 0.0 for i, r in pairs]
        return rtl_scores(said, truth, videos, durations, official=official)

    def samples(
        self, items: Sequence[Item], responses: Sequence[Response]
    ) -> list[tuple[str, float]]:
        """One a video: the mean IoU of its questions."""
        pairs = zip(items, responses, strict=True)
        values = ious([first_span(i, r) for i, r in pairs], [i.truth for i in items])
        return list(by_video(values, [i.vid for i in items]).items())
