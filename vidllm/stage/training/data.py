"""Batches of scenes with their questions, drawn from seeds by worker processes.

A batch holds sprite tracks, not pixels: frames are rendered on the training device. Batch i is
the same whatever the number of workers, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from vidllm.timecode import TimeCode

from ..questions import Question, draw
from ..scenes import USUAL, Scene, make_scene
from ..tracks import MAX_ACTORS, Tracks, tracks
from ..words import ACTION_INDEX, ACTIONS, COLOUR_NAMES, NOUN_NAMES
from .tokenizer import ASSISTANT, END

#: Words of a clip's text that are told where to look, and how many actors in events each.
POINTERS, EVIDENCE = 96, 5
#: So many words of an answer without times are told.
TOLD_WORDS = 4
IGNORE = -100


@dataclass(frozen=True)
class DataSettings:
    """What a batch looks like.

    Args:
        split: "train" or "val".
        batch: clips in a batch.
        frames: frames of a clip.
        random_times: frames at random times, for learning to see; else as `load_video` samples.
        clips: scenes to go round in; 0 draws new scenes for ever.
        word_noise: share of question words replaced by the unknown word, so that a user's own
            words do not throw the model off.
        first: seed of the first scene. versions: of the benchmark, that scenes take turns in.
        captions: whether a quarter of the batches also ask for grounded captions.
    """

    split: str = "train"
    batch: int = 8
    frames: int = 64
    random_times: bool = False
    clips: int = 0
    word_noise: float = 0.02
    first: int = 0
    seed: int = 0
    versions: tuple[int, ...] = (USUAL,)
    captions: bool = True

    def scene(self, seed: int) -> Scene:
        """The scene of a seed, of the version whose turn it is."""
        return make_scene(self.split, seed, self.versions[seed % len(self.versions)])


def sample_seconds(scene: Scene, frames: int) -> np.ndarray:
    """Times (T,) at which `load_video(path, frames=frames)` finds frames in the scene's file."""
    count = scene.frame_count
    if count <= frames:
        return np.arange(count) / scene.fps
    centres = (np.arange(frames) + 0.5) * scene.duration / frames
    shown = np.floor(centres * scene.fps + 1e-6)
    return np.minimum(shown, count - 1) / scene.fps


def to_paint(shown: Tracks, seconds: np.ndarray) -> dict[str, np.ndarray]:
    """The part of a row that `trainee.paint` renders: sprites at seconds (T,)."""
    return {
        "state": shown.state,
        "glyph": shown.glyph,
        "background": shown.background,
        "noise": np.asarray(shown.noise, dtype=np.float32),
        "clock": shown.clock,
        "soft": np.asarray(shown.small),
        "seconds": seconds.astype(np.float32),
    }


