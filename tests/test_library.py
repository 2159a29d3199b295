"""A folder of indexed videos: added, listed, searched and taken out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from videos import write_video

from vidllm import InputError, VideoLibrary, VideoLLM


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return VideoLLM.from_pretrained()  # an untrained one names no times


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"v{k}.mp4", count=20 + 10 * k, fps=2) for k in range(4)]


@pytest.fixture
def library(llm: VideoLLM, videos: list[Path], tmp_path: Path) -> VideoLibrary:
    held = VideoLibrary(tmp_path / "library", llm)
    for video in videos:
        held.add(video, fps=2.0)
    return held


def test_what_was_added_is_listed_and_found_again(
    llm: VideoLLM, library: VideoLibrary, videos: list[Path]
) -> None:
    entries = library.list()
    assert [entry.name for entry in entries] == ["v0", "v1", "v2", "v3"]
    assert [entry.duration for entry in entries] == pytest.approx([10.0, 15.0, 20.0, 25.0])
    assert not any(entry.problem for entry in entries)
    hits = library.ground("the red star spins", limit=3)
    assert 0 < len(hits) <= 3
    scores = [hit.span.score for hit in hits]
    assert scores == sorted(scores, reverse=True) and all(type(s) is float for s in scores)
    ends = {entry.name: entry.duration for entry in entries}
    assert all(0 <= hit.span.start <= hit.span.end <= ends[hit.name] + 1e-6 for hit in hits)
    again = VideoLibrary(library.folder, llm).ground("the red star spins", limit=3)
    assert [(h.name, h.span) for h in again] == [(h.name, h.span) for h in hits]


def test_what_is_taken_out_is_gone_and_what_is_missing_is_said(
    library: VideoLibrary, videos: list[Path]
) -> None:
    library.remove("v1")
    assert [entry.name for entry in library.list()] == ["v0", "v2", "v3"] and videos[1].exists()
    with pytest.raises(InputError, match="v1"):
        library.remove("v1")
    next(library.folder.glob("v2*.vidx")).unlink()
    broken = {entry.name: entry.problem for entry in library.list()}
    assert broken["v2"] and not broken["v0"]
    hits = library.ground("the red star spins")
    assert {hit.name for hit in hits} <= {"v0", "v3"}
    assert any("v2" in note for note in hits.notes)


def test_the_command_line(videos: list[Path], tmp_path: Path) -> None:
    folder = str(tmp_path / "library")
    command = [sys.executable, "-m", "vidllm.cli", "library"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    added = run("add", folder, str(videos[0]), str(videos[1]), "--json")
    assert added.returncode == 0, added.stderr
    assert [entry["name"] for entry in json.loads(added.stdout)["added"]] == ["v0", "v1"]
    found = run("ground", folder, "the red star spins", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["hits"], found.stderr
    wrong = run("list", str(tmp_path / "nothing"))
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1
