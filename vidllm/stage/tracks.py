"""Where every sprite of a scene is, how big, how turned and in which colour, at given seconds.

One vectorised function of time: the video writer asks for every frame, training for 64 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scenes import Event, Scene, place_before
from .words import ACTION_INDEX, COLOURS, NOUN_NAMES

RGB = np.asarray(list(COLOURS.values()), dtype=np.float32)
#: Shapes of the distractors, which come after the nouns in the sprite atlas.
DISTRACTORS: tuple[str, ...] = ("●", "■", "✕")
MAX_ACTORS = 5
MAX_DISTRACTORS = 3
SPRITES = MAX_DISTRACTORS + MAX_ACTORS


@dataclass(frozen=True)
class Tracks:
    """Sprites over time; distractors come first, so that actors are painted over them.

    `state` (T, S, 8) float32: x, y, half size (all in stage widths), angle (radians), alpha,
    red, green, blue. `glyph` (S,) int64: atlas index, −1 for an empty place.
    `action` (T, A) int64: index of the running action of each actor, −1 while idle.
    `background` (K, 9) float32: waves as frequency x, y, drift, phase, red, green, blue, and two
    spare; the first row holds the base colour. `noise`: standard deviation of the pixel noise.
    `clock` (T,) float32: seconds that have moved the background, see `Scene.clock`. `small`:
    whether the actors are so small that their sprites are softened.
    """

    state: np.ndarray
    glyph: np.ndarray
    action: np.ndarray
    background: np.ndarray
    noise: float
    clock: np.ndarray
    small: bool


def tracks(scene: Scene, seconds: np.ndarray) -> Tracks:
    """The tracks of `scene` at `seconds` (T,), which need not be sorted or regular."""
    t = np.asarray(seconds, dtype=np.float64)
    rng, moved = scene.rng(2), scene.clock(t)
    state = np.zeros((len(t), SPRITES, 8), dtype=np.float32)
    glyph = np.full(SPRITES, -1, dtype=np.int64)
    action = np.full((len(t), MAX_ACTORS), -1, dtype=np.int64)
    camera = _sway(rng, moved, 0.018)
    for i in range(int(rng.integers(0, MAX_DISTRACTORS + 1))):
        glyph[i] = len(NOUN_NAMES) + int(rng.integers(len(DISTRACTORS)))
        state[:, i] = _distractor(rng, moved, scene.duration)
        state[:, i, :2] += camera
    for a, actor in enumerate(scene.actors):
        row = MAX_DISTRACTORS + a
        glyph[row] = actor.noun
        state[:, row, :2] = camera + _sway(rng, moved, 0.008)
        state[:, row, 2:] = (actor.half, rng.uniform(-0.1, 0.1), 1.0, *RGB[actor.colour])
        phases = rng.uniform(0, 1, len(scene.events))
        place = np.repeat(np.asarray(actor.home)[None], len(t), axis=0)
        for i, event in enumerate(scene.events):
            if a in (event.actor, event.other):
                _act(scene, event, a, t, place, state[:, row], phases[i])
                inside = (t >= event.start) & (t < event.end)
                action[inside, a] = ACTION_INDEX[event.action]
        state[:, row, :2] += place
        state[_off_stage(scene, a, t), row, 4] = 0.0
    background, noise = _background(rng), float(rng.uniform(0.01, 0.05))
    return Tracks(
        state, glyph, action, background, noise, moved.astype(np.float32), scene.version > 1
    )


def _act(
    scene: Scene,
    event: Event,
    who: int,
    t: np.ndarray,
    place: np.ndarray,
    state: np.ndarray,
    phase: float,
) -> None:
    """Add what `event` does to one actor: `place` (T, 2) and `state` (T, 8) change in place."""
    inside = (t >= event.start) & (t < event.end)
    u = np.clip((t - event.start) / (event.end - event.start), 0.0, 1.0)
    cycles = (t - event.start) * event.rate
    if event.action == "cross":
        place += u[:, None] * (np.asarray(event.target) - place)
    elif event.action == "appear":
        far = np.asarray(event.target)
        place[inside] = (far + u[:, None] * (place - far))[inside]
    elif event.action == "leave":
        place[inside] += (u[:, None] * (np.asarray(event.target) - place))[inside]
    elif event.action == "spin":
        turn = 1 if phase < 0.5 else -1
        state[inside, 3] += (turn * 2 * np.pi * cycles)[inside]
    elif event.action == "jump":
        place[inside, 1] -= (0.17 * np.abs(np.sin(np.pi * cycles)))[inside]
    elif event.action == "blink":
        state[inside, 4] *= (0.5 + 0.5 * np.cos(2 * np.pi * cycles))[inside] * 0.95 + 0.05
    elif event.action == "grow":
        state[inside, 2] *= (1 + 0.8 * np.sin(np.pi * u) ** 0.5)[inside]
    elif event.action == "recolour":
        blend = (np.minimum(1.0, np.minimum(u, 1 - u) / 0.12)[:, None])[inside]
        state[inside, 5:8] += blend * (RGB[event.colour] - state[inside, 5:8])
    elif event.action == "meet":
        _meet(scene, event, who, u, inside, place)


def _meet(
    scene: Scene, event: Event, who: int, u: np.ndarray, inside: np.ndarray, place: np.ndarray
) -> None:
    """Both walk to the middle between them, stay side by side, and walk back."""
    mine, theirs = (
        place_before(scene, w, event.start) for w in (who, event.actor + event.other - who)
    )
    towards = np.minimum(1.0, np.minimum(u, 1 - u) / 0.3)[:, None]
    side = -1.0 if (mine[0], who) < (theirs[0], event.actor + event.other - who) else 1.0
    spot = (mine + theirs) / 2 + np.asarray([side * 0.13, 0.0])
    place[inside] += (towards * (spot - place))[inside]


def _off_stage(scene: Scene, who: int, t: np.ndarray) -> np.ndarray:
    hidden = np.full(len(t), scene.actors[who].hidden)
    for e in scene.events:
        if e.actor == who and e.action == "appear":
            hidden[t >= e.start] = False
        elif e.actor == who and e.action == "leave":
            hidden[t >= e.end] = True
    return hidden


def _sway(rng: np.random.Generator, t: np.ndarray, amplitude: float) -> np.ndarray:
    """A slow wander (T, 2) that never repeats within a clip: nothing on the stage stands still."""
    speed = rng.uniform(0.1, 0.5, (2, 2))
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    wave = np.sin(t[:, None, None] * speed + phase).sum(axis=2) * (amplitude / 2)
    return wave.astype(np.float32)


def _distractor(rng: np.random.Generator, t: np.ndarray, duration: float) -> np.ndarray:
    """A dim shape (T, 8) that drifts through the picture and turns slowly."""
    start, stop = rng.uniform(-0.1, 1.1, (2, 2))
    grey = rng.uniform(0.25, 0.6) + rng.uniform(-0.08, 0.08, 3)
    rows = np.empty((len(t), 8), dtype=np.float32)
    rows[:, :2] = start + (t / duration)[:, None] * (stop - start)
    rows[:, 2] = rng.uniform(0.05, 0.10)
    rows[:, 3] = t * rng.uniform(-0.3, 0.3)
    rows[:, 4] = rng.uniform(0.4, 0.9)
    rows[:, 5:8] = grey
    return rows


def _background(rng: np.random.Generator) -> np.ndarray:
    waves = np.zeros((4, 9), dtype=np.float32)
    waves[0, 4:7] = rng.uniform(0.08, 0.36, 3)
    for row in waves[1:]:
        row[:2] = rng.uniform(-5, 5, 2)
        row[2:4] = rng.uniform(-0.15, 0.15), rng.uniform(0, 1)
        row[4:7] = rng.uniform(-0.07, 0.07, 3)
    return waves
