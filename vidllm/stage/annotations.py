"""The annotation files of a stage benchmark, in the formats that the community's tools read.

Charades-STA lines, QVHighlights jsonl, ActivityNet-Captions json, multiple-choice jsonl, and
`questions_<split>.jsonl` with everything that is asked, which is what `vidllm eval` reads.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidllm.errors import WorkError

from .questions import QA_KINDS, Asker, Interval, Question, draw
from .scenes import Scene, unseen_events
from .words import ORDINALS

#: Length of the pieces in which QVHighlights counts a video, in seconds.
CLIP_SECONDS = 2.0


def video_id(scene: Scene) -> str:
    """Name of a scene's video, "test_000300007", of a variant "test_000300007-colour"."""
    return f"{scene.split}_{scene.seed:09d}" + (f"-{scene.variant}" if scene.variant else "")


def questions_of(scene: Scene) -> list[Question]:
    """What the benchmark asks about a scene, always the same."""
    rng = scene.rng(1)
    return draw(scene, rng, ground=2, qa=4, highlights=1, why=1, caption=1)


def tidy(text: str) -> str:
    """A sentence as people write it: no blank before punctuation."""
    return re.sub(r"\s+([.,:?])", r"\1", text)


def write_annotations(folder: Path, split: str, scenes: Sequence[Scene]) -> None:
    """Write all annotation files of `scenes` into `folder`, each in one piece."""
    asked = [(scene, questions_of(scene)) for scene in scenes]
    charades = [line for scene in scenes for line in _charades(scene)]
    captions = [f'"{video_id(scene)}": {json.dumps(_captions(scene))}' for scene in scenes]
    rows = [(s, k, q) for s, questions in asked for k, q in enumerate(questions)]
    write_text(folder / f"charades_sta_{split}.txt", "".join(f"{line}\n" for line in charades))
    dense = "{\n" + ",\n".join(captions) + "\n}\n"
    write_text(folder / f"activitynet_captions_{split}.json", dense)
    highlights = [_highlights(*row) for row in rows if row[2].kind == "highlights"]
    _write_lines(folder / f"qvhighlights_{split}.jsonl", highlights)
    choices = [_choice(*row) for row in rows if row[2].kind in QA_KINDS]
    _write_lines(folder / f"qa_{split}.jsonl", choices)
    _write_lines(questions_file(folder, split), [_asked(*row) for row in rows])


def questions_file(folder: Path, split: str) -> Path:
    """Where everything that is asked stands."""
    return folder / f"questions_{split}.jsonl"


def captions_file(folder: Path, split: str) -> Path:
    """Where the captions of a gallery stand (see `gallery`)."""
    return folder / f"retrieval_{split}.csv"


def read_questions(folder: Path, split: str) -> dict[str, tuple[float, tuple[Question, ...]]]:
    """Video id → (duration in seconds, questions in order).

    Raises:
        WorkError: a file that is missing or damaged.
    """
    file = questions_file(folder, split)
    found: dict[str, tuple[float, tuple[Question, ...]]] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            spans = tuple((float(a), float(b)) for a, b in row["spans"])
            question = Question(
                row["kind"], row["question"], row["answer"], spans, tuple(row["options"])
            )
            duration, before = found.get(row["vid"], (float(row["duration"]), ()))
            found[row["vid"]] = duration, (*before, question)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(f"{file} is damaged: delete its folder and run again ({error})") from error
    return found


def write_text(file: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it finds all of it or the old one."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _sentence(scene: Scene, event: int, ordinal: bool) -> str:
    asker = Asker(scene, scene.rng(1))
    same = scene.occurrences(event)
    which = f" for the {ORDINALS[same.index(event)]} time" if ordinal and len(same) > 1 else ""
    return asker.plain_sentence(event) + which + "."


def _in_order(scene: Scene) -> list[int]:
    return sorted(range(len(scene.events)), key=lambda i: scene.events[i].start)


def _seconds(spans: Sequence[Interval]) -> list[list[float]]:
    return [[round(start, 3), round(end, 3)] for start, end in spans]


def _charades(scene: Scene) -> list[str]:
    """ "VID start end##sentence" for every event; in test-unseen those never trained on."""
    wanted = unseen_events(scene) if scene.split == "test-unseen" else range(len(scene.events))
    return [
        f"{video_id(scene)} {scene.events[i].start:.3f} {scene.events[i].end:.3f}"
        f"##{_sentence(scene, i, ordinal=True)}"
        for i in _in_order(scene)
        if i in wanted
    ]


def _captions(scene: Scene) -> dict[str, Any]:
    order = _in_order(scene)
    return {
        "duration": round(scene.duration, 3),
        "timestamps": _seconds([(scene.events[i].start, scene.events[i].end) for i in order]),
        "sentences": [_sentence(scene, i, ordinal=False) for i in order],
    }


def _highlights(scene: Scene, number: int, question: Question) -> dict[str, Any]:
    """The three raters differ in how they round the share of a 2-second piece that fits."""
    event = next(i for i, e in enumerate(scene.events) if (e.start, e.end) == question.spans[0])
    ids: list[int] = []
    scores: list[list[int]] = []
    for k in range(math.ceil(scene.duration / CLIP_SECONDS)):
        low, high = k * CLIP_SECONDS, min((k + 1) * CLIP_SECONDS, scene.duration)
        meet = sum(max(0.0, min(high, end) - max(low, start)) for start, end in question.spans)
        if meet > 0:
            four = 4 * min(1.0, meet / (high - low))
            ids.append(k)
            scores.append([math.floor(four), math.floor(four + 0.5), math.ceil(four)])
    return {
        "qid": scene.seed * 100 + number,
        "query": _sentence(scene, event, ordinal=False),
        "vid": video_id(scene),
        "duration": round(scene.duration, 3),
        "relevant_windows": _seconds(question.spans),
        "relevant_clip_ids": ids,
        "saliency_scores": scores,
    }


def _choice(scene: Scene, number: int, question: Question) -> dict[str, Any]:
    return {
        "id": f"{video_id(scene)}-{number}",
        "vid": video_id(scene),
        "kind": question.kind,
        "question": tidy(question.text),
        "options": list(question.options),
        "answer": "ABCD"[question.options.index(question.answer)],
        "answer_text": question.answer,
    }


def _asked(scene: Scene, number: int, question: Question) -> dict[str, Any]:
    return {
        "id": f"{video_id(scene)}-{number}",
        "vid": video_id(scene),
        "duration": scene.duration,
        "kind": question.kind,
        "question": tidy(question.text),
        "answer": question.answer,
        "spans": [list(span) for span in question.spans],
        "options": list(question.options),
    }
