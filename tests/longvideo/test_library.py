"""A folder of indexed videos: added, listed, searched and taken out, by several at a time."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from long_tiny import in_child, indexed, loud
from pages import run_page
from videos import write_video

from vidllm import InputError, VideoIndex, VideoLibrary, VideoLLM, WorkError
from vidllm.longvideo import many
from vidllm.longvideo.answering import Reader
from vidllm.longvideo.build import native_engine
from vidllm.longvideo.catalogue import SCHEMA
from vidllm.longvideo.choosing import Vote
from vidllm.longvideo.fitting import Fitting, statement
from vidllm.longvideo.many import Many, _Votes
from vidllm.longvideo.marks import model_mark
from vidllm.models.question import PROMPTS, prompt_ids

QUERY = "the red star spins"
PLAN = {"fps": 1.0, "precision": "float32"}


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return loud()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty, from 4 to 23 seconds long; frames that no other one has."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_video(folder / f"v{k:02d}.mp4", 4 + k, fps=1, size=(64, 48), noise=1.0 + k)
        for k in range(20)
    ]


@pytest.fixture(scope="module")
def made(llm: VideoLLM, videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of all; tests that change it take a copy."""
    library = VideoLibrary(tmp_path_factory.mktemp("made") / "library", llm)
    for video in videos:
        assert library.add(video, **PLAN).problem is None
    return library.folder


@pytest.fixture
def library(llm: VideoLLM, made: Path, tmp_path: Path) -> VideoLibrary:
    shutil.copytree(made, tmp_path / "library", copy_function=shutil.copy2)
    return VideoLibrary(tmp_path / "library", llm)


