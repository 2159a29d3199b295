"""The folder of a run: rows that reach the disk, half lines, full disks, other configurations."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vidllm.errors import InputError, WorkError
from vidllm.eval.run.clips import clips_of, find_video, limited, share_of
from vidllm.eval.run.journal import (
    Journal,
    Prediction,
    in_order,
    item_of,
    key_of,
    line_of,
    read_journals,
    read_lines,
    response_of,
    row_of,
    without_costs,
)
from vidllm.eval.run.records import RunFolder, prompts_mark
from vidllm.eval.tasks import Item, Response

ITEM = Item("q1", "v", "v.mp4", "when – and why?", [1.0, 2.0], duration=30.0, choices=("x", "y"))
CONFIG: dict[str, Any] = {
    "format": 1, "task": "charades", "family": "grounding", "limit": 2, "prompts": "p2",
    "settings": [{"label": "none@1"}, {"label": "aim@0.25"}], "seed": 0, "data": "here",
    "versions": {"vidllm": "1", "torch": "2"}, "commit": "abc", "items": 4, "frames": 8,
}  # fmt: skip


def row(number: int, setting: str = "none@1", **more: Any) -> dict[str, Any]:
    item = Item(f"q{number}", "v", "v.mp4", "when?", [0.0, 1.0])
    said = Prediction(Response(f"from {number} é", duration=9.5), cost={"frames": 4, "seconds": {}})
    return row_of(setting, item, number, said, [0.0, float(number)], 0.5) | more


def test_a_row_gives_its_item_and_response_back() -> None:
    response = Response("1 - 2", "<t1> <t2>", ((1.0, 2.0),), {"A": -0.5, "B": -1.0}, 29.97)
    said = Prediction(response, {"grid": [1, 2, 2]}, {"frames": 8}, 8)
    made = json.loads(line_of(row_of("none@1", ITEM, 3, said, [1.0, 2.0], 1.0)))
    assert item_of(made) == ITEM  # its duration is not the response's
    assert response_of(made) == response
    assert key_of(made) == ("none@1", "q1")
    assert {"cost", "attempt"} & set(without_costs(made | {"attempt": 1})) == set()
    assert "–" in line_of(made)
    assert "NaN" not in line_of({"x": float("nan")})


def test_half_a_sign_in_an_official_file_is_kept(tmp_path: Path) -> None:
    folder, odd = RunFolder(tmp_path), row(0, prompt="a \ud83d smile")
    journal = folder.journal(0)
    journal.add([odd])
    journal.close()
    assert folder.rows()["none@1", "q0"]["prompt"] == "a \ud83d smile"
    folder.write_answers([odd])
    (tmp_path / "rows-0.jsonl").unlink()
    assert folder.rows()["none@1", "q0"]["prompt"] == "a \ud83d smile"


def test_a_journal_cuts_half_a_line_off_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows-0.jsonl"
    journal = Journal(path)
    journal.add([row(0), row(1)])
    journal.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in sorted({*range(0, len(whole), 61), first - 1, first, len(whole) - 1, len(whole)}):
        path.write_bytes(whole[:size])
        kept = 2 if size == len(whole) else int(size >= first)
        assert len(list(read_lines(path))) == kept
        journal = Journal(path)
        journal.add([row(7)])
        journal.close()
        assert [key[1] for key in read_journals(tmp_path)] == [f"q{k}" for k in range(kept)] + [
            "q7"
        ]
    path.write_bytes(b"\xff" * 200_000)  # one long half line, no text at all
    Journal(path).close()
    assert path.read_bytes() == b""


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows-0.jsonl"
    for wrong in ("hello", "{}", "[1]", line_of(row(1)).replace('"number": 1', '"number": "x"')):
        path.write_text(line_of(row(0)) + wrong.strip() + "\n" + line_of(row(2)), encoding="utf-8")
        with pytest.raises(InputError, match=r"line 2 of .*rows-0.jsonl is damaged"):
            read_journals(tmp_path)


def test_of_several_tries_the_last_counts_in_whatever_journal(tmp_path: Path) -> None:
    (tmp_path / "rows-0.jsonl").write_text(
        line_of(row(0, text="new", attempt=1)) + line_of(row(1)), encoding="utf-8"
    )
    (tmp_path / "rows-1.jsonl").write_text(line_of(row(0, text="old")), encoding="utf-8")
    rows = read_journals(tmp_path)
    assert rows["none@1", "q0"]["text"] == "new"
    rows["aim@0.25", "q1"] = row(1, "aim@0.25")
    assert [key_of(r) for r in in_order(rows, ["aim@0.25", "none@1"])] == [
        ("aim@0.25", "q1"), ("none@1", "q0"), ("none@1", "q1"),
    ]  # fmt: skip


def test_a_write_that_fails_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows-0.jsonl"
    journal = Journal(path)
    journal.add([row(0)])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(WorkError, match=r"rows-0.jsonl cannot be written: File too large"):
            journal.add([row(1), row(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    journal.add([row(1)])
    journal.close()
    assert [key[1] for key in read_journals(tmp_path)] == ["q0", "q1"]


def test_a_full_disk_has_room_for_the_answers_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, whole = Journal(tmp_path / "rows-0.jsonl"), Journal._write
    reserve = tmp_path / ".rows-0.jsonl.reserve"
    assert reserve.stat().st_size == 1 << 20

    def write(self: Journal, data: bytes) -> None:
        if reserve.exists():  # the disk is full as long as this room is taken
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, data)

    monkeypatch.setattr(Journal, "_write", write)
    with pytest.raises(WorkError, match="no room left: the answers so far are all kept"):
        journal.add([row(0), row(1)])
    journal.close()
    assert len(read_journals(tmp_path)) == 2


def test_another_run_is_refused_by_the_key_that_differs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(CONFIG, lambda limit: "p2")
    folder.begin(CONFIG | {"data": "there", "commit": "abc"}, lambda limit: "p2")
    for changed, says in (
        ({"seed": 1}, r"\(seed: 0, not 1\)"),
        ({"versions": {"vidllm": "1", "torch": "3"}}, r"\(versions.torch: 2, not 3\)"),
        ({"settings": [{"label": "none@1"}]}, r"the setting aim@0.25 too, which is not finished"),
        ({"limit": 1}, r"\(limit: 2, not 1\)"),
        ({"prompts": "q"}, r"\(prompts: p2, not q\)"),
        ({"weights": "new"}, r"\(weights: null, not new\)"),
    ):
        with pytest.raises(InputError, match=says):
            folder.begin(CONFIG | changed, lambda limit: "p2")
    assert folder.config()["seed"] == 0


def test_a_larger_limit_goes_on_where_the_questions_are_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(CONFIG, lambda limit: f"p{limit}")
    (tmp_path / "answers.jsonl").write_text("", encoding="utf-8")
    more = CONFIG | {"limit": None, "prompts": "pNone", "commit": "def"}
    with pytest.raises(InputError, match="prompts"):
        folder.begin(more, lambda limit: "other")
    folder.begin(more, lambda limit: f"p{limit}")
    assert folder.config()["limit"] is None
    assert folder.config()["commit"] == "abc+def"
    assert not (tmp_path / "answers.jsonl").exists()  # that was the smaller run's


def test_what_is_no_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds 'thesis.tex' but no run.json"):
        RunFolder(tmp_path).check()
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").check()
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(tmp_path / "thesis.tex" / "out").check()
    RunFolder(tmp_path / "new" / "deep").check()
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        RunFolder(tmp_path).config()
    (tmp_path / "run.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(InputError, match="another version"):
        RunFolder(tmp_path).config()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    code = """
