"""Ask about a scene: grounding, highlights, dense captions, when-and-why, and short-answer QA.

Every question has exactly one right answer by construction; a kind that would be ambiguous in a
scene is not asked there. Times in an answer are fields, so that any time code can write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .scenes import WORLDS, Event, Scene, place_before, unseen_events
from .words import ACTION_INDEX, ACTIONS, COLOUR_NAMES, NOUN_NAMES, ORDINALS, noun_phrase

Interval = tuple[float, float]
#: Events closer than this share of the clip are never asked to be put in order.
CLOSE = 0.02

#: Nearer to the middle of the stage than this, nobody is asked in which quarter it is.
MIDDLE = 0.08
#: Actions at one place.
STEADY: tuple[str, ...] = ("spin", "blink", "grow", "recolour")
QUARTERS: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")

GROUND_TEMPLATES: tuple[str, ...] = (
    "when does {plain} ?",
    "when is it that {third} ?",
    "at what time does {plain} ?",
    "find the moment when {third} .",
    "during which seconds does {plain} ?",
    "locate the event : {third} .",
    "{third}",
    "{third} .",
)
HIGHLIGHT_TEMPLATES: tuple[str, ...] = (
    "show every moment when {third} .",
    "highlight all the moments when {third} .",
    "when are all the times that {third} ?",
)
CAPTION_TEMPLATES: tuple[str, ...] = (
    "describe what happens with times .",
    "describe the video .",
    "what happens in the video and when ?",
    "list all events with their times .",
)
WHY_TEMPLATES: tuple[str, ...] = (
    "when does {plain} and why ?",
    "why does {plain} and when ?",
    "find when {third} and explain why .",
)


@dataclass(frozen=True)
class Question:
    """One question. `answer` holds two `{}` fields a span, filled in order of `spans`.

    `evidence` names the events that the answer rests on; of a timed answer the first ones belong
    to `spans`, one each.
    """

    kind: str
    text: str
    answer: str
    spans: tuple[Interval, ...] = ()
    options: tuple[str, ...] = ()
    event: int = -1
    evidence: tuple[int, ...] = ()

    def answer_with(self, encode: Callable[[float], str]) -> str:
        """The answer with every time written by `encode` (seconds → text)."""
        return self.answer.format(*(encode(t) for span in self.spans for t in span))


class Asker:
    """Draws questions about one scene from one generator."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.nouns = [a.noun for a in scene.actors]

    def name(self, actor: int) -> str:
        """A phrase that fits this actor alone; the colour is sometimes left out if it may be."""
        who = self.scene.actors[actor]
        alone = self.nouns.count(who.noun) == 1
        return noun_phrase(who.noun, None if alone and self.rng.random() < 0.15 else who.colour)

    def phrases(self, event: int, ordinal: bool = True) -> dict[str, str]:
        """The event as "the red star spins" (third) and "the red star spin" (plain)."""
        e = self.scene.events[event]
        action = ACTIONS[ACTION_INDEX[e.action]]
        one, two = e.actor, e.other
        if two >= 0 and self.rng.random() < 0.5:
            one, two = two, one
        tail = f" {self.name(two)}" if two >= 0 else ""
        same = self.scene.occurrences(event)
        if ordinal and len(same) > 1:
            tail += f" for the {ORDINALS[same.index(event)]} time"
        subject = self.name(one)
        return {
            "third": f"{subject} {action.third}{tail}",
            "plain": f"{subject} {action.plain}{tail}",
        }

    def pick(self, templates: tuple[str, ...]) -> str:
        return templates[int(self.rng.integers(len(templates)))]

    def ground(self, event: int) -> Question:
        e = self.scene.events[event]
        text = self.pick(GROUND_TEMPLATES).format(**self.phrases(event))
        return Question(
            "ground", text, "from {} to {}", ((e.start, e.end),), event=event, evidence=(event,)
        )

    def highlights(self, event: int) -> Question:
        same = self.scene.occurrences(event)
        spans = tuple((self.scene.events[i].start, self.scene.events[i].end) for i in same)
        text = self.pick(HIGHLIGHT_TEMPLATES).format(**self.phrases(event, ordinal=False))
        return Question(
            "highlights",
            text,
            " , ".join(["from {} to {}"] * len(spans)),
            spans,
            evidence=tuple(same),
        )

    def caption(self) -> Question:
        order = sorted(range(len(self.scene.events)), key=lambda i: self.scene.events[i].start)
        spans = tuple((self.scene.events[i].start, self.scene.events[i].end) for i in order)
        said = " . ".join("from {} to {} " + self.plain_sentence(i) for i in order)
        text = self.pick(CAPTION_TEMPLATES)
        return Question("caption", text, said + " .", spans, evidence=tuple(order))

    def plain_sentence(self, event: int) -> str:
        """The event with colours named and in a fixed order: what a caption says."""
        e = self.scene.events[event]
        one, two = e.actor, e.other
        if two >= 0 and self._look(two) < self._look(one):
            one, two = two, one
        tail = f" {self._full(two)}" if two >= 0 else ""
        return f"{self._full(one)} {ACTIONS[ACTION_INDEX[e.action]].third}{tail}"

    def _look(self, actor: int) -> tuple[int, int]:
        return self.scene.actors[actor].noun, self.scene.actors[actor].colour

    def _full(self, actor: int) -> str:
        return noun_phrase(*self._look(actor))

    def why(self, event: int) -> Question | None:
        """When and why: the cause is the one event of another actor that ended just before."""
        events = self.scene.events
        e = events[event]
        near = [
            i
            for i, o in enumerate(events)
            if i != event and -0.005 < (e.start - o.end) / self.scene.duration < 0.05
        ]
        if e.cause < 0 or near != [e.cause]:
            return None
        text = self.pick(WHY_TEMPLATES).format(**self.phrases(event))
        answer = "from {} to {} because " + self.plain_sentence(e.cause)
        return Question(
            "why", text, answer, ((e.start, e.end),), event=event, evidence=(event, e.cause)
        )

    def qa(self) -> list[Question]:
        """Every short-answer question that is unambiguous here, a few of each kind."""
        found: list[Question] = []
        for kind in (self._does, self._who, self._colour, self._order, self._count, self._edge):
            found += list(kind())
        if WORLDS[self.scene.version].places:
            found += list(self._where())
        return found

    def _make(
        self, kind: str, text: str, answer: str, pool: list[str], evidence: Sequence[int]
    ) -> Question:
        others = sorted(set(pool) - {answer})
        self.rng.shuffle(others)
        options = [answer, *others[:3]]
        self.rng.shuffle(options)
        return Question(kind, text, answer, options=tuple(options), evidence=tuple(evidence))

    def _verb(self, e: Event, actor: int) -> str:
        third = ACTIONS[ACTION_INDEX[e.action]].third
        return third if e.other < 0 else f"meets {self._full(e.actor + e.other - actor)}"

    def _by_actor(self, actor: int) -> list[int]:
        events = self.scene.events
        mine = [i for i, e in enumerate(events) if actor in (e.actor, e.other)]
        return sorted(mine, key=lambda i: events[i].start)

    def _does(self) -> Iterator[Question]:
        pool = [a.third for a in ACTIONS if a.name != "meet"]
        events = self.scene.events
        for actor in range(len(self.scene.actors)):
            mine = self._by_actor(actor)
            if len(mine) == 1:
                answer = self._verb(events[mine[0]], actor)
                text = f"what does {self.name(actor)} do ?"
                yield self._make("does", text, answer, pool, mine)
            for before, after in pairwise(mine):
                e = events[before]
                if len(self.scene.occurrences(before)) > 1 or e.other >= 0:
                    continue
                third = ACTIONS[ACTION_INDEX[e.action]].third
                text = f"what does {self.name(actor)} do after it {third} ?"
                yield self._make("after", text, self._verb(events[after], actor), pool, [after])
            if len(mine) > 1:
                answer = self._verb(events[mine[0]], actor)
                text = f"what does {self.name(actor)} do first ?"
                yield self._make("does", text, answer, pool, mine[:1])

    def _actors_of(self, action: str) -> set[int]:
        return {e.actor for e in self.scene.events if e.action == action}

    def _events_of(self, action: str, actor: int | None = None) -> list[int]:
        events = enumerate(self.scene.events)
        return [i for i, e in events if e.action == action and actor in (None, e.actor)]

    def _who(self) -> Iterator[Question]:
        pool = [noun_phrase(n, int(self.rng.integers(8))) for n in self.rng.permutation(18)[:3]]
        pool += [self._full(a) for a in range(len(self.scene.actors))]
        for action in ACTIONS:
            who = self._actors_of(action.name)
            if len(who) == 1 and action.name != "meet":
                text = self.pick(("what {} ?", "which object {} ?")).format(action.third)
                answer = self._full(next(iter(who)))
                yield self._make("which", text, answer, pool, self._events_of(action.name))

    def _colour(self) -> Iterator[Question]:
        pool = list(COLOUR_NAMES)
        for action in ACTIONS:
            who = self._actors_of(action.name)
            for actor in sorted(who):
                noun = self.nouns[actor]
                if action.name == "meet" or sum(self.nouns[w] == noun for w in who) > 1:
                    continue
                text = f"what colour is the {NOUN_NAMES[noun]} that {action.third} ?"
                answer = COLOUR_NAMES[self.scene.actors[actor].colour]
                shown = self._events_of(action.name, actor)
                yield self._make("colour", text, answer, pool, shown)
        for i, e in enumerate(self.scene.events):
            if e.action == "recolour" and len(self.scene.occurrences(i)) == 1:
                text = f"which colour does {self.name(e.actor)} change to ?"
                yield self._make("colour", text, COLOUR_NAMES[e.colour], pool, [i])

    def _order(self) -> Iterator[Question]:
        events = self.scene.events
        single = [i for i in range(len(events)) if len(self.scene.occurrences(i)) == 1]
        for _ in range(3):
            if len(single) < 2:
                return
            one, two = (int(v) for v in self.rng.choice(single, 2, replace=False))
            if abs(events[one].start - events[two].start) < CLOSE * self.scene.duration:
                continue
            answer = "yes" if events[one].start < events[two].start else "no"
            text = f"does {self.phrases(one)['plain']} before {self.phrases(two)['third']} ?"
            yield self._make("before", text, answer, ["yes", "no"], [one, two])

    def _count(self) -> Iterator[Question]:
        numbers = ["0", "1", "2", "3", "4"]
        events = self.scene.events
        for e in events:
            if e.other < 0:
                same = self._events_of(e.action, e.actor)
                text = f"how many times does {self.name(e.actor)} {_plain(e.action)} ?"
                yield self._make("count", text, str(len(same)), numbers, same)
        for action in (a for a in ACTIONS if a.name != "meet"):
            if self.rng.random() < 0.3:
                text = f"how many objects {action.plain} ?"
                number = str(len(self._actors_of(action.name)))
                yield self._make("count", text, number, numbers, self._events_of(action.name))

    def _edge(self) -> Iterator[Question]:
        """What happens first and last, and whether something happens at all."""
        events = self.scene.events
        starts = sorted(range(len(events)), key=lambda i: events[i].start)
        pool = [self.plain_sentence(i) for i in starts]
        gap = CLOSE * self.scene.duration
        if events[starts[1]].start - events[starts[0]].start > gap:
            yield self._make("first", "what happens first ?", pool[0], pool, starts[:1])
        if events[starts[-1]].start - events[starts[-2]].start > gap:
            yield self._make("last", "what happens last ?", pool[-1], pool, starts[-1:])
        actor = int(self.rng.integers(len(self.scene.actors)))
        done = {events[i].action for i in self._by_actor(actor)}
        wanted = bool(self.rng.random() < 0.5)
        options = [a for a in ACTIONS if a.name != "meet" and (a.name in done) == wanted]
        if options:
            action = options[int(self.rng.integers(len(options)))]
            text = f"does {self.name(actor)} {action.plain} ?"
            answer = "yes" if action.name in done else "no"
            shown = self._events_of(action.name, actor)
            yield self._make("whether", text, answer, ["yes", "no"], shown)

    def _where(self) -> Iterator[Question]:
        """In which quarter of the stage something happens that moves nobody."""
        for i, e in enumerate(self.scene.events):
            x, y = place_before(self.scene, e.actor, e.start)
            clear = min(abs(x - 0.5), abs(y - 0.5)) > MIDDLE
            if e.action in STEADY and clear and len(self.scene.occurrences(i)) == 1:
                answer = f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
                text = f"where does {self.phrases(i)['plain']} ?"
                yield self._make("where", text, answer, list(QUARTERS), [i])


