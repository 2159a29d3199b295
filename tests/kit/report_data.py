"""Runs for the tests of the report: made-up answers, written by the runner's own writers.

Rows, files and scores are those of a real run; only what the model says is drawn from a seed, the
worse the fewer tokens a setting keeps.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from videos import write_video

from vidllm.eval.run.journal import Prediction, Row, row_of
from vidllm.eval.run.records import FORMAT, RunFolder, prompts_mark
from vidllm.eval.run.results import finish
from vidllm.eval.tasks import get_task
from vidllm.eval.tasks.base import Item, Response
from vidllm.tokens import TokenMap

SETTINGS = ("none@1", "aim@0.5", "aim@0.25", "uniform@0.5", "uniform@0.25")
GRID = (6, 4, 6)
#: Seconds that the files of `write_clips` last; annotations call each video as long.
DURATION = 3.0
_WORSE = {"none": 0.0, "aim": 0.25, "uniform": 0.9}


def write_clips(folder: Path, names: Sequence[str]) -> Path:
    """Real videos of 3 seconds; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_video(folder / f"{name}.mp4", 30, fps=10)
    return folder


def grounding_items(videos: int = 4, each: int = 3) -> list[Item]:
    """Items of charades."""
    return [
        Item(
            id=f"v{v}-{k}",
            vid=f"v{v}",
            video=f"v{v}",
            prompt=f"When does event {k} of video {v} happen?",
            truth=[0.2 + 0.3 * k, 1.1 + 0.5 * k],
            duration=DURATION,
            groups={"span": "long" if k else "short"},
        )
        for v in range(videos)
        for k in range(each)
    ]


def choice_items(videos: int = 5, each: int = 4) -> list[Item]:
    """Items of videomme."""
    texts = ("a dog", "a cat", "a bird", "a fish")
    return [
        Item(
            id=f"q{v}-{k}",
            vid=f"v{v}",
            video=f"v{v}",
            prompt=f"What is seen in part {k} of video {v}?",
            truth="ABCD"[(v + k) % 4],
            kind="object" if k % 2 else "action",
            choices=texts,
            groups={
                "duration": ("short", "medium", "long")[v % 3],
                "domain": "animals",
                "sub_category": "pets",
                "task_type": "object" if k % 2 else "action",
            },
        )
        for v in range(videos)
        for k in range(each)
    ]


def answer(item: Item, setting: str, seed: int = 0) -> Response:
    """What a model might say; the fewer tokens, the farther off."""
    draw = random.Random(f"{item.id} {setting} {seed}")
    method, share = setting.rpartition("@")[::2]
    wrong = _WORSE.get(method, 0.5) * (1 - float(share)) + 0.12
    if item.choices:
        right = item.truth if draw.random() > wrong else draw.choice(item.letters)
        sure = {a: (2.5 if a == right else 0.0) + draw.gauss(0, 1) for a in item.letters}
        whole = np.log(sum(np.exp(value) for value in sure.values())) + 0.05
        letters = {a: float(value - whole) for a, value in sure.items()}
        return Response(text=f"{right}.", raw=right, letters=letters, duration=DURATION)
    start, end = (t + draw.gauss(0, 2.5 * wrong) for t in item.truth)
    start = min(max(0.0, start), DURATION - 0.2)
    end = min(max(start + 0.1, end), DURATION)
    text = f"The event happens in the {start:.1f} - {end:.1f} seconds."
    if draw.random() < 0.08:
        return Response(text="I cannot see it.", raw="", duration=DURATION)
    return Response(text=text, raw=text, spans=((start, end),), duration=DURATION)


def kept_map(setting: str, seed: int = 0) -> dict[str, Any]:
    """A map of kept tokens: aim merges what it drops into a neighbour, others drop it."""
    method, share = setting.rpartition("@")[::2]
    total = int(np.prod(GRID))
    count = round(total * float(share))
    place = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    carrier = np.full(total, -1)
    carrier[place] = np.arange(count)
    if method == "aim":
        near = np.abs(np.arange(total)[:, None] - place[None]).argmin(axis=1)
        carrier = np.where(np.arange(total) % 2 == 0, near, carrier)
        carrier[place] = np.arange(count)
    seconds = (np.arange(GRID[0]) + 0.5) * DURATION / GRID[0]
    return TokenMap(GRID, seconds, carrier, place).as_dict()


