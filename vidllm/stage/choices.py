"""Questions with hard options.

`Question.options` are drawn at random, so that most can be told from what is on the stage. Here the
wrong options come first from what is true of the same clip: what others do, who else is there, what
happens at another time. A pool that runs dry is filled from all words.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .questions import QA_KINDS, QUARTERS, Asker, Question
from .scenes import Scene
from .words import ACTION_INDEX, ACTIONS, COLOUR_NAMES, noun_phrase

#: Options of a question; those that are answered by yes or no have two.
OPTIONS = 4
_STREAM = 6  # of a scene's random numbers: its options
_NUMBERS = ("0", "1", "2", "3", "4")


def choice_questions(scene: Scene, rng: np.random.Generator | None = None) -> list[Question]:
    """All unambiguous short-answer questions of a scene, each with hard options.

    Args:
        rng: draws wording, options and their order; None for the same every time.
    """
    rng = scene.rng(_STREAM) if rng is None else rng
    asked = [q for q in Asker(scene, rng).qa() if q.kind in QA_KINDS]
    return [with_hard_options(scene, question, rng) for question in asked]


def evenly(asked: list[Question], count: int, rng: np.random.Generator) -> list[Question]:
    """So many questions, every kind as often as every other as far as they go."""
    by_kind: dict[str, list[Question]] = {}
    for k in rng.permutation(len(asked)).tolist():
        by_kind.setdefault(asked[k].kind, []).append(asked[k])
    found: list[Question] = []
    while len(found) < count and by_kind:
        for kind in list(by_kind):
            found.append(by_kind[kind].pop())
            if not by_kind[kind]:
                del by_kind[kind]
    return found[:count]


def with_hard_options(scene: Scene, question: Question, rng: np.random.Generator) -> Question:
    """The question with its right answer among options that fit the clip elsewhere."""
    near, far = _pools(scene, question, rng)
    wrong: list[str] = []
    for pool in (near, far):
        fresh = [text for text in dict.fromkeys(pool) if text not in (question.answer, *wrong)]
        rng.shuffle(fresh)
        wrong += fresh
    options = [question.answer, *wrong[: OPTIONS - 1]]
    rng.shuffle(options)
    return replace(question, options=tuple(options))


def _pools(
    scene: Scene, question: Question, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Wrong options (and perhaps the right one): of this clip, and of any."""
    asker, kind = Asker(scene, rng), question.kind
    looks = [noun_phrase(a.noun, a.colour) for a in scene.actors]
    thirds = [a.third for a in ACTIONS if a.name != "meet"]
    if kind in ("does", "after"):
        done = [ACTIONS[ACTION_INDEX[e.action]].third for e in scene.events if e.other < 0]
        return done, thirds
    if kind == "which":
        twins = [noun_phrase(a.noun, int(c)) for a in scene.actors for c in rng.choice(8, 2)]
        return looks, twins
    if kind == "colour":
        shown = [e.colour for e in scene.events if e.colour >= 0]
        here = [COLOUR_NAMES[c] for c in (*shown, *(a.colour for a in scene.actors))]
        return here, list(COLOUR_NAMES)
    if kind == "count":
        right = _NUMBERS.index(question.answer) if question.answer in _NUMBERS else 0
        beside = [n for i, n in enumerate(_NUMBERS) if abs(i - right) == 1]
        return beside, list(_NUMBERS)
    if kind in ("first", "last"):
        told = [asker.plain_sentence(i) for i in range(len(scene.events))]
        happens = set(told)
        made = [f"{who} {third}" for who in looks for third in thirds]
        return told, [text for text in made if text not in happens]
    if kind == "where":
        return list(QUARTERS), []
    return ["yes", "no"], []
