"""The stage world and its files: exact truth, held-out combinations, real videos, formats."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from vidllm import load_video
from vidllm.errors import InputError, WorkError
from vidllm.stage.annotations import questions_of, tidy
from vidllm.stage.files import (
    STAMP,
    Sample,
    clip_scene,
    default_folder,
    scene_frames,
    write_stage,
    write_video,
)
from vidllm.stage.questions import QA_KINDS, Question
from vidllm.stage.scenes import SPLITS, WORLDS, Scene, make_scene, unseen_events
from vidllm.stage.tracks import MAX_DISTRACTORS, tracks
from vidllm.stage.words import ACTION_INDEX, ACTIONS, COLOUR_NAMES, NOUN_NAMES, held_out

SCENES = 250
# The first clips of this benchmark seed are short, which keeps the tests fast.
SEED = 137
GOLDEN = {
    ("train", 1): "61b3a71c0fc1",
    ("test", 1): "a1d1f738315b",
    ("test-unseen", 1): "1a21a7c2cdd0",
    ("long", 1): "17465204791a",
    ("train", 2): "d58efacfe091",
    ("test", 2): "878e38ec53ba",
    ("test-unseen", 2): "3ff36f7d316a",
    ("long", 2): "922606183429",
}


@pytest.fixture(scope="module", params=WORLDS)
def scenes(request: pytest.FixtureRequest) -> dict[str, list[Scene]]:
    """Scenes of every split, of each version of the world in turn."""
    version = request.param
    return {split: [clip_scene(split, 5, i, version) for i in range(SCENES)] for split in SPLITS}


@pytest.fixture(scope="module")
def asked(scenes: dict[str, list[Scene]]) -> list[tuple[Scene, Question]]:
    return [(scene, q) for scene in scenes["test"] for q in questions_of(scene)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def short(data: Path) -> list[Sample]:
    """A benchmark of two clips."""
    return write_stage(data, "test", SEED, 2)


def digest(split: str, version: int) -> str:
    """What a few scenes, their questions and their sprites look like, as a hash."""
    text = []
    for seed in (0, 7, 300_011):
        scene = make_scene(split, seed, version)
        text.append(f"{scene.duration:.4f} {scene.fps:.4f}")
        text += [f"{a.noun} {a.colour} {a.half:.4f} {a.hidden}" for a in scene.actors]
        text += [f"{e.actor} {e.other} {e.action} {e.start:.4f} {e.end:.4f}" for e in scene.events]
        text += [f"{q.kind} {q.text} {q.answer} {q.options}" for q in questions_of(scene)]
        state = tracks(scene, np.linspace(0, scene.duration, 9)).state
        text.append(" ".join(f"{v:.2f}" for v in state.ravel() + 1e-3))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("split", "version"), GOLDEN)
def test_a_seed_always_gives_the_same_scene(split: str, version: int) -> None:
    assert digest(split, version) == GOLDEN[split, version]


def test_splits_and_seeds_never_share_a_scene(scenes: dict[str, list[Scene]]) -> None:
    seen = [repr((s.duration, s.actors, s.events)) for split in scenes.values() for s in split]
    assert len(set(seen)) == len(seen)
    assert clip_scene("test", 2, 3) == make_scene("test", 200_003)
    assert clip_scene("test", 2, 3, 1) == make_scene("test", 200_003, 1) != clip_scene("test", 2, 3)


@pytest.mark.parametrize(
    ("split", "seed", "version"), [("tset", 0, 1), ("test", -1, 1), ("test", 0, 3)]
)
def test_a_wrong_split_seed_or_version_is_refused(split: str, seed: int, version: int) -> None:
    with pytest.raises(InputError, match=r"split|seed|version"):
        make_scene(split, seed, version)


def test_held_out_combinations_are_never_shown_outside_test_unseen(
    scenes: dict[str, list[Scene]],
) -> None:
    for split in ("train", "val", "test", "long"):
        assert not any(unseen_events(scene) for scene in scenes[split])
    combinations = [
        held_out(n, c, a.name)
        for n in range(len(NOUN_NAMES))
        for c in range(len(COLOUR_NAMES))
        for a in ACTIONS
    ]
    assert 0.07 < np.mean(combinations) < 0.12
    trained = {
        (s.actors[e.actor].noun, s.actors[e.actor].colour)
        for s in scenes["train"]
        for e in s.events
    }
    assert len(trained) > 0.95 * len(NOUN_NAMES) * len(COLOUR_NAMES)


def test_test_unseen_always_asks_for_a_held_out_combination(
    scenes: dict[str, list[Scene]],
) -> None:
    for scene in scenes["test-unseen"]:
        new = set(unseen_events(scene))
        assert new
        ground = [q.event for q in questions_of(scene) if q.kind == "ground"]
        assert ground
        assert set(ground) <= new


def test_the_difficulty_is_as_promised(scenes: dict[str, list[Scene]]) -> None:
    test = scenes["test"]
    world = WORLDS[test[0].version]
    assert len(NOUN_NAMES) >= 16
    assert len(COLOUR_NAMES) == 8
    shown = {e.action for s in test for e in s.events}
    assert shown == set(ACTION_INDEX)
    assert len(shown) >= 8
    twins = [len({a.noun for a in s.actors}) < len(s.actors) for s in test]
    assert 0.27 < np.mean(twins) < 0.45
    assert {len(s.actors) for s in test} == set(range(world.actors[0], world.actors[1] + 1))
    halves = [a.half for s in test for a in s.actors]
    assert world.half[0] <= min(halves) < max(halves) <= world.half[1]
    lengths = [s.duration for s in test]
    assert min(lengths) > 7.9
    assert max(lengths) < 120.1
    assert np.median(lengths) > 20
    shares = np.asarray([(e.end - e.start) / s.duration for s in test for e in s.events])
    assert shares.min() >= world.span[0] - 1e-9
    assert shares.max() <= world.span[1] + 1e-9
    assert np.mean(shares < 0.1) > 0.2
    assert np.mean([bool(s.stills) for s in test]) == pytest.approx(world.stills, abs=0.08)
    assert len({s.fps for s in test}) >= 6
    repeated = [any(len(s.occurrences(i)) > 1 for i in range(len(s.events))) for s in test]
    assert np.mean(repeated) > 0.25
    long = scenes["long"]
    assert all(300 <= s.duration <= 3601 and 2 <= s.fps <= 5 for s in long)
    assert all(e.end - e.start <= 45 for s in long for e in s.events)


def test_actors_cross_in_front_of_others(scenes: dict[str, list[Scene]]) -> None:
    met = []
    for scene in scenes["test"][:60]:
        state = tracks(scene, np.linspace(0, scene.duration, 200)).state
        places = state[:, MAX_DISTRACTORS:][:, : len(scene.actors)]
        visible = places[..., 4] > 0.5
        gaps = np.linalg.norm(places[:, :, None, :2] - places[:, None, :, :2], axis=-1)
        gaps[~(visible[:, :, None] & visible[:, None])] = 9
        gaps[:, range(len(scene.actors)), range(len(scene.actors))] = 9
        met.append(gaps.min() < 1.4 * max(a.half for a in scene.actors))
    assert np.mean(met) > 0.25


def test_nothing_moves_in_a_still(scenes: dict[str, list[Scene]]) -> None:
    scenes_with = [scene for scene in scenes["test"] if scene.stills][:40]
    assert bool(scenes_with) == bool(WORLDS[scenes["test"][0].version].stills)
    for scene in scenes_with:
        for start, end in scene.stills:
            assert all(e.end <= start or e.start >= end for e in scene.events)
            inside = tracks(scene, np.linspace(start, end, 9))
            assert np.ptp(inside.state, axis=0).max() < 1e-5
            assert np.ptp(inside.clock) < 1e-3
        assert tracks(scene, np.asarray([scene.duration])).clock[0] == pytest.approx(
            scene.duration - sum(end - start for start, end in scene.stills), abs=1e-3
        )


def test_events_leave_their_mark_on_the_tracks(scenes: dict[str, list[Scene]]) -> None:
    """What the annotation says happens in a span can be measured there, and not just before."""
    checked = set()
    for scene in scenes["test"][:60]:
        for event in (e for e in scene.events if e.action != "meet"):
            inside = np.linspace(event.start, event.end, 41)[1:-1]
            before = np.linspace(max(0.0, event.start - 0.01 * scene.duration), event.start, 8)[:-1]
            during, idle = (_moves(scene, event.actor, t) for t in (inside, before))
            measure = {
                "spin": 3, "grow": 2, "blink": 4, "recolour": 5, "jump": 1, "cross": 0,
                "appear": 0, "leave": 0,
            }[event.action]  # fmt: skip
            assert during[measure] > 3 * idle[measure] + 0.02, (scene.seed, event)
            checked.add(event.action)
            action = tracks(scene, inside).action[:, event.actor]
            assert (action == ACTION_INDEX[event.action]).all()
    assert len(checked) == 8


def _moves(scene: Scene, actor: int, seconds: np.ndarray) -> np.ndarray:
    """How far x, y, size (relative), angle, alpha and colour of an actor range over `seconds`."""
    rows = tracks(scene, seconds).state[:, MAX_DISTRACTORS + actor]
    spread = np.ptp(rows, axis=0)
    spread[2] /= scene.actors[actor].half
    return np.asarray([*spread[:5], spread[5:8].max()])


def test_every_answer_is_true_of_the_events(asked: list[tuple[Scene, Question]]) -> None:
    kinds = set()
    for scene, question in asked:
        kinds.add(question.kind)
        for start, end in question.spans:
            assert 0 <= start < end <= scene.duration
        assert question.answer.count("{}") == 2 * len(question.spans)
        if question.kind in QA_KINDS:
            assert not question.spans
            assert question.answer in question.options
            assert len(set(question.options)) == len(question.options) >= 2
        if question.kind in ("which", "colour", "count", "whether", "before", "where"):
            assert _truth(scene, question) == question.answer, (scene.seed, question)
    wanted = {*QA_KINDS, "ground", "why", "highlights", "caption"}
    assert kinds == (wanted if WORLDS[asked[0][0].version].places else wanted - {"where"})


def _truth(scene: Scene, question: Question) -> str:
    """The answer worked out again, from the sprites where they show it."""
    text = question.text
    grid = np.linspace(0, scene.duration, 4000, endpoint=False)
    action = tracks(scene, grid).action
    acting = {
        (actor, a.name)
        for i, a in enumerate(ACTIONS)
        for actor in range(5)
        if (action[:, actor] == i).any()
    }
    if "change to" in text:
        actor = _named(scene, text)
        (event,) = [e for e in scene.events if e.actor == actor and e.action == "recolour"]
        return COLOUR_NAMES[event.colour]
    verb = next(
        a for a in ACTIONS if re.search(rf"\b({a.third}|{a.plain})\b", _verb_part(question))
    )
    who = {actor for actor, name in acting if name == verb.name}
    if question.kind == "which":
        (one,) = who
        return f"the {_look(scene, one)}"
    if question.kind == "colour":
        noun = re.search(r"is the (\w+) that", text)[1]  # type: ignore[index]
        (one,) = [w for w in who if NOUN_NAMES[scene.actors[w].noun] == noun]
        return COLOUR_NAMES[scene.actors[one].colour]
    if question.kind == "count" and "how many objects" in text:
        return str(len(who))
    if question.kind == "count":
        running = action[:, _named(scene, text)] == ACTION_INDEX[verb.name]
        return str(int(running[0]) + int((np.diff(running.astype(int)) == 1).sum()))
    if question.kind == "where":
        who = _named(scene, text)
        running = action[:, who] == ACTION_INDEX[verb.name]
        x, y = np.median(tracks(scene, grid[running]).state[:, MAX_DISTRACTORS + who, :2], axis=0)
        return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
    if question.kind == "whether":
        return "yes" if _named(scene, text) in who else "no"
    first, second = (_starts(scene, part) for part in text.split(" before "))
    return "yes" if first < second else "no"


def _verb_part(question: Question) -> str:
    return question.text.split(" before ")[0]


def _look(scene: Scene, actor: int) -> str:
    a = scene.actors[actor]
    return f"{COLOUR_NAMES[a.colour]} {NOUN_NAMES[a.noun]}"


def _named(scene: Scene, text: str) -> int:
    """The one actor that a phrase fits."""
    full = [i for i in range(len(scene.actors)) if f"the {_look(scene, i)}" in text]
    bare = [i for i, a in enumerate(scene.actors) if f"the {NOUN_NAMES[a.noun]}" in text]
    (one,) = full or bare
    return one


def _starts(scene: Scene, text: str) -> float:
    """When the one event that a sentence tells of starts."""
    fits = []
    for event in scene.events:
        action = ACTIONS[ACTION_INDEX[event.action]]
        actors = [event.actor] if event.other < 0 else [event.actor, event.other]
        names = [
            re.search(rf"the ({COLOUR_NAMES[scene.actors[a].colour]} )?"
                      rf"{NOUN_NAMES[scene.actors[a].noun]}\b", text)
            for a in actors
        ]  # fmt: skip
        if all(names) and re.search(rf"\b({action.third}|{action.plain})\b", text):
            fits.append(event.start)
    (start,) = fits
    return start


def test_when_and_why_names_what_ended_just_before(asked: list[tuple[Scene, Question]]) -> None:
    found = [(s, q) for s, q in asked if q.kind == "why"]
    assert len(found) > 20
    for scene, question in found:
        event = scene.events[question.event]
        cause = scene.events[event.cause]
        assert 0 < event.start - cause.end < 0.05 * scene.duration
        assert event.actor not in (cause.actor, cause.other)
        assert _look(scene, cause.actor) in question.answer


def test_highlights_and_captions_hold_every_event(asked: list[tuple[Scene, Question]]) -> None:
    several = 0
    for scene, question in asked:
        if question.kind == "caption":
            told = [(e.start, e.end) for e in sorted(scene.events, key=lambda e: e.start)]
            assert list(question.spans) == told
        if question.kind == "highlights":
            several += len(question.spans) > 1
            assert all(a[1] < b[0] for a, b in pairwise(question.spans))
    assert several > 20


def test_a_written_video_shows_what_was_rendered(short: list[Sample]) -> None:
    for index, sample in enumerate(short):
        scene = clip_scene("test", SEED, index)
        clip = load_video(sample.path, frames=12)
        assert clip.notes == ()
        assert clip.duration == pytest.approx(scene.duration, abs=1e-3)
        assert clip.seconds == pytest.approx(clip.indices / scene.fps, abs=1e-4)
        with av.open(str(sample.path)) as file:
            stream = file.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.pix_fmt == "yuv420p"
            assert stream.average_rate == Fraction(scene.fps).limit_denominator(1001)
            kinds = [packet.is_keyframe for packet in file.demux(stream) if packet.size]
        assert len(kinds) == scene.frame_count
        assert sum(kinds) >= scene.duration / 2.1
        painted = np.concatenate(list(scene_frames(scene)))
        assert painted.shape == (scene.frame_count, 128, 128, 3)
        error = np.abs(clip.frames.astype(int) - painted[clip.indices].astype(int))
        assert error.mean() < 9  # grain and thin colours are what x264 gives up
        other = np.abs(clip.frames.astype(int) - painted[clip.indices - 1].astype(int))
        assert other.mean() > error.mean()


def test_an_hour_is_rendered_a_few_frames_at_a_time() -> None:
    scene = max((clip_scene("long", 0, i) for i in range(20)), key=lambda s: s.duration)
    chunks = scene_frames(scene)
    assert [len(next(chunks)) for _ in range(2)] == [64, 64]


def test_files_that_are_there_are_used_again(data: Path, short: list[Sample]) -> None:
    before = [s.path.stat().st_mtime_ns for s in short]
    calls: list[tuple[int, int]] = []
    again = write_stage(data, "test", SEED, 2, progress=lambda *v: calls.append(v))
    assert [s.path.stat().st_mtime_ns for s in short] == before
    assert again == short
    assert calls == []
    assert write_stage(data, "test", SEED, 1) == short[:1]
    short[1].path.unlink()
    write_stage(data, "test", SEED, 2, progress=lambda *v: calls.append(v))
    assert calls == [(1, 1)]
    assert short[1].path.is_file()
    assert not list(short[0].path.parent.glob("*.part"))


def test_another_process_writes_the_same_bytes(tmp_path: Path, short: list[Sample]) -> None:
    many = write_stage(tmp_path, "test", SEED, 2, jobs=2)
    for one, other in zip(short, many, strict=True):
        assert one.questions == other.questions
        assert one.path.read_bytes() == other.path.read_bytes()


def test_a_foreign_or_damaged_folder_is_refused(tmp_path: Path, short: list[Sample]) -> None:
    home = tmp_path / short[0].path.parent.name
    home.mkdir()
    (home / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="no stage benchmark"):
        write_stage(tmp_path, "test", SEED, 2)
    (home / "holiday.mp4").unlink()
    source = short[0].path.parent
    for file in source.iterdir():
        (home / file.name).write_bytes(file.read_bytes())
    video = home / short[0].path.name
    video.write_bytes(video.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{video.name} is damaged"):
        write_stage(tmp_path, "test", SEED, 2)
    video.write_bytes(short[0].path.read_bytes())
    questions = home / "questions_test.jsonl"
    questions.write_text(questions.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(WorkError, match="damaged"):
        write_stage(tmp_path, "test", SEED, 2)
    stamp = json.loads((home / STAMP).read_text(encoding="utf-8"))
    (home / STAMP).write_text(json.dumps({**stamp, "version": 0}), encoding="utf-8")
    with pytest.raises(InputError, match="another version"):
        write_stage(tmp_path, "test", SEED, 2)
    (home / STAMP).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        write_stage(tmp_path, "test", SEED, 2)
    with pytest.raises(InputError, match="no folder can be made"):
        write_stage(video, "test", SEED, 2)


@pytest.mark.parametrize(("limit", "jobs"), [(0, 1), (1, 0), (100_001, 1)])
def test_wrong_counts_are_refused(tmp_path: Path, limit: int, jobs: int) -> None:
    with pytest.raises(InputError):
        write_stage(tmp_path, "test", 0, limit, jobs=jobs)


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vidllm" / "stage"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "vidllm" / "stage"


def lines(folder: Path, name: str) -> list[dict[str, object]]:
    text = (folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_annotations_parse_as_their_formats_say(short: list[Sample]) -> None:
    folder = short[0].path.parent
    lengths = {s.vid: s.duration for s in short}
    charades = (folder / "charades_sta_test.txt").read_text(encoding="utf-8").splitlines()
    assert len(charades) == sum(len(clip_scene("test", SEED, i).events) for i in range(2))
    for line in charades:
        head, sentence = line.split("##")
        vid, start, end = head.split()
        assert 0 <= float(start) < float(end) <= lengths[vid]
        assert re.fullmatch(r"the \w+ \w+ [\w ]+\.", sentence)
    captions = json.loads((folder / "activitynet_captions_test.json").read_text(encoding="utf-8"))
    assert set(captions) == set(lengths)
    for vid, row in captions.items():
        assert row["duration"] == pytest.approx(lengths[vid], abs=1e-3)
        assert len(row["timestamps"]) == len(row["sentences"])
        assert row["timestamps"] == sorted(row["timestamps"])
    for row in lines(folder, "qvhighlights_test.jsonl"):
        ids, windows = row["relevant_clip_ids"], row["relevant_windows"]
        assert len(ids) == len(row["saliency_scores"]) > 0
        for clip, scores in zip(ids, row["saliency_scores"], strict=True):
            assert any(s < 2 * clip + 2 and e > 2 * clip for s, e in windows)
            assert len(scores) == 3
            assert all(0 <= score <= 4 for score in scores)
    for row in lines(folder, "qa_test.jsonl"):
        assert row["options"]["ABCD".index(row["answer"])] == row["answer_text"]
    rows = lines(folder, "questions_test.jsonl")
    for sample in short:
        mine = [row for row in rows if row["vid"] == sample.vid]
        assert [row["id"] for row in mine] == [f"{sample.vid}-{k}" for k in range(len(mine))]
        truth = questions_of(clip_scene("test", SEED, short.index(sample)))
        assert [row["question"] for row in mine] == [tidy(q.text) for q in truth]
        assert [q.spans for q in sample.questions] == [q.spans for q in truth]
        assert [q.answer for q in sample.questions] == [q.answer for q in truth]
    assert not any(re.search(r"\s[?.,:]", str(row["question"])) for row in rows)


def test_a_television_rate_is_written_exactly(tmp_path: Path) -> None:
    scenes = (clip_scene("test-unseen", 0, i) for i in range(60))
    scene = min((s for s in scenes if s.fps % 1), key=lambda s: s.frame_count)
    write_video(tmp_path / "one.mp4", scene)
    assert [p.name for p in tmp_path.iterdir()] == ["one.mp4"]
    with av.open(str(tmp_path / "one.mp4")) as file:
        assert file.streams.video[0].average_rate == Fraction(30000, 1001)
    clip = load_video(tmp_path / "one.mp4", frames=9)
    assert clip.seconds == pytest.approx(clip.indices * 1001 / 30000, abs=1e-6)
    assert clip.duration == pytest.approx(scene.duration, abs=1e-6)
