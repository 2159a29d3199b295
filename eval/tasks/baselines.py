"""What answers that never look at the video score: the floor under every result.

Whole video, random span, the best constant span, and short answers guessed from the question.
The last two are fitted on scenes of the training split and kept beside the benchmark.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidllm.stage.annotations import questions_of, tidy, write_text
from vidllm.stage.files import Sample, world_mark
from vidllm.stage.questions import QA_KINDS, Question
from vidllm.stage.scenes import USUAL, make_scene
from vidllm.stage.words import ACTIONS, COLOUR_NAMES, NOUN_NAMES

from ..scores.metrics import mean, normal, span_scores

FIT_SCENES = 2000
#: Ends of the constant span are tried in steps of this share of the clip.
STEP = 0.01
RANDOM_DRAWS = 100
#: A pattern with the verb needs as many examples, or the pattern without it answers.
ENOUGH = 5


@dataclass(frozen=True)
class Fit:
    """What was learnt from the training split.

    Args:
        span: the constant span (start, end) as shares of the clip.
        answers: question pattern → its most common answer; "" holds the most common of all.
    """

    span: tuple[float, float]
    answers: dict[str, str]

    def guess(self, question: str) -> str:
        """The answer to a question that was never looked up in a video."""
        fine, coarse = patterns(question)
        return self.answers.get(fine) or self.answers.get(coarse) or self.answers[""]


def patterns(question: str) -> tuple[str, str]:
    """The question without its nouns and colours; and without its verbs too."""
    text = f" {normal(question)} "
    text = re.sub(rf"\b(?:{'|'.join(NOUN_NAMES)})\b", "NOUN", text)
    text = re.sub(rf"\b(?:{'|'.join(COLOUR_NAMES)})\b", "COLOUR", text).strip()
    return text, _VERBS.sub("VERB", text)


def fit(scenes: int = FIT_SCENES, version: int = USUAL) -> Fit:
    """Fit on the first scenes of the training split."""
    questions = [
        (scene.duration, question)
        for scene in (make_scene("train", seed, version) for seed in range(scenes))
        for question in questions_of(scene)
    ]
    ground = [(d, q) for d, q in questions if q.kind == "ground"]
    shares = np.asarray([[t / d for t in q.spans[0]] for d, q in ground])
    return Fit(_best_span(shares), _best_answers([q for _, q in questions if q.kind in QA_KINDS]))


def cached_fit(folder: Path, version: int = USUAL) -> Fit:
    """As `fit`, kept in `folder` for the next time."""
    file = folder / ("baselines.json" if version == 1 else f"baselines-v{version}.json")
    mark = [version, FIT_SCENES, world_mark("train", 0, version)]
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["mark"] == mark:
            return Fit((float(found["span"][0]), float(found["span"][1])), dict(found["answers"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass  # not there, or not ours any more: it is made anew
    made = fit(version=version)
    write_text(file, json.dumps({"mark": mark, **asdict(made)}) + "\n")
    return made


def baselines(samples: Sequence[Sample], learnt: Fit, seed: int) -> dict[str, Any]:
    """Scores of all baselines on the same questions that the model is asked.

    Args:
        samples: clips with their questions.
        learnt: from `fit`.
        seed: of the random spans.
    """
    ground = [(s.duration, q.spans[0]) for s in samples for q in s.questions if q.kind == "ground"]
    truth = np.asarray([[start / d, end / d] for d, (start, end) in ground]).reshape(-1, 2)
    rng = np.random.default_rng([23, seed])
    drawn = np.sort(rng.random((RANDOM_DRAWS, len(truth), 2)), axis=2)
    whole = np.broadcast_to(np.asarray([0.0, 1.0]), truth.shape)
    constant = np.broadcast_to(np.asarray(learnt.span), truth.shape)
    asked = [q for s in samples for q in s.questions if q.kind in QA_KINDS]
    right = [normal(learnt.guess(tidy(q.text))) == normal(q.answer) for q in asked]
    return {
        "whole_video": span_scores(_ious(whole, truth)),
        "random_span": span_scores(_ious(drawn, truth[None]).ravel()),
        "constant_span": {
            **span_scores(_ious(constant, truth)),
            "span": [round(v, 4) for v in learnt.span],
        },
        "question_only": {
            "qa_accuracy": mean(right),
            "qa_by_kind": {
                kind: mean([r for r, q in zip(right, asked, strict=True) if q.kind == kind])
                for kind in QA_KINDS
                if any(q.kind == kind for q in asked)
            },
        },
    }


def _ious(spans: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of (…, 2) intervals."""
    low = np.maximum(spans[..., 0], truth[..., 0])
    meet = np.clip(np.minimum(spans[..., 1], truth[..., 1]) - low, 0.0, None)
    union = (spans[..., 1] - spans[..., 0]) + (truth[..., 1] - truth[..., 0]) - meet
    return np.asarray(meet / np.maximum(union, 1e-12))


def _best_span(shares: np.ndarray) -> tuple[float, float]:
    """The span of the grid with the largest mean IoU with `shares` (N, 2)."""
    edges = np.round(np.arange(0.0, 1.0 + STEP / 2, STEP), 6)
    best, at = -1.0, (0.0, 1.0)
    for start in edges[:-1]:
        ends = edges[edges > start]
        spans = np.stack([np.full_like(ends, start), ends], axis=1)
        scores = _ious(spans[:, None], shares[None]).mean(axis=1)
        top = int(np.argmax(scores))
        if scores[top] > best:
            best, at = float(scores[top]), (float(start), float(ends[top]))
    return at


def _best_answers(questions: Sequence[Question]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        fine, coarse = patterns(tidy(question.text))
        counts[""][question.answer] += 1
        counts[coarse][question.answer] += 1
        if fine != coarse:
            counts[fine][question.answer] += 1
    answers = {}
    for pattern, found in counts.items():
        if "VERB" in pattern or not _VERBS.search(pattern) or found.total() >= ENOUGH:
            answers[pattern] = found.most_common(1)[0][0]
    return answers


def _verbs() -> re.Pattern[str]:
    forms = {form for a in ACTIONS for form in (a.third, a.plain)}
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile(rf"\b(?:{'|'.join(ordered)})\b")


_VERBS = _verbs()
