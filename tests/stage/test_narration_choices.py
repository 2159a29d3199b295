"""Narrations and hard options of the made world, and how questions to heads are read."""

from __future__ import annotations

import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.models.heads.asked import choice_asked, moment_asked
from vidllm.models.heads.option_chooser import statement
from vidllm.recipes.courses.alignment import narrated_seconds
from vidllm.stage.choices import choice_questions
from vidllm.stage.narration import joined, narrated_clip, narration_of
from vidllm.stage.questions import Asker
from vidllm.stage.scenes import make_scene


def test_a_narration_tells_every_event_once_and_in_its_order() -> None:
    for seed in range(20):
        scene = make_scene("train", seed, 2)
        told = narration_of(scene)
        assert told == narration_of(scene)
        assert sorted(told.windows) == sorted((e.start, e.end) for e in scene.events)
        assert [w[0] for w in told.windows] == sorted(w[0] for w in told.windows)
        assert len(set(told.sentences)) == len(told.sentences)
        drawn = narration_of(scene, np.random.default_rng(seed))
        assert drawn.windows == told.windows and drawn.events == told.events


def test_chapters_follow_each_other_and_no_sentence_fits_two() -> None:
    clip = narrated_clip("test", 3, 1, chapters=4)
    assert clip.starts[0] == 0 and clip.duration == sum(s.duration for s in clip.scenes)
    told = clip.narration()
    assert len(set(told.sentences)) == len(told.sentences)
    assert all(0 <= start < end <= clip.duration for start, end in told.windows)
    twice = joined([narration_of(clip.scenes[0])] * 2)
    assert twice.sentences == ()
    other = narrated_clip("test", 3, 2, chapters=4)
    assert not {s.seed for s in clip.scenes} & {s.seed for s in other.scenes}
    with pytest.raises(InputError, match="at least 1 chapter"):
        narrated_clip("test", 3, 0, chapters=0)


def test_training_reads_the_seconds_that_a_file_is_read_at() -> None:
    scene = make_scene("train", 5)
    seconds = narrated_seconds(scene)
    assert len(seconds) == int(np.ceil(scene.duration))
    assert np.abs(seconds - np.arange(len(seconds))).max() <= 1 / scene.fps


def test_hard_options_hold_the_answer_once_and_what_is_true_elsewhere() -> None:
    near = total = 0
    for seed in range(30):
        scene = make_scene("train", seed, 2)
        verbs = {Asker(scene, scene.rng(1)).plain_sentence(i) for i in range(len(scene.events))}
        for question in choice_questions(scene):
            options = question.options
            assert options.count(question.answer) == 1 and len(set(options)) == len(options)
            assert len(options) == (2 if question.kind in ("before", "whether") else 4)
            if question.kind in ("first", "last"):
                near += sum(option in verbs for option in options) > 2
                total += 1
    assert near > 0.8 * total
    scene = make_scene("train", 1, 2)
    assert choice_questions(scene) == choice_questions(scene)


@pytest.mark.parametrize(
    ("question", "option", "said"),
    [
        ("what does the red star do ?", "spins", "the red star spins"),
        ("what does the star do after it jumps ?", "spins", "after the star jumps it spins"),
        ("Which object spins?", "the red star", "the red star spins"),
        ("what colour is the star that spins ?", "red", "the red star spins"),
        ("how many times does the star spin ?", "2", "2 times the star spin"),
        ("what happens first ?", "the star spins", "first the star spins"),
        ("where does the star spin ?", "top left", "the star spin top left"),
        ("does the star spin ?", "yes", "does the star spin yes"),
    ],
)
def test_an_option_becomes_a_statement(question: str, option: str, said: str) -> None:
    assert statement(question, option) == said


def test_questions_for_a_time_are_told_from_others() -> None:
    plain = moment_asked("when does the star spin ?", "nasva")
    assert plain.sentence == "when does the star spin ?" and not plain.one_second
    quoted = moment_asked("At which second does it show 'the star spins'? Answer …", "nasva")
    assert quoted == ("the star spins", True)
    assert moment_asked("the star spins", "nasva").sentence == "the star spins"
    for other in ("what does the star do ?", "How many stars spin?", "is there a star"):
        with pytest.raises(InputError, match="nasva says when something happens"):
            moment_asked(other, "nasva")


def test_options_are_read_on_lines_and_in_one() -> None:
    lines = "what spins?\nA. the star\nB. the hand\nAnswer with the option's letter directly."
    for text in (
        lines,
        "what spins? A. the star B. the hand",
        "what spins? (A) the star (B) the hand",
    ):
        found = choice_asked(text)
        assert (found.question, found.letters) == ("what spins?", ("A", "B"))
        assert found.options == ("the star", "the hand")
    assert choice_asked("what spins ?").options == ()
    assert choice_asked("what spins ? B. the star").options == ()