def cost(setting: str, share_of: int) -> dict[str, Any]:
    """What such an answer would cost."""
    share = float(setting.rpartition("@")[2])
    total = int(np.prod(GRID))
    kept = round(total * share)
    return {
        "frames": GRID[0],
        "tokens_full": total,
        "tokens_kept": kept,
        "kv_full_mb": total * 0.05,
        "kv_kept_mb": kept * 0.05,
        "flops": {"vision": 3.0e12, "temporal": 0.0, "prefill": 5e10 * kept, "decode": 1e10},
        "peak_mb": 900.0 + kept,
        "seconds": {
            "decode": 0.11,
            "encode": 0.4,
            "compress": 0.0 if share == 1 else 0.02,
            "prefill": 0.004 * kept,
            "generate": 0.2,
        },
        "shared_by": share_of,
    }


def config_of(task: str, items: Sequence[Item], settings: Sequence[str]) -> dict[str, Any]:
    """What run.json holds."""
    made = get_task(task)
    return {
        "format": FORMAT,
        "task": task,
        "family": made.family,
        "split": made.splits[0],
        "options": {},
        "limit": None,
        "items": len(items),
        "clips": len({item.video for item in items}),
        "data": "data",
        "videos": ["data/videos", "data"],
        "files": {"annotations.json": "0" * 64},
        "prompts": prompts_mark(items),
        "model": "some/model-7B",
        "weights": "0123456789abcdef",
        "max_new_tokens": 64,
        "dtype": "bfloat16",
        "device": "cuda",
        "device_name": "a GPU",
        "recipe": None,
        "settings": [
            {
                "label": label,
                "compressor": label.rpartition("@")[0],
                "keep": float(label.rpartition("@")[2]),
                "tokens": None,
            }
            for label in settings
        ],
        "frames": GRID[0],
        "fps": None,
        "tokens": None,
        "reader": "pyav",
        "limits": {},
        "attn": None,
        "seed": 0,
        "versions": {"vidllm": "0.1", "torch": "2.6", "transformers": "5.18", "av": "14.0"},
        "python": "3.12",
        "commit": None,
    }


def make_run(
    folder: Path,
    task: str = "charades",
    *,
    items: Sequence[Item] | None = None,
    settings: Sequence[str] = SETTINGS,
    videos: Path | None = None,
    said: Mapping[tuple[str, str], Response] | None = None,
    only: int | None = None,
    maps: bool = True,
    **config: Any,
) -> Path:
    """Write a run; gives its folder.

    Args:
        items: its questions, by default made ones of the task.
        videos: where the rows' videos are.
        said: responses by (setting, id) instead of drawn ones.
        only: leave the run unfinished after so many answers a setting.
        maps: whether answers have maps of kept tokens.
        config: other entries of run.json.
    """
    if items is None:
        items = choice_items() if task == "videomme" else grounding_items()
    whole = {**config_of(task, items, settings), **config}
    if videos is not None:
        whole["videos"] = [str(videos)]
    folder.mkdir(parents=True, exist_ok=True)
    run, made = RunFolder(folder), get_task(task)
    run.begin(whole, lambda limit: "")
    rows: dict[tuple[str, str], Row] = {}
    for label in settings:
        for number, item in enumerate(items[:only]):
            response = (said or {}).get((label, item.id)) or answer(item, label)
            failed = response.error is not None
            kept = kept_map(label, number) if maps and not failed else None
            spent = {} if failed else cost(label, 3)
            rows[label, item.id] = row_of(
                label,
                item,
                number,
                Prediction(response, kept, spent, None if failed else GRID[0]),
                None if failed else made.read(item, response),
                made.value(item, response),
            )
    journal = run.journal(0)
    journal.add(rows.values())
    journal.close()
    if only is None:
        finish(made, run, run.config(), rows)
    return folder
