"""Official files that are missing, broken or of another format: one line that says which and what;
records from the hub."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eval_data
import pytest

from vidllm.errors import InputError
from vidllm.eval.tasks import get_task
from vidllm.eval.tasks.files import (
    HUB,
    annotation_files,
    field,
    hub_records,
    read_cells,
    read_json,
    read_records,
    span,
    spans,
    together,
)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 300
    return line


def items(name: str, folder: Path, split: str | None = None) -> Callable[[], object]:
    task = get_task(name)
    return lambda: task.items(folder, split or task.splits[0])


ALL = sorted({n for n in eval_data.MAKERS if n not in ("stage", "needle")})


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    line = refusal(items(name, tmp_path))
    first = get_task(name).files[get_task(name).splits[0]][0].split("|")[0]
    assert first in line and name in line and "http" in line


#: task, file, what is there → what the line must name
BROKEN: list[tuple[str, str, str, list[str]]] = [
    ("charades", "charades_sta_test.txt", "AAAAA 1.0##x", ["line 1", "VIDEO START END"]),
    ("charades", "charades_sta_test.txt", "A 1 b##x", ["charades_sta_test.txt, line 1", "START"]),
    ("activitynet", "val_2.json", "[]", ["val_2.json", "an object"]),
    ("activitynet", "val_2.json", '{"v_a": 3}', ["v_a", "an object"]),
    ("activitynet", "val_2.json", '{"v_a": {}}', ["v_a", "'duration'", "missing"]),
    (
        "activitynet",
        "val_2.json",
        '{"v_a": {"duration": "long"}}',
        ["v_a", "'duration'", "a number", '"long"'],
    ),
    (
        "activitynet",
        "val_2.json",
        '{"v_a": {"duration": 3, "timestamps": [[0, 1]], "sentences": []}}',
        ["v_a", "timestamps and sentences", "1 timestamps, 0 sentences"],
    ),
    (
        "activitynet-dense",
        "val_1.json",
        '{"v_a": {"duration": 3, "timestamps": [[0]], "sentences": ["x"]}}',
        ["v_a", "'timestamps'", "[start, end]", "[0]"],
    ),
    ("activitynet-dense", "val_1.json", "{", ["val_1.json", "not JSON", "line 1"]),
    (
        "activitynet-rtl",
        "annot_val_1_q229.json",
        '[{"vid": "a", "duration": 3, "answer": "<1> no", "question": "q", "question_id": 1}]',
        ["record 0", "'answer'"],
    ),
    ("activitynet-rtl", "annot_val_1_q229.json", "[3]", ["record 0", "an object"]),
    ("nextgqa", "test.csv", "video_id,qid\n111,1\n", ["test.csv, line 2", "'a0'", "missing"]),
    ("nextgqa", "test.csv", "video_id,qid\n111\n", ["test.csv, line 2", "columns"]),
    ("nextgqa", "gsub_test.json", '{"111": {"location": 3}}', ["111", "'location'", "an object"]),
    (
        "nextgqa",
        "gsub_test.json",
        '{"111": {"location": {"1": []}, "duration": 3}}',
        ["111, location", "'1'", "no span"],
    ),
    (
        "timelens",
        "charades-timelens.json",
        '{"a": {"duration": 3, "queries": ["q"], "spans": [["x", 1]]}}',
        ["a", "'spans'"],
    ),
    (
        "qvhighlights-moments",
        "highlight_val_release.jsonl",
        '{"qid": 1, "vid": "v", "query": "q", "duration": 3}',
        ["line 1", "'relevant_windows'", "missing"],
    ),
    (
        "qvhighlights-highlights",
        "highlight_val_release.jsonl",
        '{"qid": 1, "vid": "v", "query": "q", "duration": 4,'
        ' "relevant_clip_ids": [2], "saliency_scores": [[1, 2, 3]]}',
        ["line 1", "'relevant_clip_ids'", "0 to 1"],
    ),
    (
        "qvhighlights-highlights",
        "highlight_val_release.jsonl",
        '{"qid": 1}\n{',
        ["highlight_val_release.jsonl, line 2", "not JSON"],
    ),
    ("tvsum", "ydata-tvsum50-anno.tsv", "a\tb", ["line 1", "2 columns instead of 3"]),
    ("tvsum", "ydata-tvsum50-anno.tsv", "a\tb\t1,x", ["line 1", "third column"]),
    ("tvsum", "ydata-tvsum50-info.tsv", "video_id\nb", ["info.tsv, AwmHb44_ouw", "'title'"]),
    (
        "tvsum",
        "ydata-tvsum50-info.tsv",
        "video_id\ttitle\tlength\nAwmHb44_ouw\tx\tlong",
        ["line 2", "'length'", "m:ss"],
    ),
    ("youcook2", "youcookii_annotations_trainval.json", "{}", ["'database'", "missing"]),
    (
        "youcook2",
        "youcookii_annotations_trainval.json",
        '{"database": {"v": {"subset": "validation", "duration": 3, "annotations": [{}]}}}',
        ["youcookii_annotations_trainval.json, v", "'segment'", "missing"],
    ),
    ("htm-align", "htm_align.json", '{"v": [[1, 2]]}', ["v, sentence 0", "[alignable, start"]),
    ("htm-align", "htm_align.json", '{"v": [[1, 2, 3, 4.5]]}', ["v, sentence 0", "'text'"]),
    ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id\nv", ["line 2", "'sentence'"]),
]


@pytest.mark.parametrize(("name", "file", "text", "words"), BROKEN)
def test_a_wrong_file_is_named_with_its_field(
    name: str, file: str, text: str, words: list[str], tmp_path: Path
) -> None:
    eval_data.make(name, tmp_path)
    (tmp_path / file).write_text(text, encoding="utf-8")
    line = refusal(items(name, tmp_path))
    for word in (*words, file.partition(".")[0]):
        assert word in line


def test_alternatives_are_tried_in_order(tmp_path: Path) -> None:
    task = get_task("activitynet")
    eval_data.make("activitynet", tmp_path / "captions")
    found = annotation_files(task, tmp_path, "both")
    assert [path.parent.name for path in found] == ["captions"] * 2
    (tmp_path / "val_1.json").write_text("{}")
    assert annotation_files(task, tmp_path, "both")[0].parent == tmp_path
    assert annotation_files(get_task("charades"), HUB, "test") == []


def test_spans_in_a_wrong_order_are_put_right(tmp_path: Path) -> None:
    eval_data.make("activitynet", tmp_path)
    last = get_task("activitynet").items(tmp_path, "val_2")[-1]
    assert last.truth == [10.0, 12.0]  # [12.0, 10.0] in the file
    assert span(["24.3", "30.4 "], "x", where="f") == (24.3, 30.4)


def test_fields() -> None:
    row = {"n": 3, "f": 2.5, "t": "7", "b": True, "none": None, "nan": float("nan"), "l": []}
    assert field(row, "n", int, where="f") == 3
    assert field(row, "n", float, where="f") == 3.0 and field(row, "t", float, where="f") == 7.0
    assert field(row, "n", str, where="f") == "3" and field(row, "b", bool, where="f") is True
    assert field(row, "none", int, where="f", default=4) == 4
    for name, kind in (("b", int), ("b", float), ("f", int), ("nan", float), ("l", dict)):
        assert f"'{name}'" in refusal(lambda n=name, k=kind: field(row, n, k, where="f"))
    assert "is missing" in refusal(lambda: field(row, "none", int, where="f"))
    assert "no span" in refusal(lambda: spans(row, "l", where="f"))
    assert "is missing" in refusal(lambda: together(row, "l", "x", where="f"))
    for bad in ("ab", [1], [1, None], [True, 2], [float("inf"), 2], None):
        assert "'s'" in refusal(lambda b=bad: span(b, "s", where="f"))


def test_formats(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = [{"video": "a.mp4", "timestamp": [1.0, 2.5]}, {"video": "ü", "timestamp": [3.0, 4.0]}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for ending in ("jsonl", "json", "parquet"):
        assert [row for _, row in read_records(tmp_path / f"a.{ending}")] == rows
    (tmp_path / "a.csv").write_text('a,b\n1,"x, ""y"""\n2,\n')
    assert read_records(tmp_path / "a.csv")[0] == ("a.csv, line 2", {"a": "1", "b": 'x, "y"'})
    (tmp_path / "a.tsv").write_text("a\tb\n1\tx y\n")
    assert read_records(tmp_path / "a.tsv")[0][1] == {"a": "1", "b": "x y"}
    assert read_cells(tmp_path / "a.tsv", 2)[1] == ("a.tsv, line 2", ["1", "x y"])
    (tmp_path / "b.parquet").write_bytes(b"no")
    assert "b.parquet" in refusal(lambda: read_records(tmp_path / "b.parquet"))
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    assert "b.json is not UTF-8" in refusal(lambda: read_json(tmp_path / "b.json", list))
    assert "cannot be read" in refusal(lambda: read_json(tmp_path, dict))


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.partition(".")[0] in ("pyarrow", "datasets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: read_records(tmp_path / "a.parquet"), items("charades", HUB)):
        assert "vidllm[eval]" in refusal(call)


def hub_folder(folder: Path, split: str, rows: list[dict[str, Any]]) -> str:
    """A local data set that `datasets.load_dataset` takes for one of the hub."""
    path = folder / "data" / f"{split}-00000-of-00001.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_the_hub_gives_what_the_file_gives(
    local_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_data.make("charades", local_hub)
    task = get_task("charades")
    plain = task.items(local_hub, "test")
    rows = [
        {"video": f"{i.video}.mp4", "caption": c, "timestamp": i.truth}
        for i, c in zip(
            plain,
            (
                "person turn a light on.",
                "a person is putting a book on a shelf.",
                "person opens the door.",
            ),
            strict=True,
        )
    ]
    monkeypatch.setattr(type(task), "hub", hub_folder(local_hub / "hub-a", "test", rows))
    assert task.items(HUB, "test") == plain
    rows[1]["timestamp"] = [1.0]
    monkeypatch.setattr(type(task), "hub", hub_folder(local_hub / "hub-b", "test", rows))
    line = refusal(items("charades", HUB))
    assert "record 1" in line and "'timestamp'" in line
    assert "cannot be loaded" in refusal(lambda: hub_records(task, "train"))
    assert "not on the hub" in refusal(items("tvsum", HUB))


def test_other_hubs(local_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timelens, msrvtt = get_task("timelens"), get_task("msrvtt")
    rows = [
        {"video_path": "charades/one.mp4", "query": "A man opens a box.", "span": [[0.0, 3.0]]},
        {"video_path": "charades/one.mp4", "query": "He looks into it.", "span": [[3.0, 7.5]]},
    ]
    monkeypatch.setattr(type(timelens), "hub", hub_folder(local_hub / "t", "charades", rows))
    eval_data.make("timelens", local_hub)
    found, plain = timelens.items(HUB, "charades"), timelens.items(local_hub, "charades")[:2]
    for one, two in zip(found, plain, strict=True):
        assert (one.id, one.video, one.prompt, one.truth) == (
            two.id,
            two.video,
            two.prompt,
            two.truth,
        )
    eval_data.make("msrvtt", local_hub)
    told = msrvtt.items(local_hub, "1k-A")
    rows = [{"video_id": i.vid, "caption": i.prompt} for i in told if i.kind == "text"]
    monkeypatch.setattr(type(msrvtt), "hub", hub_folder(local_hub / "m", "test", rows))
    assert msrvtt.items(HUB, "1k-A") == told
    assert "1k-A alone" in refusal(items("msrvtt", HUB, "full"))
