"""The clips of the task `needle`: one short action of one stage actor, and minutes of nothing else.

The world is that of `stage`, but it stands still for `HOLD` seconds at a time, so that an hour
takes seconds to write and few megabytes; only the action is painted frame by frame. It is one
that leaves no trace: nothing before or behind it tells that it happened, or when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidllm.errors import InputError
from vidllm.stage.annotations import tidy
from vidllm.stage.questions import Asker
from vidllm.stage.scenes import Actor, Event, Scene, make_scene, rng_for
from vidllm.stage.tracks import MAX_DISTRACTORS, tracks
from vidllm.stage.words import ACTION_INDEX, ACTIONS, COLOUR_NAMES, REPEATABLE, held_out

#: Grows when clips or questions become other ones.
VERSION = 1
FPS = 4.0
#: Seconds for which the world stands still; frames painted at once span as long.
HOLD = 5.0
KEY_SECONDS = 20.0
#: Actions that leave everything as it was.
NEEDLES: tuple[str, ...] = REPEATABLE
# Actors and scenery are drawn as in the split "long", far behind the scenes that it has itself.
_SPLIT, _FIRST = "long", 10**12
_WORLD = 1  # version of the made world: the clips stay what they are
_TURNS = 2.5  # turns, hops or blinks of a needle, at least


@dataclass(frozen=True)
class Place:
    """Where a needle lies: minutes of the clip, depth in percent, and which clip of the cell.

    At depth d the action starts at d % of the time by which the clip is longer than the action:
    at 0 % the clip begins with it, at 100 % it ends with it.
    """

    minutes: float
    depth: float
    number: int

    @property
    def vid(self) -> str:
        """Name of the video, "needle_60min_12p5pct_0"."""
        name = f"needle_{self.minutes:g}min_{self.depth:g}pct_{self.number}"
        return name.replace(".", "p")  # no second dot in a file's name

    def span(self, seconds: float) -> tuple[float, float]:
        """Start and end in seconds of an action of so many seconds."""
        start = self.depth / 100 * (60 * self.minutes - seconds)
        return start, start + seconds


def needle_scene(place: Place, seed: int, seconds: float, action: str) -> Scene:
    """A stage scene in which one actor does `action` once, at `place`; always the same.

    Args:
        seed: 0 or more; other seeds have other actors and scenery.
        seconds: that the action takes.

    Raises:
        InputError: an action that leaves a trace, or a clip that is not twice as long as it.
    """
    if action not in NEEDLES:
        raise InputError(f"a needle does one of {', '.join(NEEDLES)}, not {action!r}")
    duration = 60 * place.minutes
    if not 0 < 2 * seconds <= duration:
        raise InputError(
            f"an event of {seconds:g} s in a clip of {duration:g} s is no needle: it must take "
            "more than 0 s and at most half of the clip"
        )
    parts = (round(6000 * place.minutes), round(1000 * place.depth), place.number, seed)
    number = _FIRST + int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 2)
    able: list[int] = []
    while not able:  # only test-unseen shows the combinations that are held out
        number += 1
        actors = tuple(replace(a, hidden=False) for a in make_scene(_SPLIT, number, _WORLD).actors)
        able = [i for i, a in enumerate(actors) if not held_out(a.noun, a.colour, action)]
    rng = rng_for(_SPLIT, number, 4, _WORLD)
    who = int(rng.choice(able))
    event = Event(
        who,
        action,
        *place.span(seconds),
        target=actors[who].home,
        colour=_another_colour(rng, actors, who) if action == "recolour" else -1,
        rate=max(_TURNS / seconds, float(rng.uniform(0.3, 0.8))),
    )
    frames = max(1, round(duration * FPS))
    return Scene(number, _SPLIT, frames / FPS, FPS, actors, (event,), version=_WORLD)


def _another_colour(rng: np.random.Generator, actors: tuple[Actor, ...], who: int) -> int:
    """A colour that no actor of the same noun has: it must not turn into its twin."""
    taken = {a.colour for a in actors if a.noun == actors[who].noun}
    return int(rng.choice([c for c in range(len(COLOUR_NAMES)) if c not in taken]))


def needle_questions(scene: Scene) -> tuple[str, str]:
    """When the needle happens, and what its actor does, in stage's own words."""
    asker = Asker(scene, rng_for(scene.split, scene.seed, 1, scene.version))
    when = f"when does {asker.phrases(0)['plain']} ?"
    return tidy(when), tidy(f"what does {asker.name(scene.events[0].actor)} do ?")


def needle_answer(scene: Scene) -> str:
    """What the actor does, as stage says it: "spins"."""
    return ACTIONS[ACTION_INDEX[scene.events[0].action]].third


def runs(scene: Scene) -> Iterator[tuple[np.ndarray, int]]:
    """All frames of a clip in order, (128, 128, 3) uint8, each with how often it is shown.

    At most `HOLD` seconds are painted at once, so that an hour takes the memory of these.
    """
    import torch  # not at the top: the command line lists tasks before it needs torch

    from vidllm.stage.render import VIDEO_SIZE, render_tracks, to_uint8

    event = scene.events[0]
    # As long ago: the same world, drawn by the same numbers, in which nothing happens.
    idle = replace(scene, events=(replace(event, start=-2.0, end=-1.0),))
    row = MAX_DISTRACTORS + event.actor
    source = rng_for(scene.split, scene.seed, 3, scene.version)
    grain = torch.Generator().manual_seed(int(source.integers(2**62)))
    # One grain for all frames: else a still picture's bits would go to nothing but grain.
    noise = torch.randn((1, 1, VIDEO_SIZE, VIDEO_SIZE), generator=grain)
    block = round(HOLD * scene.fps)
    for first in range(0, scene.frame_count, block):
        count = min(block, scene.frame_count - first)
        seconds = np.arange(first, first + count) / scene.fps
        inside = (seconds >= event.start) & (seconds < event.end)
        # Every frame inside is a picture of its own; the others repeat the one before them.
        new = np.concatenate([[True], inside[1:] | inside[:-1]])
        still, acting = np.full(int(new.sum()), first / scene.fps), inside[new]
        moving = tracks(idle, still)
        if acting.any():
            moving.state[acting, row] = tracks(scene, seconds[new][acting]).state[:, row]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in one order: the number of cores must not show
        try:
            painted = render_tracks(moving, noise=0.0)
        finally:
            torch.set_num_threads(threads)
        pictures = to_uint8((painted + moving.noise * noise).clamp_(0, 1)).numpy()
        times = np.diff([*np.flatnonzero(new), count])
        yield from zip(pictures, map(int, times), strict=True)


def write_needle(path: Path, scene: Scene) -> None:
    """Write a clip as an mp4 file; see `vidllm.stage.files.write_pictures`."""
    from vidllm.stage.files import write_pictures

    write_pictures(path, runs(scene), scene.fps, round(KEY_SECONDS * scene.fps))
