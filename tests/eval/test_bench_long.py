"""The measurements of long videos, small: every part that needs no hour of video runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vidllm import InputError
from vidllm.eval.bench import library_search as bench_library
from vidllm.eval.bench.long_videos import COLUMNS, PARTS, bench_long, long_table


def measured(part: str, folder: Path) -> dict[tuple[str, str], float]:
    rows: list[dict[str, Any]] = []
    bench_long([part], folder, rows.append, clips=1)
    assert all(set(row) == set(COLUMNS) and row["part"] == part for row in rows)
    assert long_table(rows).row_count == len(rows)
    return {(row["case"], row["measure"]): row["value"] for row in rows}


def test_the_same_tokens_from_more_frames(tmp_path: Path) -> None:
    found = measured("frames", tmp_path)
    assert found["1x: 16 frames", "tokens"] == found["4x: 64 frames", "tokens"] == 256
    assert {case for case, _ in found} >= {"10x: 160 frames", "20x: 320 frames"}
    assert all(0 <= v <= 1 for (_, what), v in found.items() if what in ("mIoU", "R1@0.5"))


def test_a_library_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_library, "VIDEOS", 4)
    monkeypatch.setattr(bench_library, "QUERIES", 2)
    found = measured("library", tmp_path)
    case = "4 videos of about a minute"
    shown = [found[case, f"a video that shows it within {n} (n=2)"] for n in (1, 5, 10)]
    moments = [found[case, f"the moment (IoU 0.3) within {n} (n=2)"] for n in (1, 5, 10)]
    assert shown == sorted(shown) and moments == sorted(moments)
    assert shown[-1] > 0.5  # ten spans of four videos
    assert all(m <= s for m, s in zip(moments, shown, strict=True))
    assert found[case, "seconds of query 2"] > 0


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no part 'hours': choose from speed, memory"):
        bench_long(["frames", "hours"], tmp_path / "new", print, clips=1)
    assert not (tmp_path / "new").exists() and set(PARTS) >= {"hits", "static"}
