"""Multiple-choice benchmarks: items from official files, groups, prompts, both formats alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eval_data_choice import (
    MAKERS,
    longvideobench_rows,
    mlvu_rows,
    nextqa_rows,
    videomme_rows,
    write_json,
    write_parquet,
)
from frozen import check_prompts

from vidllm.eval.tasks import FAMILIES, Item, check_split, get_task, task_names
from vidllm.eval.tasks.choice import MultipleChoice
from vidllm.eval.tasks.mlvu import FOLDERS
from vidllm.eval.tasks.mvbench import SOURCES


def items_of(name: str, data: Path, split: str | None = None) -> list[Item]:
    task = get_task(name)
    return task.items(data, check_split(task, split))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of official files for each task; variants share one."""
    folders: dict[object, Path] = {}
    for name, maker in MAKERS.items():
        if maker not in folders:
            folders[maker] = tmp_path_factory.mktemp(name)
            maker(folders[maker])
    return {name: folders[maker] for name, maker in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_every_task_says_what_it_is_and_makes_whole_items(name: str, made: dict[str, Path]) -> None:
    task = get_task(name)
    assert isinstance(task, MultipleChoice) and name in task_names() and task.family in FAMILIES
    assert task.summary and task.citation and task.licence and task.home.startswith("https://")
    assert set(task.files) == set(task.splits)
    items = task.items(made[name], task.splits[0])
    assert len({item.id for item in items}) == len(items) > 1
    for item in items:
        assert item.truth in item.letters and len(item.choices) >= 2
        assert item.prompt.strip() and "\r" not in item.prompt and "<|" not in item.prompt
        places = [line for line in item.prompt.splitlines() if line.lstrip("(").startswith("A")]
        assert any(item.choices[0] in line for line in places)
        assert all(isinstance(value, str) and value for value in item.groups.values())
        again = Item.from_dict(json.loads(json.dumps(item.as_dict())))
        assert again == item
        tops = [made[name] / "videos", made[name]]
        files = [path for top in tops for path in top.glob(f"{item.video}*")]
        assert any(path.is_file() for path in files), item.video


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name in MAKERS for split in get_task(name).splits]
)
def test_the_prompts_are_frozen(name: str, split: str, made: dict[str, Path]) -> None:
    check_prompts(name, split, items_of(name, made[name], split))


def test_videomme_asks_in_the_usual_words(made: dict[str, Path]) -> None:
    first, *_, last = items_of("videomme", made["videomme"])
    assert first.prompt == (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "How many pots are there?\nA. A man.\nB. Two.\nC. Three pots.\nD. Nothing.\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert first.choices == ("A man.", "Two.", "Three pots.", "Nothing.") and first.truth == "C"
    assert (first.id, first.vid, first.video) == ("001-1", "fFjv93ACGo8", "data/fFjv93ACGo8")
    assert first.groups == {
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Geography",
        "task_type": "Counting Problem",
    }
    assert last.groups["duration"] == "long" and last.kind == "Counting Problem"


def test_videomme_puts_subtitles_before_the_question(made: dict[str, Path]) -> None:
    plain = items_of("videomme", made["videomme"])
    told = items_of("videomme-subtitles", made["videomme"])
    assert [item.id for item in told] == [item.id for item in plain]
    assert told[0].prompt.startswith(
        "This video's subtitles are listed below:\n"
        "now the lid comes off\nand & the soup is hot\n"
        "Select the best answer to the following multiple-choice question based on the video and "
        "the subtitles. Respond"
    )
    assert told[0].prompt.endswith(plain[0].prompt.split("option.\n")[1])
    assert "below:\nNo subtitles available\nSelect" in told[-1].prompt
    assert told[0].groups["subtitles"] == "yes" and told[-1].groups["subtitles"] == "no"


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_videomme_reads_json_as_well(ending: str, made: dict[str, Path], tmp_path: Path) -> None:
    path = write_json(tmp_path / f"videomme.{ending}", videomme_rows())
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in videomme_rows()), encoding="utf-8")
    (tmp_path / "data").mkdir()
    assert items_of("videomme", tmp_path) == items_of("videomme", made["videomme"])


