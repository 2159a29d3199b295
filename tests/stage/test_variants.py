"""Scenes that differ in one thing: what differs, what does not, and captions that tell it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vidllm.stage.annotations import video_id
from vidllm.stage.gallery import captions_csv, gallery_scenes
from vidllm.stage.scenes import Scene, allowed, make_scene
from vidllm.stage.tracks import tracks
from vidllm.stage.training.data import sample_seconds
from vidllm.stage.variants import KINDS, caption_of, sentences_of, variants_of

SCENES = [make_scene("train", seed, version) for seed in range(40) for version in (1, 2)]


def others(scene: Scene) -> dict[str, Scene]:
    return {one.variant: one for one in variants_of(scene)}


def test_variants_are_always_the_same_and_all_kinds_are_met() -> None:
    found = [variants_of(scene) for scene in SCENES]
    assert found == [variants_of(scene) for scene in SCENES]
    assert {one.variant for some in found for one in some} == set(KINDS)
    names = [video_id(one) for some in found[::2] for one in some]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_differs_in_its_kind_alone(kind: str) -> None:
    pairs = [(scene, others(scene)[kind]) for scene in SCENES if kind in others(scene)]
    assert len(pairs) > 8
    for scene, other in pairs:
        assert caption_of(sentences_of(scene)) != caption_of(sentences_of(other))
        assert [a.home for a in scene.actors] == [a.home for a in other.actors]
        events = list(zip(scene.events, other.events, strict=True))
        same = replace(other, actors=scene.actors, events=scene.events, variant="")
        assert same == scene
        if kind in ("actor", "colour"):
            assert scene.events == other.events
            changed = [(a, b) for a, b in zip(scene.actors, other.actors, strict=True) if a != b]
            (a, b), name = changed[0], "noun" if kind == "actor" else kind
            assert len(changed) == 1 and replace(b, **{name: getattr(a, name)}) == a
            looks = [(actor.noun, actor.colour) for actor in other.actors]
            assert len(set(looks)) == len(looks)  # every name still means one actor
        elif kind == "action":
            changed_events = [(a, b) for a, b in events if a != b]
            ((a, b),) = changed_events
            assert (a.actor, a.start, a.end) == (b.actor, b.start, b.end) and a.action != b.action
        else:
            assert sorted(sentences_of(scene)) == sorted(sentences_of(other))
            assert sorted(e.start for e in scene.events) == sorted(e.start for e in other.events)
        for who in range(len(other.actors)):  # nobody does two things at once
            mine = sorted((e.start, e.end) for e in other.events if who in (e.actor, e.other))
            assert all(a[1] <= b[0] for a, b in pairwise(mine))
        for e in other.events:
            who = [w for w in (e.actor, e.other) if w >= 0]
            assert allowed(other.actors, who, e.action, "train")


def test_what_does_not_differ_looks_the_same() -> None:
    for scene in SCENES:
        seconds = sample_seconds(scene, 12)
        one = tracks(scene, seconds)
        for other in variants_of(scene):
            two = tracks(other, seconds)
            assert np.array_equal(one.background, two.background) and one.noise == two.noise
            rows = np.flatnonzero((one.state != two.state).any((0, 2)) | (one.glyph != two.glyph))
            assert 0 < len(rows) <= 2  # of the actors that it is about, in twelve frames


def test_a_gallery_holds_scenes_with_their_variants() -> None:
    scenes = gallery_scenes("test", 3, 12)
    assert scenes[:7] == gallery_scenes("test", 3, 7)
    lines = captions_csv(scenes).splitlines()
    assert lines[0] == "key,vid_key,video_id,sentence,scene,differs" and len(lines) == 13
    assert lines[1].startswith("ret0,stage0,test_000300000,the ")
    assert lines[2].endswith(",test_000300000,actor")
