"""The needle test: events exactly where asked, still clips, honest marks, and heat maps."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frozen import check_prompts

from vidllm.cli.options import CommonOptions
from vidllm.errors import InputError
from vidllm.eval.report import needle_map as maps
from vidllm.eval.run.evaluate import evaluate
from vidllm.eval.run.run_config import Order
from vidllm.eval.run.run_settings import Wanted
from vidllm.eval.tasks import Item, Response
from vidllm.eval.tasks.needle import Needle, action_in, depths, numbers, one_number, whole_number
from vidllm.eval.tasks.needle_clips import (
    FPS,
    HOLD,
    NEEDLES,
    Place,
    needle_answer,
    needle_questions,
    needle_scene,
    runs,
    write_needle,
)
from vidllm.stage import render as stage_render
from vidllm.stage.words import held_out
from vidllm.video import load_video

TINY = Needle(lengths=(0.2, 0.4), depths=(0, 50, 100), event=2.0)


def frames_of(scene: Any) -> list[np.ndarray]:
    return [picture for picture, times in runs(scene) for _ in range(times)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY.prepare(tmp_path_factory.mktemp("needle"), "test", seed=3)


@pytest.mark.parametrize("depth", [0.0, 12.5, 40.0, 100.0])
@pytest.mark.parametrize("action", ["spin", "recolour"])
def test_only_the_event_moves_and_it_is_where_it_was_asked(depth: float, action: str) -> None:
    scene = needle_scene(Place(0.5, depth, 0), 1, 3.0, action)
    event = scene.events[0]
    assert scene.duration == 30.0 and scene.frame_count == 30 * FPS
    assert event.start == pytest.approx(depth / 100 * 27) and event.end == event.start + 3.0
    pictures = frames_of(scene)
    assert len(pictures) == scene.frame_count
    block = round(HOLD * FPS)
    seconds = np.arange(len(pictures)) / FPS
    moved = np.zeros(len(pictures), dtype=bool)
    for first in range(0, len(pictures), block):
        here = range(first, min(first + block, len(pictures)))
        inside = [event.start <= seconds[k] < event.end for k in here]
        idle = next((k for k, acts in zip(here, inside, strict=True) if not acts), None)
        for k in here if idle is not None else ():
            moved[k] = not np.array_equal(pictures[k], pictures[idle])
    found = seconds[moved]
    assert len(found) >= 0.6 * 3.0 * FPS
    assert event.start <= found.min() <= event.start + 0.6  # a turn begins where it stood
    assert event.end - 0.8 <= found.max() < event.end


def test_the_file_shows_the_same(tmp_path: Path) -> None:
    scene = needle_scene(Place(0.5, 50, 0), 0, 4.0, "grow")
    write_needle(tmp_path / "a.mp4", scene)
    clip = load_video(tmp_path / "a.mp4", fps=FPS)
    assert len(clip) == scene.frame_count and clip.duration == pytest.approx(30, abs=0.01)
    assert clip.seconds.tolist() == pytest.approx((np.arange(120) / FPS).tolist(), abs=1e-6)
    drawn = np.stack(frames_of(scene)).astype(float)
    assert np.abs(clip.frames - drawn).mean() < 6  # of 255: what the codec costs
    still = np.abs(np.diff(clip.frames.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert np.median(still) < 0.5
    write_needle(tmp_path / "b.mp4", scene)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.mp4", "b.mp4"]


def test_scenes_follow_from_the_seed_alone() -> None:
    place = Place(1, 25, 0)
    assert needle_scene(place, 0, 6, "jump") == needle_scene(place, 0, 6, "jump")
    others = [(Place(1, 25, 1), 0), (Place(2, 25, 0), 0), (Place(1, 26, 0), 0), (place, 1)]
    seeds = {needle_scene(p, s, 6, "jump").seed for p, s in [(place, 0), *others]}
    assert len(seeds) == 5 and min(seeds) > 10**11  # never one of the split "long" itself
    for number, action in itertools.product(range(8), NEEDLES):
        scene = needle_scene(Place(1, 50, number), 0, 6, action)
        event, actor = scene.events[0], scene.actors[scene.events[0].actor]
        assert len(scene.events) == 1 and not any(a.hidden for a in scene.actors)
        assert not held_out(actor.noun, actor.colour, action)
        assert event.rate * 6 >= 2.5 and (event.colour >= 0) == (action == "recolour")


def test_an_hour_is_painted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[int] = []
    whole = stage_render.render

    def spy(state: Any, *rest: Any, **more: Any) -> Any:
        painted.append(len(state))
        return whole(state, *rest, **more)

    monkeypatch.setattr(stage_render, "render", spy)
    scene = needle_scene(Place(60, 50, 0), 0, 6.0, "spin")
    stream = runs(scene)
    next(stream)
    assert painted == [1]  # nothing is painted ahead
    total = 1 + sum(1 for _ in itertools.islice(stream, 399))
    assert total == 400 and max(painted) <= HOLD * FPS
    assert sum(painted) < 1.1 * (400 + HOLD * FPS)


@pytest.mark.parametrize(
    ("text", "values"),
    [("9", 9), ("1", (50.0,)), ("2", (0.0, 100.0)), ("0,12.5", (0.0, 12.5)), ("12.5", (12.5,))],
)
def test_depths_are_read(text: str, values: Any) -> None:
    if values == 9:
        values = tuple(12.5 * k for k in range(9))
        assert Needle().depths == values
    assert depths(text) == values


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lengths": ()}, "--lengths"),
        ({"lengths": (1, 1)}, "different"),
        ({"lengths": (math.inf,)}, "--lengths"),
        ({"depths": (101,)}, "between 0 and 100"),
        ({"clips": 0}, "--clips"),
        ({"event": 0}, "--event"),
        ({"lengths": (0.1,), "event": 4}, "half of the shortest"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Needle(**options)
    for read, text in (
        (numbers, "1,x"),
        (one_number, "1,2"),
        (whole_number, "1.5"),
        (whole_number, "inf"),
    ):
        with pytest.raises(InputError, match=r"no list of numbers|is wanted"):
            read(text)  # type: ignore[operator]
    with pytest.raises(InputError, match="a needle does one of"):
        needle_scene(Place(1, 0, 0), 0, 6, "leave")


def test_actions_take_turns() -> None:
    places = Needle(clips=2).places()
    assert len(places) == 6 * 9 * 2 == len({place.vid for place, _ in places})
    for name in ("minutes", "depth"):
        for value in {getattr(place, name) for place, _ in places}:
            here = [action for place, action in places if getattr(place, name) == value]
            counts = [here.count(action) for action in NEEDLES]
            assert max(counts) - min(counts) <= 2


def test_items_are_what_was_written(home: Path) -> None:
    items = TINY.items(home, "test")
    check_prompts("needle", "test", items)
    assert len(items) == 12 == len({item.id for item in items})
    for item in items:
        assert (home / "videos" / item.video).is_file() and item.duration in (12.0, 24.0)
        assert json.loads(json.dumps(item.as_dict())) == json.loads(
            json.dumps(Item.from_dict(item.as_dict()).as_dict())
        )
    middle = next(i for i in items if i.groups == {"length": "0.4 min", "depth": "50 %"})
    assert middle.truth == [11.0, 13.0] and middle.prompt.startswith("when does the ")
    place, action = TINY.places()[4]
    scene = needle_scene(place, 3, 2.0, action)
    assert needle_questions(scene) == (items[8].prompt, items[9].prompt)
    assert items[9].truth == needle_answer(scene) and items[9].prompt.startswith("what does the ")


def test_clips_are_made_once_and_as_many_as_wanted(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def prepare(**options: Any) -> Path:
        told.clear()
        given = {"seed": 0, "progress": lambda *done: told.append(done), **options}
        return TINY.prepare(tmp_path, "test", **given)

    home = prepare(limit=1)
    assert len(list(home.glob("videos/*"))) == 1 and told == [(1, 1)]
    lines = (home / "needle.jsonl").read_bytes()
    assert prepare(limit=4, jobs=2) == home and told == [(1, 3), (2, 3), (3, 3)]
    assert prepare(limit=4) == home and told == [] and (home / "needle.jsonl").read_bytes() == lines
    assert prepare(seed=1, limit=1) != home
    again = Needle(lengths=(0.2, 0.4), depths=(0, 100), event=2.0)
    assert again.prepare(tmp_path, "test", seed=0, limit=1) != home
    for wrong in ({"seed": -1}, {"limit": 0}, {"jobs": 0}):
        with pytest.raises(InputError, match="--seed must be 0"):
            prepare(**wrong)


def test_damaged_files_are_named(tmp_path: Path, home: Path) -> None:
    with pytest.raises(InputError, match=r"needle\.jsonl is missing"):
        TINY.items(tmp_path, "test")
    good = (home / "needle.jsonl").read_text().splitlines()
    row = json.loads(good[1])
    del row["span"]
    for text, line in ((json.dumps(row), "line 2 lacks 'span'"), ("{", "line 2 is damaged")):
        (tmp_path / "needle.jsonl").write_text(f"{good[0]}\n{text}\n")
        with pytest.raises(InputError, match=line):
            TINY.items(tmp_path, "test")


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("spins", "spins"),
        ("The red star is rotating.", "spins"),
        ("It turns around twice", "spins"),
        ("it turns blue", "changes colour"),
        ("The star changes its color to another color", "changes colour"),
        ("becomes larger and then smaller", "grows"),
        ("It hops", "jumps"),
        ("It flickers on and off", "blinks"),
        ("meets the white phone", "meets"),
        ("spins and jumps", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_actions_are_read(text: str, action: str | None) -> None:
    assert action_in(text) == action


def test_hits_and_scores(home: Path) -> None:
    items = TINY.items(home, "test")

    def right(item: Item) -> Response:
        if item.kind == "what":
            return Response(text=item.truth)
        return Response(text="from …", spans=(tuple(item.truth),))

    perfect = TINY.scores(items, [right(item) for item in items])
    assert perfect.pop("parse_failures") == 0 and set(perfect.values()) == {1.0}
    for nothing in (Response(error="no file"), Response(text="I cannot say")):
        scores = TINY.scores(items, [nothing] * len(items))
        assert scores.pop("parse_failures") == 1 and set(scores.values()) == {0.0}
    mixed = [right(i) if i.groups["depth"] == "50 %" else Response() for i in items]
    scores = TINY.scores(items, mixed)
    assert scores["hit_rate"] == pytest.approx(1 / 3) and scores["hit_rate/50 %"] == 1
    assert scores["hit_rate/0.2 min"] == pytest.approx(1 / 3) and scores["hit_rate/0 %"] == 0
    values = [TINY.value(i, r) for i, r in zip(items, mixed, strict=True)]
    assert scores["hit_rate"] == pytest.approx(np.mean(values))
    when = items[0]
    start, end = when.truth
    for span, hit in (((start, end + 4.6), 1.0), ((start, end + 4.8), 0.0), ((end, end), 0.0)):
        assert TINY.value(when, Response(spans=(span,))) == hit
    near = [Response(spans=((end, end + 2.0),)), *[Response()] * (len(items) - 1)]
    scores = TINY.scores(items, near)
    assert scores["when"] == 0 and scores["near"] == pytest.approx(1 / 6)


def test_sampled_frames_show_the_event_or_do_not() -> None:
    assert maps.shows((27, 33), 60, 9) and maps.shows((27, 33), 60, 1)
    assert not maps.shows((0, 6), 60, 4) and maps.shows((0, 8), 60, 4)  # centres 7.5, 22.5, …
    assert maps.shows((0, 6), 60, 2, fps=1 / 30) and not maps.shows((31, 36), 60, 2, fps=1 / 30)
    assert maps.shows((0, 0.2), 60, 240) and not maps.shows((0.05, 0.2), 60, 240)


def test_a_run_ends_in_heat_maps(home: Path, tmp_path: Path) -> None:
    order = Order(
        task=TINY,
        wanted=Wanted((("uniform", 0.5),)),
        data=home.parent,
        out=tmp_path,
    )
    options = CommonOptions(frames=4, device="cpu", seed=3, json=True)
    done = evaluate(order, options)
    assert done is not None
    found = done.results["results"]
    assert list(found) == ["none@1", "uniform@0.5"]
    made = TINY.finish(tmp_path)
    assert [path.name for path in made] == ["needle.png", "needle.md"]
    assert made[0].read_bytes()[:4] == b"\x89PNG"
    before = [path.read_bytes() for path in made]
    assert maps.main([str(tmp_path)]) == 0 and [path.read_bytes() for path in made] == before
    rows = maps.read_rows(tmp_path)
    grids = maps.grids(rows)
    assert [(g.setting, g.kind) for g in grids] == [
        (setting, kind) for setting in found for kind in ("when", "what")
    ]
    rate = found["none@1"]["scores"]["hit_rate"]
    assert np.mean([g.rate.mean() for g in grids[:2]]) == pytest.approx(rate)
    for grid in grids:
        assert grid.depths == ("0 %", "50 %", "100 %") and grid.lengths == ("0.2 min", "0.4 min")
        assert (grid.count == 1).all()
        # Four frames of 24 s, at 3, 9, 15 and 21 s: none before 2, of 11 to 13 or after 22.
        assert grid.unseen[:, 1].all() and not grid.unseen[:, 0].all()
    text = (tmp_path / "needle.md").read_text()
    assert "**uniform 50 % · what**" in text and "| depth | 0.2 min | 0.4 min |" in text
    assert " ×" in text and "1 clip a cell" in text


def test_a_folder_without_a_needle_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert maps.main([str(tmp_path)]) == 2 and "holds no run.json" in capsys.readouterr().err
    config = {"format": 1, "task": "needle", "items": 1, "seed": 0}
    config["settings"] = [{"label": "none@1"}]
    (tmp_path / "run.json").write_text(json.dumps(config))
    assert maps.main([str(tmp_path)]) == 2 and "has no answers yet" in capsys.readouterr().err
    (tmp_path / "answers.jsonl").write_text("[1]\n")
    assert maps.main([str(tmp_path)]) == 2 and "is damaged" in capsys.readouterr().err
    with pytest.raises(InputError, match="'groups' is missing"):
        maps.grids([{"setting": "none@1", "kind": "ground"}])
    assert maps.main([]) == 2 and maps.main(["--help"]) == 0
    with pytest.raises(InputError, match="no answers of the needle test"):
        maps.grids([])