def test_mlvu_has_seven_tasks_and_one_prompt_from_both_formats(
    made: dict[str, Path], tmp_path: Path
) -> None:
    items = items_of("mlvu", made["mlvu"])
    assert [item.kind for item in items] == ["plotQA", *FOLDERS]
    assert items[0].prompt == (
        "What matters for plotQA?\n(A) Yellow\n(B) A red one\n(C) Green\n(D) Blue\n"
        "Only give the best option.\nBest option: ("
    )
    assert items[0].truth == "B" and items[1].truth == "A"
    assert items[0].video == "MLVU/video/1_plotQA/plotQA_66.mp4" and items[0].duration == 467.98
    needle = next(item for item in items if item.kind == "needle")
    assert needle.groups == {"task": "needle"} and needle.id == "needle-0"
    rows = []
    for task in FOLDERS:
        for row in mlvu_rows(task):
            options = "".join(
                f"\n({k}) {t}" for k, t in zip("ABCD", row["candidates"], strict=True)
            )
            rows.append(
                {
                    "video_name": row["video"],
                    "duration": float(row["duration"]),
                    "question": row["question"] + options,
                    "candidates": row["candidates"],
                    "answer": "AB"[row["answer"] == "A red one"],
                    "task_type": task,
                    "question_id": "0",
                }
            )
    write_parquet(tmp_path / "mlvu/test-00000-of-00001.parquet", rows)
    hub = items_of("mlvu", tmp_path)
    assert [(i.id, i.prompt, i.truth, i.groups) for i in hub] == [
        (i.id, i.prompt, i.truth, i.groups) for i in items
    ]


def test_longvideobench_from_both_formats(made: dict[str, Path], tmp_path: Path) -> None:
    items = items_of("longvideobench", made["longvideobench"])
    assert items[0].prompt == (
        "What happens when the subtitle says 'now', question 0?\nA. He sits\nB. A cup falls\n"
        "C. He is shirtless.\nAnswer with the option's letter from the given choices directly."
    )
    assert [item.truth for item in items] == ["C", "A", "B"]
    assert items[2].letters == tuple("ABCDE") and items[2].video == "bbb.mp4"
    assert items[0].groups["duration"] == "8 to 15 s"
    assert items[2].groups["duration"] == "15 to 60 min" and items[2].kind == "TAA"
    rows = []
    for row in longvideobench_rows():
        texts = [*row.pop("candidates"), *["N/A"] * 5][:5]
        rows.append({**row, **{f"option{k}": text for k, text in enumerate(texts)}})
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", rows)
    assert items_of("longvideobench", tmp_path) == items


def test_longvideobench_subtitles_have_the_seconds_of_the_clip(made: dict[str, Path]) -> None:
    first, _, last = items_of("longvideobench-subtitles", made["longvideobench"])
    assert first.prompt.startswith(
        "This video's subtitles are listed below:\n[0.5 s - 1.2 s] now look\nWhat happens"
    )
    # The clip begins at 10 s of the subtitles' time and lasts 2 s.
    assert last.prompt.splitlines()[1:3] == [
        "[0.0 s - 0.5 s] into the clip",
        "[1.5 s - 2.0 s] the end",
    ]
    assert "before the clip" not in last.prompt


def test_egoschema_subset_full_and_hub(made: dict[str, Path], tmp_path: Path) -> None:
    subset, full = (items_of("egoschema", made["egoschema"], s) for s in ("subset", "full"))
    assert [item.truth for item in subset] == ["A", "D"]  # in the order of the questions
    assert [item.truth for item in full] == [None] * 3 and full[1].prompt == subset[0].prompt
    assert subset[0].prompt == (
        "What is the aim of c in video 1?\nA. C cleans.\nB. C cooks a meal.\nC. A man talks to c.\n"
        "D. C reads.\nE. C sleeps.\n"
        "Answer with the option's letter from the given choices directly."
    )
    rows = [
        {
            "question_idx": str(k),
            "question": item.prompt.splitlines()[0],
            "video_idx": item.id,
            "option": [f"{c}. {text}" for c, text in zip("ABCDE", item.choices, strict=True)],
            "answer": str("ABCDE".index(item.truth)),
        }
        for k, item in enumerate(subset)
    ]
    write_parquet(tmp_path / "Subset/test-00000-of-00001.parquet", rows)
    assert items_of("egoschema", tmp_path) == subset


