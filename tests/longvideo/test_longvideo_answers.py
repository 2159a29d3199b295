"""Answers from an index: they repeat, they leave it alone, and the votes behind them are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from long_tiny import ASKED, FPS, indexed, loud
from tiny import hub_model
from tower_watch import lengths
from videos import write_video

from vidllm import Answer, InputError, Limits, VideoIndex, VideoLLM
from vidllm.encoders.vision import HubTower
from vidllm.longvideo import answering, scan
from vidllm.longvideo.answering import Reader, asks_for_time
from vidllm.longvideo.build import native_engine
from vidllm.longvideo.choosing import Vote, elected, grouped, middle, tiou
from vidllm.longvideo.scan import WindowAnswer, expected_iou
from vidllm.longvideo.windows import Cuts, Level, nearest
from vidllm.models.question import prompt_ids
from vidllm.timecode.clock import clock

QUERY = "the red star spins"


@pytest.fixture(scope="module", params=["windows", "carried"])
def llm(request: pytest.FixtureRequest) -> VideoLLM:
    return loud(streaming=request.param == "carried")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two and a half minutes: two levels of windows."""
    return write_video(tmp_path_factory.mktemp("v") / "long.mp4", 300, fps=2, size=(64, 48))


@pytest.fixture(scope="module")
def index(llm: VideoLLM, video: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return indexed(llm, video, tmp_path_factory.mktemp("i") / "long.vidx", fps=2.0)


def plain(answer: Answer) -> Answer:
    """What does not depend on the clock."""
    return replace(answer, receipt=replace(answer.receipt, seconds={}))


def test_an_index_answers_as_the_clip_that_it_is(llm: VideoLLM, tmp_path: Path) -> None:
    """A video as long as one window and its frames: the very tokens of `VideoLLM.encode`."""
    video = write_video(tmp_path / "short.mp4", 16, fps=1, size=(64, 48))
    index = indexed(llm, video, tmp_path / "short.vidx", fps=1.0, near=0.0)
    clip = llm.sample(video, fps=1.0)
    tokens, _ = native_engine(llm).tokens(clip)
    kept = llm.compressor.before_decoder(tokens)[0]
    assert torch.allclose(index.tensor("features.0")[0], kept.features, atol=1e-5)
    assert torch.allclose(index.tensor("span.0")[0], kept.span.float(), atol=1e-5)
    assert index.tensor("position.0")[0].tolist() == kept.position.tolist()
    answer = llm.ask(clip, ASKED, max_new_tokens=48)
    ((vote, said),) = index.reader._scan(*prompt_ids(llm.tokenizer, ASKED), timed=False)
    assert str(llm.tokenizer.decode(said.ids)).strip() == answer.raw
    if vote.score > 0 and answer.spans:
        # The time code rounds to hundredths.
        assert vote.span == pytest.approx((answer.spans[0].start, answer.spans[0].end), abs=0.006)


def test_the_next_question_starts_clean(
    llm: VideoLLM, index: VideoIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = index.path.read_bytes()
    questions = (ASKED, "what happens first?", "how many times does the star jump?")
    fresh = [plain(Reader(index, index.engine).ask(question)) for question in questions]
    held = Reader(index, index.engine)
    for _ in range(2):  # the second time from kept caches
        assert [plain(held.ask(question)) for question in questions] == fresh
        assert plain(held.ground(llm.words("ground", QUERY))) == plain(index.ground_answer(QUERY))
    kept = [b for batches in held._kept.values() for b in batches]
    assert kept and all(b.bytes() > 0 for b in kept)
    sizes = [b.bytes() for b in kept]
    held.ask("why does the blue star jump?")
    assert [b.bytes() for b in kept] == sizes
    monkeypatch.setattr(answering, "KEPT_BYTES", 0)
    bare = Reader(index, index.engine)
    assert [plain(bare.ask(question)) for question in questions] == fresh
    assert not bare._kept
    loaded = VideoIndex.load(index.save(tmp_path / "copies" / "copy.vidx"), llm)
    assert loaded.path.read_bytes() == before == index.path.read_bytes()
    assert [plain(loaded.ask(question)) for question in questions] == fresh
    assert index.save(index.path) == index.path


def test_a_question_that_is_broken_off_leaves_no_trace(
    llm: VideoLLM, index: VideoIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Reader(index, index.engine)
    want = plain(held.ask(ASKED))

    def stop(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan.DynamicCache, "crop", stop)
        with pytest.raises(KeyboardInterrupt):
            held.ask("what happens first?")
    assert plain(held.ask(ASKED)) == want


def test_the_compressor_of_the_model_does_not_matter(llm: VideoLLM, index: VideoIndex) -> None:
    other = VideoLLM(llm.model, llm.tokenizer, compressor="uniform", keep=0.5)
    found = VideoIndex.load(index.path, other)
    assert plain(found.ground_answer(QUERY)) == plain(index.ground_answer(QUERY))


def test_answers_say_what_was_looked_at(llm: VideoLLM, index: VideoIndex) -> None:
    answer = index.ground_answer(QUERY)
    assert answer.notes[0] == (
        "looked at 2 windows of 2:00 (16 tokens each) and 4 windows of 1:00 (16 tokens each)"
    )
    assert answer.notes[1].startswith("then closely at 0:") and not answer.failed
    assert answer.text.startswith(f"from {answer.spans[0].start:.1f} s to")
    assert answer.spans == tuple(index.ground(QUERY))
    scores = [span.score for span in answer.spans]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1 + 1e-9
    assert all(0 <= span.start <= span.end <= 150 for span in answer.spans)
    assert answer.receipt.frames == 300 and answer.receipt.tokens_full == 1200
    looks = answer.receipt.tokens_kept - 6 * 16  # within the budget: five looks of 16 tokens
    assert 0 < looks <= 5 * 16 and looks % 16 == 0
    assert set(answer.receipt.seconds) == {"scan", "look"}


def test_captions_of_a_stretch(index: VideoIndex) -> None:
    told = index.caption(20.0, 50.0)
    assert told.notes[-1] == "looked at 1 piece of 30 s"
    assert all(20 <= span.start <= span.end <= 50 for span in told.spans)
    for start, end in ((50, 20), (20, 20), (-1, 5), (150, 160), (0, 152), (float("nan"), 9)):
        with pytest.raises(InputError, match="start and end must lie in the 2:30"):
            index.caption(start, end)
    for call in (index.ask, index.ground):
        with pytest.raises(InputError, match="empty"):
            call("  ")


def test_points_in_time_are_looked_at_too(
    llm: VideoLLM, index: VideoIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows whose spans have no length: a question without a time still has a clip to see."""
    usual = Reader.vote
    monkeypatch.setattr(
        Reader, "vote", lambda *a: Vote((150.0, 150.0), usual(*a).score) if a[1] else usual(*a)
    )
    head, tail = prompt_ids(llm.tokenizer, ASKED)
    reader = Reader(index, index.engine)
    said = reader._scan(head, tail, timed=False)
    answer = reader._told(ASKED, head, tail, said, answering.Stopwatch())
    assert answer.text and "then again at" in answer.notes[1]


def test_expected_iou_is_the_mean_over_what_the_model_holds_for_possible() -> None:
    draw = torch.Generator().manual_seed(3)
    law = 0.9 * torch.softmax(torch.randn(2, 12, generator=draw), -1)  # the rest is other words
    for start, end in ((3, 8), (0, 11), (5, 5), (8, 3)):
        low, high = min(start, end), max(start, end)
        mean = sum(
            float(law[0, i] * law[1, j]) * tiou((low, high), (i, j))
            for i in range(12)
            for j in range(i, 12)
        )
        assert expected_iou((start, end), [law[0], law[1]]) == pytest.approx(mean, abs=1e-6)
    sure = torch.eye(12)
    assert expected_iou((3, 8), [sure[3], sure[8]]) == pytest.approx(1.0)
    assert expected_iou((3, 8), [sure[9], sure[11]]) == 0.0


def test_cuts_lead_back_to_the_video() -> None:
    cuts = Cuts.around([(50.0, 60.0), (10.0, 20.0), (58.0, 70.0)], 5.0, 72.0)
    assert cuts.pieces == ((5.0, 25.0), (45.0, 72.0))
    assert cuts.edges.tolist() == [0.0, 20.0, 47.0] and cuts.length == 47.0
    moments, piece = cuts.moments(94)
    joined = cuts.joined(moments, piece)
    assert joined == pytest.approx((np.arange(94) + 0.5) / 2)
    for at, moment, number in zip(joined.tolist(), moments.tolist(), piece.tolist(), strict=True):
        assert cuts.back(at, at) == pytest.approx((moment, moment))
        assert cuts.piece_of(at, at) == number
    assert cuts.back(0.0, 20.0) == (5.0, 25.0) and cuts.back(20.0, 47.0) == (45.0, 72.0)
    assert cuts.back(15.0, 30.0) == (45.0, 55.0)  # its middle is in the second piece
    assert cuts.back(-3.0, 99.0) == (45.0, 72.0)
    outside = cuts.joined(np.array([0.0, 99.0]), np.array([0, 1]))
    assert outside.tolist() == [0.0, 47.0]
    assert Cuts.around([(30.0, 30.0)], 0.0, 72.0).pieces == ((29.5, 30.5),)
    assert Cuts.around([(72.0, 72.0)], 0.0, 72.0).length == 0.5


def test_windows_cover_the_video_and_end_with_it() -> None:
    for duration in (0.04, 59.0, 120.0, 121.0, 1000.0):
        level = Level(120.0, 64)
        starts, length = level.starts(duration), level.length(duration)
        assert starts[0] == 0 and starts[-1] + length == pytest.approx(duration)
        assert np.all(np.diff(starts) <= 60 + 1e-9)
    even = np.array([0.0, 1.0, 2.0])
    assert nearest(even, np.array([-1.0, 0.4, 0.6, 9.0])).tolist() == [0, 0, 1, 2]
    assert nearest(even, np.array([0.6]), 0.2).tolist() == [0]
    assert nearest(even[:1], np.array([0.0, 5.0])).tolist() == [0, 0]
    assert [clock(x) for x in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]


def test_a_few_windows_that_name_a_time_make_it_a_question_for_one() -> None:
    broken, timed = WindowAnswer([1, 2], 0.4, None, 0.0), WindowAnswer([1, 5, 7], 0.4, (5, 7), 0.3)
    assert asks_for_time([timed] * 15 + [broken] * 34)  # most windows do not show the event
    assert not asks_for_time([broken] * 49) and not asks_for_time([])
    assert not asks_for_time([replace(timed, score=0.0)] * 49)  # the model believes none


def test_votes_that_agree_win() -> None:
    votes = [Vote((10, 20), 0.5), Vote((11, 21), 0.55), Vote((50, 52), 0.7)]
    assert [group.span for group in grouped(votes)] == [(11, 21), (50, 52)]
    assert grouped(votes)[0].score == pytest.approx(0.5**2 + 0.55**2)
    won = elected(votes)
    assert won[0].span == middle(votes[:2]) == (11, 21) and won[1].span == (50, 52)
    assert sum(v.score for v in won) == pytest.approx(1.0)
    assert elected([]) == grouped([]) == []
    assert [v.span for v in elected([Vote((3, 3), 0.0)])] == [(3, 3)]


def test_an_election_is_what_its_words_say() -> None:
    """Against the plain way: again and again the vote with most support, vote by vote."""
    draw = np.random.default_rng(0)
    for trial in range(40):
        starts = draw.uniform(0, 300, int(draw.integers(1, 30)))
        ends = starts + draw.integers(0, 60, len(starts))
        score = draw.uniform(0.01, 1, len(starts))
        votes = [Vote((float(a), float(b)), float(s))
                 for a, b, s in zip(starts, ends, score, strict=True)]  # fmt: skip
        left, want = list(votes), []
        while left:
            sides = [[o for o in left if o is v or tiou(v.span, o.span) >= 0.3] for v in left]
            best = max(sides, key=lambda side: sum(v.score for v in side))
            span = middle(best)
            want.append((span, sum(v.score for v in best) / float(score.sum())))
            left = [v for v in left if v not in best and tiou(v.span, span) <= 0]
        found = elected(votes)
        assert [v.span for v in found] == [span for span, _ in want], trial
        assert [v.score for v in found] == pytest.approx([share for _, share in want])


def test_rates_and_numbers_that_make_no_sense(video: Path, tmp_path: Path) -> None:
    llm = loud()
    for words, options in {
        "fps": {"fps": 0.0},
        "near": {"near": -1.0},
        "precision": {"precision": "int8"},
        "reader": {"fps": FPS, "reader": "vlc"},
        "max_seconds": {"limits": Limits(max_seconds=5)},
        "max_pixels": {"limits": Limits(max_pixels=5)},
    }.items():
        with pytest.raises(InputError, match=words):
            llm.index(video, tmp_path / "x.vidx", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_tokens_merge_inside_the_tower_and_the_index_keeps_its_size(
    video: Path, tmp_path: Path
) -> None:
    model = hub_model("clip")
    llm = VideoLLM(model, loud().tokenizer, compressor="temporal-pool", keep=0.25)
    tower = cast(HubTower, model.vision)
    with lengths(tower) as whole_rows:
        plain = indexed(llm, video, tmp_path / "plain.vidx")
    with lengths(tower) as rows:
        merged = indexed(llm, video, tmp_path / "merged.vidx", tower="tome:keep=0.5")
    assert rows[:2] == [272, 208]  # of a trial before anything is read; a picture has 17 tokens
    assert len(rows[2:]) == len(whole_rows) and sum(rows[2:]) < 0.95 * sum(whole_rows)
    one, two = plain.tensor("tokens"), merged.tensor("tokens")
    assert one.shape == two.shape and not torch.equal(one, two)
    cells = one.shape[1]
    distinct = [len(torch.unique(frame, dim=0)) for frame in two]
    assert max(distinct) <= -(-cells // 2) and merged.facts["tower"] == "tome:keep=0.5"
    whole = indexed(llm, video, tmp_path / "whole.vidx", tower="tome:keep=0.5", chunk=3)
    assert torch.equal(whole.tensor("tokens"), two)
    assert merged.ask(ASKED).spans == whole.ask(ASKED).spans
    with pytest.raises(InputError, match="does not merge inside this vision tower"):
        indexed(loud(), video, tmp_path / "conv.vidx", tower="tome:keep=0.5")
    with pytest.raises(InputError, match=r"tower tome:keep=0\.5, not none"):
        indexed(llm, video, tmp_path / "merged.vidx")
    for spec, words in {
        "temporal-pool:keep=0.5": "temporal-pool does not merge inside",
        "tome": "tome does not merge inside",
        "tomme": "did you mean tome",
    }.items():
        with pytest.raises(InputError, match=words):
            indexed(llm, video, tmp_path / "none.vidx", tower=spec)
    assert not (tmp_path / "none.vidx").exists()
