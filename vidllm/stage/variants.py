"""Scenes that differ from another in one thing, and captions that tell the two apart.

For retrieval: a clip and its variants share everything else (who else is there, when something
happens, background, noise), so that a caption finds the right one only by the actor, the colour,
the action or the order that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from .annotations import tidy
from .questions import Asker
from .scenes import Event, Scene, allowed, other_colour, rate_of
from .words import COLOUR_NAMES, NOUN_NAMES, REPEATABLE

#: Two events whose order changes begin so far apart, as a share of the clip.
APART = 0.1
#: An event that changes takes at least such a share of the clip: twelve even frames show it.
SEEN = 1 / 12
_STREAM = 6  # of a scene's random numbers: how its variants differ


def sentences_of(scene: Scene) -> list[str]:
    """What happens, one sentence an event, in time order."""
    asker = Asker(scene, scene.rng(1))
    order = sorted(range(len(scene.events)), key=lambda i: scene.events[i].start)
    return [asker.plain_sentence(i) for i in order]


def caption_of(sentences: Sequence[str]) -> str:
    """Sentences as one caption: "the red star spins. the blue heart jumps."."""
    return tidy(" . ".join(sentences) + " .")


def variants_of(scene: Scene) -> list[Scene]:
    """The variants of a scene, always the same: one a kind, as far as the scene allows it."""
    rng = scene.rng(_STREAM)
    found = [variant_of(scene, kind, rng) for kind in KINDS]
    return [one for one in found if one is not None]


def variant_of(scene: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """The scene with one thing changed; None where it has nothing to change so.

    Args:
        kind: one of `KINDS`. rng: which of the things that could change, and to what.
    """
    made = _MAKERS[kind](scene, rng)
    if made is None or sentences_of(made) == sentences_of(scene):
        return None
    return replace(made, variant=kind)


def _acting(scene: Scene) -> list[int]:
    return sorted({who for e in scene.events for who in (e.actor, e.other) if who >= 0})


def _fits(scene: Scene) -> bool:
    """Whether the split may show what happens."""
    return all(
        allowed(scene.actors, [w for w in (e.actor, e.other) if w >= 0], e.action, scene.split)
        for e in scene.events
    )


def _is_steady(scene: Scene, event: Event) -> bool:
    """Whether an event leaves its actor where it was, and is long enough to be seen."""
    long = event.end - event.start >= SEEN * scene.duration
    return event.action in REPEATABLE and long


def _recast(scene: Scene, who: int, **look: Any) -> Scene:
    actors = list(scene.actors)
    actors[who] = replace(actors[who], **look)
    return replace(scene, actors=tuple(actors))


def _pick(rng: np.random.Generator, found: Sequence[Scene]) -> Scene | None:
    return found[int(rng.integers(len(found)))] if found else None


def _actor(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Another noun, which nobody else is, does all that one actor does."""
    taken = {actor.noun for actor in scene.actors}
    who = int(rng.choice(_acting(scene)))
    free = [noun for noun in range(len(NOUN_NAMES)) if noun not in taken]
    return _pick(rng, [s for n in free if _fits(s := _recast(scene, who, noun=n))])


def _colour(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One actor has another colour: not that of its twin, nor one that the two turn into."""
    who = int(rng.choice(_acting(scene)))
    twins = [k for k, actor in enumerate(scene.actors) if actor.noun == scene.actors[who].noun]
    taken = {scene.actors[k].colour for k in twins}
    taken |= {e.colour for e in scene.events if e.actor in twins}
    free = [colour for colour in range(len(COLOUR_NAMES)) if colour not in taken]
    return _pick(rng, [s for c in free if _fits(s := _recast(scene, who, colour=c))])


def _action(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One actor does another thing in the same seconds, which leaves it where it was."""
    steady = [i for i, e in enumerate(scene.events) if _is_steady(scene, e)]
    if not steady:
        return None
    i = int(rng.choice(steady))
    old = scene.events[i]
    names = [name for name in REPEATABLE if name != old.action]
    names = [name for name in names if allowed(scene.actors, [old.actor], name, scene.split)]
    if not names:
        return None
    name = str(rng.choice(names))
    new = replace(
        old,
        action=name,
        colour=other_colour(rng, scene.actors, old.actor) if name == "recolour" else -1,
        rate=rate_of(rng, name, old.end - old.start),
        cause=-1,
    )
    return replace(scene, events=_with(scene.events, {i: new}))


def _order(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Two events change places in time."""
    pairs = []
    for i, j in combinations(range(len(scene.events)), 2):
        one, two = sorted((scene.events[i], scene.events[j]), key=lambda e: e.start)
        apart = two.start - one.start >= APART * scene.duration and one.end <= two.start
        both = _is_steady(scene, one) and _is_steady(scene, two)
        if apart and both and _free(scene, i, j) and _free(scene, j, i):
            pairs.append((i, j))
    if not pairs:
        return None
    i, j = pairs[int(rng.integers(len(pairs)))]
    first, second = scene.events[i], scene.events[j]
    return replace(
        scene, events=_with(scene.events, {i: _at(second, first, rng), j: _at(first, second, rng)})
    )


def _at(event: Event, slot: Event, rng: np.random.Generator) -> Event:
    rate = rate_of(rng, event.action, slot.end - slot.start)
    return replace(event, start=slot.start, end=slot.end, rate=rate, cause=-1)


def _free(scene: Scene, event: int, slot: int) -> bool:
    """Whether the actor of one event is on stage and idle in the seconds of another."""
    who, at = scene.events[event].actor, scene.events[slot]
    for i, e in enumerate(scene.events):
        if i in (event, slot) or who not in (e.actor, e.other):
            continue
        away = (e.action == "appear" and at.start < e.end) or (
            e.action == "leave" and at.end > e.start
        )
        if away or (at.start < e.end and e.start < at.end):
            return False
    return True


def _with(events: Sequence[Event], other: dict[int, Event]) -> tuple[Event, ...]:
    return tuple(other.get(i, event) for i, event in enumerate(events))


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "actor": _actor,
    "colour": _colour,
    "action": _action,
    "order": _order,
}
#: What a variant differs in.
KINDS: tuple[str, ...] = tuple(_MAKERS)