def test_mvbench_looks_at_parts_of_whole_videos_only(made: dict[str, Path], tmp_path: Path) -> None:
    items = items_of("mvbench", made["mvbench"])
    by_task = {item.kind: item for item in items}
    assert len(items) == 21 and list(by_task) == list(SOURCES)
    assert items[0].prompt == (
        "Question:What happened in action_sequence?\nOption:\n(A) Ate the medicine.\n"
        "(B) A blanket.\n(C) Took the box.\nOnly give the best option."
    )
    assert [items[0].truth, items[1].truth] == ["C", "C"]
    assert (items[0].start, items[0].end) == (0.5, 1.5)
    assert items[0].video == "video/star/Charades_v1_480/ZS9XR.mp4"
    assert by_task["moving_count"].start is None
    part = by_task["episodic_reasoning"]  # there as a file of its own
    assert part.video.startswith("video/tvqa/video_fps3_hq_segment/") and part.start is None
    for task in SOURCES:
        source = made["mvbench"] / f"json/{task}.json"
        write_json(tmp_path / f"{task}.json", json.loads(source.read_text(encoding="utf-8")))
    (tmp_path / "videos/star/Charades_segment").mkdir(parents=True)
    cut = items_of("mvbench", tmp_path)
    assert cut[0].video == "star/Charades_segment/ZS9XR.mp4" and cut[0].start is None
    assert [item.prompt for item in cut] == [item.prompt for item in items]
    assert [item.vid for item in cut] == [item.vid for item in items]


def test_nextqa_groups_are_the_official_ones(made: dict[str, Path], tmp_path: Path) -> None:
    items = items_of("nextqa", made["nextqa"])
    assert [item.groups["type"] for item in items] == [
        "causal",
        "temporal",
        "descriptive",
        "temporal",
    ]
    assert items[1].groups["detail"] == items[3].groups["detail"] == "before and after"  # TP, TN
    assert items[0].id == "4010069381_6" and items[0].video == "1164/4010069381"
    assert items[0].prompt == (
        "how do the two man play the instrument\nA. roll the handle\nB. tap their feet\n"
        "C. a field\nD. hit with sticks\nE. pat with hand\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [item.truth for item in items] == ["A", "E", "C", "B"]
    assert len(items_of("nextqa", made["nextqa"], "val")) == 2
    rows = [{**row, "video": int(row["video"])} for row in nextqa_rows()]
    write_parquet(tmp_path / "MC/test-00000-of-00001.parquet", rows)
    hub = items_of("nextqa", tmp_path)
    assert [(i.id, i.prompt, i.truth) for i in hub] == [(i.id, i.prompt, i.truth) for i in items]
    assert hub[0].video == "4010069381"  # without the map


def test_perceptiontest_from_both_formats(made: dict[str, Path], tmp_path: Path) -> None:
    items = items_of("perceptiontest", made["perceptiontest"])
    assert [(item.id, item.truth) for item in items] == [
        ("video_8_0", "B"),
        ("video_8_3", "C"),
        ("video_11_0", "B"),
    ]
    assert items[1].groups == {"area": "memory", "reasoning": "descriptive"}
    assert items[0].duration == 2.0 and items[0].prompt.splitlines()[1:4] == [
        "A. Yes",
        "B. No",
        "C. A lamp is not there",
    ]
    rows = [
        {
            "video_name": item.vid,
            "question": "Is the lamp lit?",
            "question_id": item.id.rsplit("_", 1)[1],
            "options": list(item.choices),
            "answer_id": str("ABC".index(item.truth)),
            **item.groups,
            "tag": ["state"],
        }
        for item in items
    ]
    write_parquet(tmp_path / "mc_question_val/validation-00000-of-00001.parquet", rows)
    hub = items_of("perceptiontest", tmp_path)
    assert [(i.id, i.prompt, i.truth) for i in hub] == [(i.id, i.prompt, i.truth) for i in items]
