"""Draw a scene from a seed: who is on the stage and who does what, when.

A scene is small and exact; everything else (frames, labels, questions) is computed from it.
2 to 5 actors, the same noun in two colours in a third of the clips, clips of 8 to 120 s, repeated
actions, actors that cross in front of others. How large the actors are, how long an event takes and
whether anything ever stands still is what the versions of the world differ in (`WORLDS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidllm.errors import InputError

from .words import ACTIONS, COLOUR_NAMES, NOUN_NAMES, REPEATABLE, held_out

SPLITS: tuple[str, ...] = ("train", "val", "test", "test-unseen", "long")
FPS: tuple[float, ...] = (8.0, 10.0, 12.0, 15.0, 20.0, 24.0, 25.0, 30000 / 1001, 30.0)
#: A clip holds at most this many frames (longer clips get a lower frame rate), so that writing
#: the benchmark to disk stays a matter of minutes. The long split is exempt.
MAX_FRAMES = 1500
GAP = 0.02  # least pause between two actions of one actor, as a share of the clip


@dataclass(frozen=True)
class World:
    """What one version of the benchmark draws its scenes from.

    Attributes:
        stream: tells the random numbers of versions apart.
        half: least and largest half size of an actor, in stage widths.
        span: least and largest share of the clip that an event takes (`long` has seconds instead).
        actors: least and largest number.
        stills: share of clips in which nothing moves but in events and shortly beside them.
        gathered: share of clips whose events fall into one part of the clip.
        places: whether it is asked where something happens.
    """

    stream: int
    half: tuple[float, float]
    span: tuple[float, float]
    actors: tuple[int, int]
    stills: float = 0.0
    gathered: float = 0.0
    places: bool = False


WORLDS: dict[int, World] = {
    1: World(7, half=(0.125, 0.165), span=(0.04, 0.40), actors=(2, 5)),
    # Small actors: pooling over space costs. Short events: pooling over time costs. Stills: a
    # budget that follows motion gains.
    2: World(8, (0.065, 0.095), (0.06, 0.18), (3, 5), stills=0.75, gathered=0.5, places=True),
}
#: What is meant where nobody names a version: the one that the shipped model is measured on.
USUAL = 2
#: A still ends and begins so far from an event, and is at least so long: shares of the clip.
STILL_MARGIN, STILL_LEAST = 0.01, 0.08


@dataclass(frozen=True)
class Actor:
    """A glyph on the stage: indices into NOUN_NAMES and COLOUR_NAMES, home place, half size."""

    noun: int
    colour: int
    home: tuple[float, float]
    half: float
    hidden: bool = False  # off stage until it first appears


@dataclass(frozen=True)
class Event:
    """One action: seconds, who, with whom (meet), and what the renderer needs to show it."""

    actor: int
    action: str
    start: float
    end: float
    other: int = -1
    target: tuple[float, float] = (0.0, 0.0)  # where a cross, an entry or an exit leads
    colour: int = -1  # the colour shown while it changes colour
    rate: float = 1.0  # turns, hops or blinks a second
    cause: int = -1  # index of the event that set it off


@dataclass(frozen=True)
class Scene:
    """A whole clip. `seed` and `split` (and `variant`) are enough to make it again."""

    seed: int
    split: str
    duration: float
    fps: float
    actors: tuple[Actor, ...]
    events: tuple[Event, ...]
    version: int = USUAL
    stills: tuple[tuple[float, float], ...] = ()  # seconds in which nothing at all moves
    variant: str = ""  # how it differs from the scene of its seed (see `variants`)

    def rng(self, stream: int) -> np.random.Generator:
        """The generator of one thing that is drawn from the scene (see `rng_for`)."""
        return rng_for(self.split, self.seed, stream, self.version)

    def clock(self, seconds: np.ndarray) -> np.ndarray:
        """The time by which all moves that is no event: it stands while the scene does."""
        moved = np.asarray(seconds, dtype=np.float64).copy()
        for start, end in self.stills:
            moved -= np.clip(seconds, start, end) - start
        return moved

    @property
    def frame_count(self) -> int:
        return max(1, round(self.duration * self.fps))

    def occurrences(self, event: int) -> list[int]:
        """Indices of the events with the same actor, action and partner, in time order."""
        e = self.events[event]
        same = [
            i
            for i, o in enumerate(self.events)
            if o.action == e.action and {o.actor, o.other} == {e.actor, e.other}
        ]
        return sorted(same, key=lambda i: self.events[i].start)


def check_version(version: int) -> int:
    """The version, if there is such a world.

    Raises:
        InputError: there is none.
    """
    if version not in WORLDS:
        known = ", ".join(map(str, WORLDS))
        raise InputError(f"no version {version} of the stage world: use one of {known}")
    return version


def rng_for(split: str, seed: int, stream: int = 0, version: int = USUAL) -> np.random.Generator:
    """The generator of a (split, seed) pair: splits and versions never share a scene.

    `stream` separates what is drawn from one scene (0 the scene, 1 its questions, 2 its pixels).

    Raises:
        InputError: for a split or version that does not exist or a negative seed.
    """
    if split not in SPLITS:
        raise InputError(f"no stage split '{split}': use one of {', '.join(SPLITS)}")
    if seed < 0:
        raise InputError(f"a stage seed must be 0 or more, not {seed}")
    world = WORLDS[check_version(version)]
    return np.random.default_rng([world.stream, SPLITS.index(split), seed, stream])


def make_scene(split: str, seed: int, version: int = USUAL) -> Scene:
    """The scene of (split, seed, version); the same arguments always give the same scene."""
    rng = rng_for(split, seed, version=version)
    for _ in range(200):
        scene = _draw(rng, split, seed, version)
        if len(scene.events) >= 2 and (split != "test-unseen" or unseen_events(scene)):
            return scene
    raise InputError(f"no scene could be drawn for split {split}, seed {seed}: use another seed")


def unseen_events(scene: Scene) -> list[int]:
    """Indices of the events whose noun–colour–action combination training never shows."""
    return [i for i, e in enumerate(scene.events) if _is_held_out(scene.actors, e)]


def place_before(scene: Scene, who: int, second: float) -> np.ndarray:
    """Where an actor stands at a second in which it is not on its way, in stage widths."""
    place = scene.actors[who].home
    for e in scene.events:
        if e.actor == who and e.action == "cross" and e.end <= second:
            place = e.target
    return np.asarray(place)


def _is_held_out(actors: tuple[Actor, ...] | list[Actor], event: Event) -> bool:
    who = [event.actor] if event.other < 0 else [event.actor, event.other]
    return any(held_out(actors[w].noun, actors[w].colour, event.action) for w in who)


def _draw(rng: np.random.Generator, split: str, seed: int, version: int) -> Scene:
    long, world = split == "long", WORLDS[version]
    if long:
        duration = float(np.exp(rng.uniform(np.log(300.0), np.log(3600.0))))
        fps = float(rng.choice([2.0, 4.0, 5.0]))
    else:
        duration = float(np.exp(rng.uniform(np.log(8.0), np.log(120.0))))
        fps = float(rng.choice([f for f in FPS if f * duration <= MAX_FRAMES]))
    duration = max(1, round(duration * fps)) / fps
    actors = _draw_actors(rng, world)
    slots = _draw_slots(rng, len(actors), duration, long, world)
    actors, events = _fill_slots(rng, actors, slots, split)
    stills = _stills(events, duration) if world.stills and rng.random() < world.stills else ()
    return Scene(seed, split, duration, fps, tuple(actors), tuple(events), version, stills)


def _stills(events: list[Event], duration: float) -> tuple[tuple[float, float], ...]:
    """The long stretches between events, in which everything stands still."""
    margin, found, free = STILL_MARGIN * duration, [], 0.0
    for event in [*sorted(events, key=lambda e: e.start), None]:
        end = duration if event is None else event.start - margin
        if end - free >= STILL_LEAST * duration:
            found.append((free, end))
        if event is not None:
            free = max(free, event.end + margin)
    return tuple(found)


def _draw_actors(rng: np.random.Generator, world: World) -> list[Actor]:
    least, most = world.actors
    count = int(rng.integers(least, most + 1))
    looks: list[tuple[int, int]] = []
    if rng.random() < 0.36:  # the same noun twice, so that the colour matters
        noun = int(rng.integers(len(NOUN_NAMES)))
        one, two = rng.choice(len(COLOUR_NAMES), 2, replace=False)
        looks += [(noun, int(one)), (noun, int(two))]
    while len(looks) < count:
        look = (int(rng.integers(len(NOUN_NAMES))), int(rng.integers(len(COLOUR_NAMES))))
        if all(look[0] != other[0] for other in looks):
            looks.append(look)
    homes: list[tuple[float, float]] = []
    while len(homes) < count:
        homes.append(_free_place(rng, homes))
    order = rng.permutation(count)
    return [
        Actor(*looks[i], home=homes[i], half=float(rng.uniform(*world.half)))
        for i in map(int, order)
    ]


def _free_place(
    rng: np.random.Generator,
    taken: list[tuple[float, float]],
    x_range: tuple[float, float] = (0.14, 0.86),
) -> tuple[float, float]:
    """A place far from the taken ones: the best of a dozen tries."""
    tries = np.stack([rng.uniform(*x_range, 12), rng.uniform(0.2, 0.86, 12)], axis=1)
    if not taken:
        return float(tries[0, 0]), float(tries[0, 1])
    gaps = np.linalg.norm(tries[:, None] - np.asarray(taken)[None], axis=2).min(axis=1)
    best = tries[int(np.argmax(np.minimum(gaps, 0.32)))]
    return float(best[0]), float(best[1])


@dataclass(frozen=True)
class _Slot:
    actor: int
    start: float
    end: float
    other: int = -1
    after: int = -1  # index of the slot that sets this one off


def _draw_slots(
    rng: np.random.Generator, count: int, duration: float, long: bool, world: World
) -> list[_Slot]:
    """When something happens, before it is decided what: no actor is busy twice at once."""
    busy: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    slots: list[_Slot] = []
    gap = GAP * duration

    def free(who: int, start: float, end: float) -> bool:
        inside = start >= 0.015 * duration and end <= 0.985 * duration
        return inside and all(end + gap <= s or start >= e + gap for s, e in busy[who])

    def length() -> float:
        if long:
            return float(rng.uniform(8.0, 45.0))
        least, most = world.span
        low = max(least, min(0.75 * most, 0.8 / duration))
        return float(np.exp(rng.uniform(np.log(low), np.log(most)))) * duration

    wanted = int(rng.integers(1, 4)) if long else int(rng.integers(3, 4 + count))
    causal = rng.random() < 0.45
    first, last = 0.015, 0.985
    if world.gathered and not long and rng.random() < world.gathered:
        width = float(rng.uniform(0.45, 0.7))
        first = float(rng.uniform(first, last - width))
        last = first + width
    for _ in range(8 * wanted):
        if len(slots) >= wanted:
            break
        span = length()
        actor = int(rng.integers(count))
        other, after = -1, -1
        if causal and slots and all(s.after < 0 for s in slots):
            after = int(rng.integers(len(slots)))
            start = slots[after].end + float(rng.uniform(0.001, 0.012)) * duration
            if actor in (slots[after].actor, slots[after].other):
                continue
        else:
            start = float(rng.uniform(first, last)) * duration - span * float(rng.random())
            if rng.random() < 0.13:
                other = int(rng.integers(count))
        who = [actor] if other < 0 else [actor, other]
        if actor == other or not all(free(w, start, start + span) for w in who):
            continue
        for w in who:
            busy[w].append((start, start + span))
        slots.append(_Slot(actor, start, start + span, other, after))
    return slots


def _fill_slots(
    rng: np.random.Generator,
    actors: list[Actor],
    slots: list[_Slot],
    split: str,
) -> tuple[list[Actor], list[Event]]:
    """Decide what happens in each slot, so that nobody acts while off stage."""
    order = sorted(range(len(slots)), key=lambda i: slots[i].start)
    place = [a.home for a in actors]
    visible = [True] * len(actors)
    events: list[Event] = []
    done: list[list[str]] = [[] for _ in actors]
    new_index: dict[int, int] = {}
    for rank, i in enumerate(order):
        slot = slots[i]
        later = [slots[j] for j in order[rank + 1 :]]
        meets_later = any(slot.actor in (s.actor, s.other) and s.other >= 0 for s in later)
        who = [slot.actor] if slot.other < 0 else [slot.actor, slot.other]
        if slot.other >= 0:
            options = ["meet"] if all(visible[w] for w in who) else []
        elif not visible[slot.actor]:
            options = ["appear"]
        else:
            options = [a.name for a in ACTIONS if a.name not in ("appear", "meet")]
            if meets_later:
                options.remove("leave")
            if not done[slot.actor] and not meets_later and rng.random() < 0.25:
                options = ["appear"]  # its first action: it was off stage until now
        options = [o for o in options if allowed(actors, who, o, split)]
        if not options:
            continue
        action = _choose(rng, options, done[slot.actor], actors, who, split)
        if action == "appear" and visible[slot.actor]:
            actors[slot.actor] = replace(actors[slot.actor], hidden=True)
        others = [p for k, p in enumerate(place) if k not in who]
        span = slot.end - slot.start
        event = Event(slot.actor, action, slot.start, slot.end, slot.other)
        event = replace(
            event,
            target=_target(rng, action, place[slot.actor], others, actors[slot.actor].half),
            colour=other_colour(rng, actors, slot.actor) if action == "recolour" else -1,
            rate=rate_of(rng, action, span),
            cause=new_index.get(slot.after, -1),
        )
        if action in ("appear", "leave"):
            visible[slot.actor] = action == "appear"
        elif action == "cross":
            place[slot.actor] = event.target
        for w in who:
            done[w].append(action)
        new_index[i] = len(events)
        events.append(event)
    return actors, events


def allowed(actors: Sequence[Actor], who: Sequence[int], action: str, split: str) -> bool:
    """Whether a split may show these actors in an action (see `words.held_out`)."""
    if split == "test-unseen":
        return True
    return not any(held_out(actors[w].noun, actors[w].colour, action) for w in who)


def _choose(
    rng: np.random.Generator,
    options: list[str],
    done: list[str],
    actors: list[Actor],
    who: list[int],
    split: str,
) -> str:
    if split == "test-unseen":
        new = [
            o for o in options if any(held_out(actors[w].noun, actors[w].colour, o) for w in who)
        ]
        if new and rng.random() < 0.8:
            return str(rng.choice(new))
    again = [o for o in options if o in done and o in REPEATABLE]
    if again and rng.random() < 0.4:
        return str(rng.choice(again))
    return str(rng.choice(options))


def other_colour(rng: np.random.Generator, actors: Sequence[Actor], who: int) -> int:
    """A colour that no other actor of the same noun has: it must not turn into its twin."""
    noun = actors[who].noun
    taken = {a.colour for a in actors if a.noun == noun}
    return int(rng.choice([c for c in range(len(COLOUR_NAMES)) if c not in taken]))


def _target(
    rng: np.random.Generator,
    action: str,
    place: tuple[float, float],
    others: list[tuple[float, float]],
    half: float,
) -> tuple[float, float]:
    x, y = place
    if action == "cross":  # to the other side of the stage, past whoever stands in between
        return _free_place(rng, others, (0.62, 0.86) if x < 0.5 else (0.14, 0.38))
    if action in ("appear", "leave"):  # through the nearest side wing
        return (-1.3 * half if x < 0.5 else 1 + 1.3 * half), y
    return place


def rate_of(rng: np.random.Generator, action: str, span: float) -> float:
    """Turns, hops or blinks a second: at least two in the span, and never a blur on video."""
    cycles = {"spin": (2.2, 0.3, 0.9), "jump": (2.0, 0.3, 0.8), "blink": (2.5, 0.4, 1.0)}
    if action not in cycles:
        return 1.0
    least, low, high = cycles[action]
    return float(max(least / span, rng.uniform(low, high)))