def test_the_page_runs(
    llm: VideoLLM, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(videos[-1], tmp_path / "match.mp4")
    monkeypatch.chdir(tmp_path)
    swaps = {
        "VideoLLM.from_pretrained()": "llm",
        'VideoLibrary("footage")': 'VideoLibrary("footage", llm)',
        "caption(600, 720)": "caption(6, 12)",
    }
    names = run_page("docs/long-video.md", {"llm": llm}, swaps)
    assert [entry.name for entry in names["library"].list()] == ["match"]


def test_what_was_added_is_listed_and_searched(
    llm: VideoLLM, library: VideoLibrary, videos: list[Path]
) -> None:
    entries = library.list()
    assert [entry.name for entry in entries] == [video.stem for video in videos]
    assert [entry.video for entry in entries] == [str(video) for video in videos]
    assert [entry.duration for entry in entries] == pytest.approx([4.0 + k for k in range(20)])
    assert all(entry.complete and entry.problem is None for entry in entries)
    hits = library.ground(QUERY, limit=7)
    assert len(hits) == 7 and hits.notes == ()
    scores = [hit.span.score for hit in hits]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0 and max(scores) <= 1
    ends = {entry.name: entry.duration for entry in entries}
    for hit in hits:
        assert 0 <= hit.span.start <= hit.span.end <= ends[hit.name] + 1e-6
        assert Path(hit.index).name == f"{hit.name}.vidx" and hit.video.endswith(f"{hit.name}.mp4")
        picture = library.thumbnail(hit)
        assert hit.thumbnail is not None and picture is not None and picture[:2] == b"\xff\xd8"
    assert library.ground(QUERY, limit=7) == hits  # from kept caches
    assert VideoLibrary(library.folder, llm).ground(QUERY, limit=7) == hits
    assert library.ground(QUERY, limit=3)[0].as_dict()["score"] == round(hits[0].span.score, 4)
    one = library.open(hits[0].name)
    assert one.ground(QUERY) == VideoIndex.load(hits[0].index, llm).ground(QUERY)


def test_windows_of_many_files_in_one_batch_say_what_each_says_alone(
    llm: VideoLLM, made: Path
) -> None:
    readers = [
        Reader(VideoIndex.load(file, llm), native_engine(llm))
        for file in sorted(made.glob("*.vidx"))
    ]
    together = Many(readers, readers[0].model)
    head, tail = prompt_ids(llm.tokenizer, llm.words("ground", QUERY))
    told: dict[int, list[Vote]] = {}
    rows = 0
    for batch, windows in together._first():
        rows = max(rows, len(windows))
        said = many.ask_batch(llm.model, batch, head, tail, llm.tokenizer)
        for window, one in zip(windows, said, strict=True):
            vote = readers[0].vote(window.start, window.length, one)
            told.setdefault(window.reader, []).append(vote)
            # As the reader of all answers takes it, which rounds to hundredths.
            raw = str(llm.tokenizer.decode(one.ids))
            found = native_engine(llm).code.find(raw, window.length)
            assert (one.times is None) == (not found)
            if found:
                start, end = (t - window.start for t in vote.span)
                assert (start, end) == pytest.approx(found[0].span[:2], abs=0.006)
    assert rows >= 4  # from 16 seconds on all have sixteen frames
    for number, reader in enumerate(readers):
        alone = [vote for vote, _ in reader._scan(head, tail)]
        assert [v.span for v in told[number]] == [v.span for v in alone]
        assert [v.score for v in told[number]] == pytest.approx([v.score for v in alone], abs=1e-4)


def test_spans_are_ranked_by_the_best_fit_of_the_votes_behind_them() -> None:
    heard = _Votes([Vote((10, 20), 0.8), Vote((11, 20), 0.6), Vote((70, 75), 0.9)], [0.2, 0.5, 0.4])
    assert [(vote.span, vote.score) for vote in heard.spans()] == [((10, 20), 0.5), ((70, 75), 0.4)]
    assert _Votes().spans() == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("the red star spins", "the red star spins"),
        ("The red star spins.", "The red star spins"),
        ("when does the red star spin?", "the red star spin"),
        ("At what time does the star spin?", "the star spin"),
        ("find the moment when the star spins .", "the star spins"),
        ("Locate the event: the star spins", "the star spins"),
        ("show every moment when the star spins", "the star spins"),
        ("when", "when"),
        ("whenever it rains", "whenever it rains"),
        ("the show begins", "the show begins"),
    ],
)
def test_a_query_is_held_against_captions_without_what_asks(query: str, said: str) -> None:
    assert statement(query) == said


def test_a_fit_is_the_probability_of_the_words_as_the_caption_of_the_span(
    llm: VideoLLM, made: Path
) -> None:
    """Against one forward pass over the whole sequence, without a cache."""
    file = sorted(made.glob("*.vidx"))[-1]
    reader = Reader(VideoIndex.load(file, llm), native_engine(llm))
    model, tokenizer = llm.model, llm.tokenizer
    _, batch = reader.levels[0]
    batch = batch.rows(slice(0, 1))
    head, tail = prompt_ids(tokenizer, llm.words("ground", QUERY))
    said = many.ask_batch(model, batch, head, tail, reader.engine.tokenizer, keep=True)
    fitting = Fitting(tokenizer, f"when does {QUERY}?")
    (fit,) = fitting(model, batch, head, said)
    assert fitting(model, batch, head, said) == [fit]  # the cache is as it was
    assert fitting(model, batch, head, [replace(said[0], times=None)]) == [0.0]

    start, end = (model.config.time_token_start + t for t in said[0].times or ())
    around = prompt_ids(tokenizer, PROMPTS["caption"])[1]
    words = tokenizer(QUERY, add_special_tokens=False)["input_ids"]
    link = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in ("from", "to")]
    after = [*around, *link[0], start, *link[1], end, *words]
    embeds = torch.cat(
        [
            model.embed_tokens(torch.tensor([list(head)])),
            model.video_embeds(batch.features.float(), batch.span, torch.tensor([batch.length])),
            model.embed_tokens(torch.tensor([after])),
        ],
        dim=1,
    )
    place = len(head) + batch.total
    places = torch.cat(
        [
            torch.arange(len(head))[None],
            batch.position.long() + len(head),
            torch.arange(place, place + len(after))[None],
        ],
        dim=1,
    )
    with torch.no_grad():
        logits = model.language_model(inputs_embeds=embeds, position_ids=places).logits
    logs = logits[0, -len(words) - 1 : -1].log_softmax(-1)
    expected = logs[torch.arange(len(words)), torch.tensor(words)].mean().exp()
    assert fit == pytest.approx(float(expected), rel=1e-4)