class StageBatches(Dataset[dict[str, Tensor]]):
    """Map-style: item i is a whole batch.

    Keys: `scene` (B,) seeds, `state` (B, T, S, 8), `glyph` (B, S), `background` (B, K, 9),
    `noise` (B,), `clock` (B, T), `soft` (B,), `seconds` (B, T), `duration` (B,), `action`
    (B, T, A), `look` (B, A, 2) noun and colour or −1; and of the questions, packed one after the
    other in L tokens a clip: `ids`, `labels`, `slot` (number of the question, −1 for padding),
    `offset` (place in the question), all (B, L). `fields` (B, P) places of time fields or −1 with
    `field_spans` (B, P, 2) seconds. `points` (B, P) places that are told where to look or −1,
    `point_times` (B, P) seconds of the edge that a time field tells or −1, `point_events`
    (B, P, E, 3) start and end in seconds and actor of the evidence, or −1. `point_acts`
    (B, P, actions): 1 for what the actor of a noun does.
    """

    def __init__(
        self,
        settings: DataSettings,
        tokenizer: PreTrainedTokenizerFast,
        code: TimeCode,
        length: int,
    ) -> None:
        self.settings = settings
        self.code = code
        self.length = length
        self.core = tokenizer.backend_tokenizer
        self.unknown = int(tokenizer.unk_token_id)
        self.assistant = int(str(tokenizer.convert_tokens_to_ids(ASSISTANT)))
        self.end = int(str(tokenizer.convert_tokens_to_ids(END)))
        self.pad = int(tokenizer.pad_token_id)
        self.time_ids = {self.core.token_to_id(t) for t in code.special_tokens}

    def __len__(self) -> int:
        return self.length

    def seeds(self, index: int) -> np.ndarray:
        """Scene seeds (B,) of batch `index`; over a limited set, every round has its own order."""
        s = self.settings
        at = index * s.batch + np.arange(s.batch)
        if s.clips:
            rounds, places = np.divmod(at, s.clips)
            orders = {
                int(r): np.random.default_rng([3, s.seed, r]).permutation(s.clips)
                for r in set(rounds)
            }
            at = np.asarray([orders[int(r)][p] for r, p in zip(rounds, places, strict=True)])
        return s.first + at

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([11, self.settings.seed, index])
        extra = {"caption": int(rng.random() < 0.25), "highlights": int(rng.random() < 0.4)}
        if not self.settings.captions:
            extra["caption"] = 0
        rows = [self._row(int(seed), rng, extra) for seed in self.seeds(index)]
        length = -(-max(len(row["ids"]) for row in rows) // 8) * 8
        for row in rows:
            for key, fill in (("ids", self.pad), ("labels", IGNORE), ("slot", -1), ("offset", 0)):
                full = np.full(length, fill, dtype=np.int64)
                full[: len(row[key])] = row[key]
                row[key] = full
        return {k: torch.from_numpy(np.stack([row[k] for row in rows])) for k in rows[0]}

    def moving(self, scene: Scene, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The part of a row that is not text: times, sprite tracks, and who they are."""
        s = self.settings
        if s.random_times and rng is not None:
            seconds = np.sort(rng.uniform(0, scene.duration, s.frames))
        else:
            seconds = sample_seconds(scene, s.frames)
        if len(seconds) < s.frames:  # a batch needs one length: the last frame stands still
            seconds = np.pad(seconds, (0, s.frames - len(seconds)), mode="edge")
        shown = tracks(scene, seconds)
        look = np.full((MAX_ACTORS, 2), -1, dtype=np.int64)
        for a, actor in enumerate(scene.actors):
            look[a] = actor.noun, actor.colour
        return {
            "scene": np.asarray(scene.seed),
            **to_paint(shown, seconds),
            "duration": np.asarray(scene.duration, dtype=np.float32),
            "action": shown.action,
            "look": look,
        }

    def _row(
        self, seed: int, rng: np.random.Generator, extra: dict[str, int]
    ) -> dict[str, np.ndarray]:
        scene = self.settings.scene(seed)
        row = self.moving(scene, rng)
        asked = draw(scene, rng, ground=4, qa=8, **extra)
        return {**row, **self._text(scene, asked, rng)}

    def _text(
        self, scene: Scene, asked: list[Question], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        ids: list[int] = []
        labels: list[int] = []
        slot: list[int] = []
        offset: list[int] = []
        fields = np.full(POINTERS, -1, dtype=np.int64)
        spans = np.zeros((POINTERS, 2), dtype=np.float32)
        told: list[tuple[int, float, list[tuple[float, float, int]]]] = []
        done: dict[int, set[int]] = {}
        used = 0
        for number, question in enumerate(asked):
            asked_for = self.core.encode(question.text, add_special_tokens=False)
            for i, actor, mine in named_actors(scene, asked_for.tokens):
                told.append((len(ids) + i, -1.0, _actors_in(scene, mine, only=actor)))
                done[len(ids) + i] = {ACTION_INDEX[scene.events[e].action] for e in mine}
            said = asked_for.ids
            noise = rng.random(len(said)) < self.settings.word_noise
            said = [self.unknown if n else i for i, n in zip(said, noise, strict=True)]
            answer = question.answer_with(lambda t: self.code.encode(t, scene.duration))
            reply = [*self.core.encode(answer, add_special_tokens=False).ids, self.end]
            start = len(ids) + len(said)  # the assistant mark predicts the first word of the reply
            times = [i for i, t in enumerate(reply) if t in self.time_ids]
            for place, i in enumerate(times[: POINTERS - used]):
                span = question.spans[place // 2]
                fields[used], spans[used] = start + i, span
                used += 1
                if question.kind != "caption":
                    event = question.evidence[place // 2 : place // 2 + 1]
                    told.append((start + i, span[place % 2], _actors_in(scene, event)))
            words = (
                [] if question.kind == "caption" else range((times or [-1])[-1] + 1, len(reply) - 1)
            )
            rest = _actors_in(scene, question.evidence[len(question.spans) :])
            told += [(start + i, -1.0, rest) for i in words[:TOLD_WORDS] if rest]
            whole = [*said, self.assistant, *reply]
            labels += [*[IGNORE] * len(said), *reply, IGNORE]
            slot += [number] * len(whole)
            offset += range(len(whole))
            ids += whole
        points = np.full(POINTERS, -1, dtype=np.int64)
        edges = np.full(POINTERS, -1, dtype=np.float32)
        events = np.full((POINTERS, EVIDENCE, 3), -1, dtype=np.float32)
        acts = np.zeros((POINTERS, len(ACTIONS)), dtype=np.float32)
        for p, (at, edge, seen) in enumerate(told[:POINTERS]):
            points[p], edges[p] = at, edge
            events[p, : len(seen)] = seen[:EVIDENCE]
            acts[p, list(done.get(at, ()))] = 1
        named = {"ids": ids, "labels": labels, "slot": slot, "offset": offset}
        arrays = {k: np.asarray(v, dtype=np.int64) for k, v in named.items()}
        return {
            **arrays,
            "fields": fields,
            "field_spans": spans,
            "points": points,
            "point_times": edges,
            "point_events": events,
            "point_acts": acts,
        }


def named_actors(scene: Scene, words: Sequence[str]) -> list[tuple[int, int, list[int]]]:
    """Nouns of a question that mean one actor: (place of the noun, actor, its events).

    A noun looks at everything that its actor does, so that a question which names no action
    ("what does the red star do?") finds it.
    """
    found = []
    for i, word in enumerate(words):
        if word not in NOUN_NAMES:
            continue
        colour = words[i - 1] if i else ""
        fitting = [
            a
            for a, actor in enumerate(scene.actors)
            if NOUN_NAMES[actor.noun] == word
            and (colour not in COLOUR_NAMES or COLOUR_NAMES[actor.colour] == colour)
        ]
        if len(fitting) != 1:
            continue
        who = fitting[0]
        events = [e for e, event in enumerate(scene.events) if who in (event.actor, event.other)]
        if events:
            found.append((i, who, events))
    return found


def _actors_in(
    scene: Scene, events: Sequence[int], only: int = -1
) -> list[tuple[float, float, int]]:
    """(start, end, actor) of everyone who takes part in some events, or of one actor alone."""
    return [
        (e.start, e.end, who)
        for e in (scene.events[i] for i in events)
        for who in (e.actor, e.other)
        if who >= 0 and only in (-1, who)
    ][:EVIDENCE]


def block_mask(slot: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, L, L) of a prefix of `prefix` tokens and packed questions.

    Every question of `slot` (B, text length) sees the prefix and itself, so that one pass over
    the video pays for all. Causal throughout.
    """
    total = prefix + slot.shape[1]
    number = torch.cat([slot.new_full((len(slot), prefix), -2), slot], dim=1)
    same = (number[:, :, None] == number[:, None, :]) | (number[:, None, :] == -2)
    seen = same & torch.ones(total, total, dtype=torch.bool, device=slot.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=slot.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )[:, None]
