"""`vidllm bench fuzz` in its smallest form: whatever is damaged is read rightly or refused."""

from __future__ import annotations

import csv
import json
import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from processes import Run

from vidllm.cli.main import main
from vidllm.errors import InputError, VidllmError
from vidllm.eval.bench.fuzz import campaign
from vidllm.eval.bench.fuzz.bombs import BOMBS, BombTarget
from vidllm.eval.bench.fuzz.campaign import bench_fuzz, counts
from vidllm.eval.bench.fuzz.json_damage import CHANGES, damage_json
from vidllm.eval.bench.fuzz.media_cases import MediaTarget
from vidllm.eval.bench.fuzz.outcomes import FAULTS, NOTED, REFUSED, WHOLE, Case, Target
from vidllm.video.stamps import find_joins


def test_damaged_media_are_counted_by_what_became_of_them(cli: Run, tmp_path: Path) -> None:
    out, folder = tmp_path / "fuzz.csv", tmp_path / "work"
    words = ["bench", "fuzz", "--targets", "media", "--number", "6", "--seed", "1"]
    done = cli(*words, "--folder", folder, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["faults"] == [] and sum(one["count"] for one in told["counts"]) == 60
    assert {one["outcome"] for one in told["counts"]} >= {"refused", "read whole"}
    with out.open(newline="", encoding="utf-8") as file:
        found = [{**row, "count": int(row["count"])} for row in csv.DictReader(file)]
    assert found == told["counts"]
    assert not (folder / "kept").exists()


class _Odd:
    """Cases that end in every way that there is."""

    memory: ClassVar[int] = 2**24
    seconds: ClassVar[float] = 0.5
    cases: ClassVar[int | None] = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        (place / "file").write_text(str(draw.random()))
        name, work = list(_ODD.items())[number]
        return Case(name, work)


def _refuse() -> tuple[str, str]:
    raise InputError("it is no video")


def _two_lines() -> tuple[str, str]:
    raise InputError("it is\nno video")


def _raw() -> tuple[str, str]:
    raise KeyError("x")


def _spin() -> tuple[str, str]:
    while True:
        time.perf_counter()


def _fill() -> tuple[str, str]:
    with mmap.mmap(-1, 2**26) as pages:  # new pages, also where this process holds what it freed
        return WHOLE, str(pages.write(bytes(2**26)))


def _crash() -> tuple[str, str]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return WHOLE, ""


_ODD: dict[str, Callable[[], tuple[str, str]]] = {
    "read whole": lambda: (WHOLE, ""),
    "refused": _refuse,
    "raw error": _two_lines,
    "raw error again": _raw,
    "crash": _crash,
    "hang": _spin,
    "too much memory": _fill,
    "read whole at last": lambda: (WHOLE, ""),
}


def test_a_crash_a_hang_and_too_much_memory_are_counted_and_do_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd() -> type[Target]:
        return _Odd

    monkeypatch.setitem(campaign.TARGETS, "odd", odd)
    told: list[dict[str, Any]] = []
    rows = bench_fuzz(["odd"], tmp_path, number=len(_ODD), keep=told.append)
    assert [row["number"] for row in rows] == list(range(len(_ODD)))
    for row in rows:
        assert row["mutation"].startswith(row["outcome"]), row
        kept = Path(row["kept"], "file") if row["kept"] else None
        assert (kept is not None and kept.is_file()) == (row["outcome"] in FAULTS)
    assert "KeyError at test_bench_fuzz.py" in rows[3]["said"]
    assert rows[4]["said"].startswith("SIGSEGV")
    assert told == rows
    # The same again makes nothing anew, and counts the same.
    again = bench_fuzz(["odd"], tmp_path, number=len(_ODD), keep=lambda _: pytest.fail("again"))
    assert counts(again) == counts(rows)


def test_media_that_once_failed_are_read_or_refused(tmp_path: Path) -> None:
    """A table of samples that names what the file lacks, and a video stream without a packet."""
    target = MediaTarget(tmp_path)
    for number in (53, 87):
        place = tmp_path / str(number)
        place.mkdir()
        case = target.case(number, random.Random(f"0 media {number}"), place)
        try:
            outcome, _ = case.work()
        except InputError:
            outcome = REFUSED
        assert outcome not in FAULTS
    nothing = np.zeros(0, np.int64)
    assert find_joins(nothing, nothing, nothing, [0], nothing.astype(bool)).packets == ()


@pytest.mark.parametrize(
    "name",
    [
        "mp4: stts of 2^27 samples",
        "mp4: ctts of 2^31 samples",
        "mkv: frames 40 µs apart in 23.0 h, read",
        "config: 10^12 layers",
        "config: a number of 5,000 digits",
        "tokenizer.json nested 100,000 deep",
        "weights: offsets of 2^40",
        "index: hours that do not exist",
        "run.json nested 100,000 deep",
        "a question of 1000000 signs",
        "command: a spec 300 deep",
        "command: frames of 5,000 digits",
        "command: a pipe as video",
    ],
)
def test_a_bomb_is_refused_or_read_for_what_there_is(
    name: str, bombs: BombTarget, tmp_path: Path
) -> None:
    number = list(BOMBS).index(name)
    case = bombs.case(number, random.Random(0), tmp_path)
    try:
        outcome, said = case.work()
    except VidllmError as error:
        outcome, said = REFUSED, str(error)
    assert outcome in (REFUSED, NOTED, WHOLE), said
    assert said.strip() and "\n" not in said


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> BombTarget:
    return BombTarget(tmp_path_factory.mktemp("bombs"))


def test_the_same_seed_damages_the_same() -> None:
    def made(seed: int) -> tuple[str, str]:
        value = {"a": [1, 2.5, None], "b": {"c": "text", "d": True}}
        return damage_json(value, random.Random(seed)).told, repr(value)

    assert made(1) == made(1) != made(2)
    assert set(CHANGES) >= {"other type", "impossible value", "deep value"}


def test_an_unknown_target_of_damage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "fuzz", "--targets", "medai"]) == 2
    assert "no target 'medai': there are media, indexes" in capsys.readouterr().err