def _plain(action: str) -> str:
    return ACTIONS[ACTION_INDEX[action]].plain


#: Kinds whose answer is a word or two and is scored by exact match.
QA_KINDS: tuple[str, ...] = (
    "does", "after", "which", "colour", "before", "count", "first", "last", "whether", "where",
)  # fmt: skip


def draw(
    scene: Scene,
    rng: np.random.Generator,
    *,
    ground: int = 2,
    qa: int = 4,
    highlights: int = 1,
    why: int = 1,
    caption: int = 1,
) -> list[Question]:
    """At most so many questions of each sort; QA kinds are drawn evenly, not as often as they fit.

    In the `test-unseen` split only events with held-out combinations are grounded.
    """
    asker = Asker(scene, rng)
    events = unseen_events(scene) if scene.split == "test-unseen" else range(len(scene.events))
    order = [int(i) for i in rng.permutation(list(events))]
    found = [asker.ground(i) for i in order[:ground]]
    causes = [q for i in order if why and (q := asker.why(i)) is not None]
    found += causes[:why]
    repeated = sorted(order, key=lambda i: -len(scene.occurrences(i)))
    found += [asker.highlights(i) for i in repeated[:highlights]]
    by_kind: dict[str, list[Question]] = {}
    for question in asker.qa() if qa else []:
        by_kind.setdefault(question.kind, []).append(question)
    kinds = list(by_kind)
    rng.shuffle(kinds)
    for i in range(qa):
        left = [k for k in kinds if by_kind[k]]
        if not left:
            break
        pool = by_kind[left[i % len(left)]]
        found.append(pool.pop(int(rng.integers(len(pool)))))
    return found + [asker.caption() for _ in range(caption)]