def test_what_is_taken_out_is_gone_and_what_is_wrong_is_told(
    library: VideoLibrary, videos: list[Path]
) -> None:
    library.remove("v03")
    assert "v03" not in {entry.name for entry in library.list()}
    assert videos[3].exists() and not (library.folder / "v03.vidx").exists()
    with pytest.raises(InputError, match="no video 'v033' in library: did you mean v"):
        library.remove("v033")
    (library.folder / "v05.vidx").unlink()
    changed = library.folder / "v06.vidx"
    changed.write_bytes(changed.read_bytes()[:-5])
    damaged = library.folder / "v07.vidx"
    state = damaged.stat()
    damaged.write_bytes(b"\0" * state.st_size)
    os.utime(damaged, ns=(state.st_atime_ns, state.st_mtime_ns))  # only opening it can tell
    problems = {entry.name: entry.problem for entry in library.list() if entry.problem}
    assert set(problems) == {"v05", "v06"}
    hits = library.ground(QUERY, limit=30)
    assert {"v05", "v06", "v07"}.isdisjoint(hit.name for hit in hits)
    for name, words in {"v05": "is missing: add", "v06": "is not the file that was added",
                        "v07": "is no index"}.items():  # fmt: skip
        (note,) = (note for note in hits.notes if name in note)
        assert words in note and "\n" not in note
        with pytest.raises(InputError, match=words):
            library.open(name)
    library.add(videos[5], **PLAN)  # as its note says
    assert all(name != "v05" for name in (e.name for e in library.list() if e.problem))


def test_names_are_free_and_the_same_video_keeps_its_own(
    llm: VideoLLM, videos: list[Path], tmp_path: Path
) -> None:
    library = VideoLibrary(tmp_path / "new" / "library", llm)
    for call in (library.list, lambda: library.ground(QUERY), lambda: library.remove("x")):
        with pytest.raises(InputError, match="is no library: add a video"):
            call()
    (tmp_path / "b").mkdir()
    other = shutil.copyfile(videos[1], tmp_path / "b" / videos[0].name)
    assert library.add(videos[0], **PLAN).name == "v00"
    assert library.add(other, **PLAN).name == "v00-2"  # another video of the same name
    moved = shutil.copyfile(videos[0], tmp_path / "moved.mp4")
    assert library.add(moved, **PLAN).name == "v00"  # the same video at another place
    assert [Path(e.video).name for e in library.list()] == ["moved.mp4", "v00.mp4"]
    with pytest.raises(InputError, match="fps 1, not 2"):
        library.add(videos[0], **{**PLAN, "fps": 2.0})
    assert library.add(videos[0], **{**PLAN, "fps": 2.0}, force=True).problem is None
    with pytest.raises(InputError, match="no such file"):
        library.add(tmp_path / "nothing.mp4")
    notes = tmp_path / "notes.mp4"
    notes.write_text("no video")
    with pytest.raises(InputError, match=r"notes\.mp4 is not a video"):
        library.add(notes)
    assert len(library.list()) == 2
    for name in ("v00", "v00-2"):
        library.remove(name)
    with pytest.raises(InputError, match="is an empty library"):
        library.ground(QUERY)