import sys
from pathlib import Path
from vidllm.eval.run.records import RunFolder
lock = RunFolder(Path(sys.argv[1])).claim(0)
print("mine", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(InputError, match="another run is at work"):
        folder.claim(0)
    other.kill()
    other.communicate()
    folder.claim(0).release()  # the system gave it back


def items(*videos: str) -> list[Item]:
    return [Item(f"q{k}", vid, vid, "?", None) for k, vid in enumerate(videos)]


def test_every_clip_is_one_process_and_shares_are_even() -> None:
    asked = items(*"aabbbbcdefgghijjjjjjk")
    clips = clips_of(asked)
    assert [len(clip.items) for clip in clips] == [2, 4, 1, 1, 1, 1, 2, 1, 1, 6, 1]
    assert clips_of([Item("x", "v", "v", "?", None, start=1.0), *asked])[0].start == 1.0
    for size in (1, 2, 3, 16):
        shares = [share_of(clips, rank, size) for rank in range(size)]
        assert sorted(c.video for share in shares for c in share) == [c.video for c in clips]
        for share in shares:
            assert [c.video for c in share] == sorted(c.video for c in share)
        if size < 4:
            weights = [sum(4 + len(c.items) for c in share) for share in shares]
            assert max(weights) - min(weights) <= 10
    assert [i.vid for i in limited(asked, 2)] == list("aabbbb")
    assert limited(asked, None) == asked
    assert prompts_mark(limited(asked, 2)) != prompts_mark(asked) == prompts_mark(list(asked))


def test_videos_are_found_under_every_usual_name(tmp_path: Path) -> None:
    for name in ("videos/a.mp4", "b.mkv", "videos/sub/v_c.d.webm", "videos/e.MP4", "videos/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folders = [tmp_path / "videos", tmp_path]
    assert find_video("a", folders) == tmp_path / "videos/a.mp4"
    assert find_video("a.mkv", folders) == tmp_path / "videos/a.mp4"  # another ending
    assert find_video("b.mp4", folders) == tmp_path / "b.mkv"
    assert find_video("sub/v_c.d", folders) == tmp_path / "videos/sub/v_c.d.webm"
    assert find_video("e.MP4", folders) == tmp_path / "videos/e.MP4"
    assert find_video("f", folders) == tmp_path / "videos/f"
    with pytest.raises(InputError, match=r"no video 'z' in .*videos or "):
        find_video("z", folders)
    for outside in ("../x", str(tmp_path / "b.mkv")):
        with pytest.raises(InputError, match="outside"):
            find_video(outside, folders)