def test_indexes_are_taken_as_they_are(
    llm: VideoLLM, videos: list[Path], library: VideoLibrary, tmp_path: Path
) -> None:
    fresh = write_video(tmp_path / "fresh.mp4", 30, fps=1, size=(64, 48))
    index = indexed(llm, fresh, tmp_path / "named.vidx")
    assert library.add(index.path).name == "fresh"  # after its video; the file is copied
    assert (library.folder / "fresh.vidx").read_bytes() == index.path.read_bytes()
    shutil.copyfile(index.path, library.folder / "by-hand.vidx")
    assert library.add(library.folder / "by-hand.vidx").name == "fresh"  # it is that video
    with pytest.raises(InputError, match=r"named\.vidx is an index already: fps"):
        library.add(index.path, fps=2.0)
    strange = loud(seed=2)
    alien = indexed(strange, fresh, tmp_path / "alien.vidx")
    empty = VideoLibrary(tmp_path / "other")
    assert empty.add(alien.path).model == model_mark(
        native_engine(strange)
    )  # no model is loaded for this
    with pytest.raises(InputError, match="another model, such as fresh"):
        VideoLibrary(empty.folder, llm).add(videos[0])
    hits = VideoLibrary(empty.folder, llm).ground(QUERY)
    assert hits == [] and hits.notes == ("fresh was made by another model: remove it and add it "
                                         "again",)  # fmt: skip
    for video in videos[:4]:  # the same is said once of all
        empty.add(indexed(strange, video, tmp_path / f"alien-{video.stem}.vidx").path)
    assert VideoLibrary(empty.folder, llm).ground(QUERY).notes == (
        "fresh, v00, v01 and 2 more were made by another model: remove them and add them again",
    )
    with pytest.raises(InputError, match="limit"):
        library.ground(QUERY, limit=0)
    with pytest.raises(InputError, match="empty"):
        library.ground(" ")


def test_a_video_that_is_gone_midway_is_in_the_library_in_part(
    llm: VideoLLM, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "gone.mp4", 200, fps=1, size=(64, 48))
    kept, library = video.read_bytes(), VideoLibrary(tmp_path / "library", llm)
    with pytest.raises(WorkError, match="is gone"):
        library.add(video, **PLAN, progress=lambda done, total: video.unlink(missing_ok=True))
    (entry,) = library.list()
    assert not entry.complete and 64 <= entry.duration < 200 and entry.problem is None
    hits = library.ground(QUERY)
    assert hits and hits.notes == (f"gone is indexed in part: add {video} again to go on",)
    video.write_bytes(kept)
    assert library.add(video, **PLAN).complete and library.ground(QUERY).notes == ()


def test_two_processes_at_once_lose_nothing(
    llm: VideoLLM, videos: list[Path], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    folder = tmp_path / "library"
    children = []
    for turn in (0, 1):
        child = os.fork()
        if not child:
            code = 1
            try:
                library = VideoLibrary(folder, llm)
                for video in videos[turn:8:2]:
                    library.add(video, **PLAN)
                    library.ground(QUERY)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    library = VideoLibrary(folder, llm)
    assert [entry.name for entry in library.list() if not entry.problem] == [
        f"v0{k}" for k in range(8)
    ]
    said = tmp_path / "said"
    assert in_child(lambda: library.remove("v00"), said) == 0
    assert {hit.name for hit in library.ground(QUERY, limit=20)} <= {f"v0{k}" for k in range(1, 8)}


def test_tables_that_cannot_be_read_are_refused(library: VideoLibrary) -> None:
    file = library.folder / "library.sqlite"
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    with pytest.raises(InputError, match="made by a newer vidllm"):
        library.list()
    file.write_bytes(b"this is no database" * 99)
    with pytest.raises(InputError, match="damaged: delete it") as caught:
        library.list()
    assert "\n" not in str(caught.value)
    file.unlink()  # and the indexes beside it are added again
    for index in sorted(library.folder.glob("*.vidx"))[:3]:
        library.add(index)
    assert [entry.name for entry in library.list()] == ["v00", "v01", "v02"]
