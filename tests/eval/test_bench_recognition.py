"""`vidllm bench recognition`, and its task: pairs of clips with the same pictures."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch
from processes import vidllm
from torch import Tensor
from torch.nn import functional as F

from vidllm.encoders.vision.recogniser import Recogniser
from vidllm.errors import InputError
from vidllm.eval.bench.recognition import recognition_logits
from vidllm.eval.bench.recognition_runs import (
    SETUPS,
    bench_recognition,
    pair_scores,
    recognition_table,
)
from vidllm.stage.order_pairs import PAIRS, StagePairs

bench = partial(vidllm, "bench", "recognition")


def runs(clip: Tensor) -> list[int]:
    """How long what is not the first picture lasts, each time."""
    change = F.avg_pool2d(clip - clip[0], 4).abs().flatten(1).amax(1)  # noise is averaged out
    lengths = "".join("x" if there else " " for there in change > 0.1).split()
    return [len(run) for run in lengths]


@pytest.mark.parametrize("frames", [12, 16, 33])
def test_the_two_of_a_pair_are_the_same_pictures(frames: int) -> None:
    task = StagePairs("val", frames, size=24)
    assert len(task.labels) == 10 == len(set(task.labels))
    for index in range(0, 20, 2):
        (one, seconds, label), (two, again, other) = task.clip(index), task.clip(index + 1)
        assert (label, other) == (index % 10, index % 10 + 1) and torch.equal(seconds, again)
        assert one.shape == (frames, 3, 24, 24) and bool((seconds.diff() > 0).all())
        places = [
            (one == picture).flatten(1).all(1).nonzero().flatten().tolist() for picture in two
        ]
        assert sorted(at for found in places for at in found) == list(range(frames))
        assert not torch.equal(one, two)
        assert torch.equal(one.flip(0), two) == (not task.labels[label].startswith("blink"))


def test_clips_show_what_their_labels_say() -> None:
    task = StagePairs("train", 16, size=32)
    for index in (6, 16, 26, 36):  # blink once, and the same twice
        assert task.labels[task.clip(index)[2]] == "blink once"
        (long,), short = runs(task.clip(index)[0]), runs(task.clip(index + 1)[0])
        assert short == [long / 2] * 2
    for index in (8, 18, 28):
        assert task.labels[task.clip(index)[2]] == "flash long-short"
        long_first, short_first = runs(task.clip(index)[0]), runs(task.clip(index + 1)[0])
        assert long_first == short_first[::-1] and long_first[0] > long_first[1]


def test_clips_are_always_the_same_and_no_split_or_seed_shares_one() -> None:
    task = StagePairs("train", size=24)
    first = task.clip(4)[0]
    task.clip(0)
    assert torch.equal(task.clip(4)[0], first)
    assert torch.equal(StagePairs("train", size=24, first=2).clip(2)[0], first)
    for other in (StagePairs("val", size=24), StagePairs("train", size=24, first=10)):
        assert not torch.equal(other.clip(4)[0], first)
    for bad in ({"frames": 11}, {"size": 0}):
        with pytest.raises(InputError, match="12 frames"):
            StagePairs(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="even clip"):
        StagePairs(first=3)


def test_what_treats_frames_alone_is_right_in_exactly_half() -> None:
    task = StagePairs("val")
    torch.manual_seed(0)
    model = Recogniser("framewise", task.labels, SETUPS["framewise"].options)
    logits, labels = recognition_logits(model, task, 20)
    assert labels.bincount().tolist() == [2] * 10
    assert torch.allclose(logits[::2], logits[1::2], atol=1e-5)
    scores = pair_scores(logits, labels)
    assert [scores[f"order {name}"] for name in PAIRS] == [0.5] * 5
    for name in ("dist", "squeezetime"):  # these are not blind
        model = Recogniser(name, task.labels, SETUPS[name].options)
        logits, _ = recognition_logits(model, task, 10)
        assert (logits[::2] - logits[1::2]).abs().amax(1).min() > 1e-4


def test_scores_of_logits_that_are_known() -> None:
    labels = torch.arange(10).repeat(2)
    right = torch.eye(10)[labels]
    assert set(pair_scores(right, labels).values()) == {1.0}
    other = torch.eye(10)[labels ^ 1]  # the right pair, the wrong one of the two
    scores = pair_scores(other, labels)
    assert (scores["accuracy"], scores["kind"], scores["order"]) == (0, 1, 0)
    # Another pair wins, but of the two of its own the right one is ahead.
    ahead = right + 5 * torch.eye(10)[(labels + 2) % 10]
    scores = pair_scores(ahead, labels)
    assert (scores["accuracy"], scores["kind"], scores["order"]) == (0, 0, 1)
    assert scores["order move"] == 1


def test_a_row_a_seed_is_kept_after_every_training(tmp_path: Path) -> None:
    out = tmp_path / "new" / "recognition.csv"
    done = bench(
        *("--encoder", "framewise", "--steps", "2", "--seeds", "2", "--tested", "10"),
        *("--out", str(out), "--json"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["seed"] for row in rows] == [0, 1] and len(pandas.read_csv(out)) == 2
    assert rows[0]["order"] == 0.5 and rows[0]["steps"] == 2 and rows[0]["device"] == "cpu"
    kept: list[int] = []
    again = bench_recognition(
        ["squeezetime"], steps=1, seeds=2, batch=4, tested=10, save=lambda r: kept.append(len(r))
    )
    assert kept == [1, 2] and recognition_table([*rows, *again]).row_count == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--encoder", "distt"], "use dist, squeezetime, framewise"),
        (["--steps", "0"], "--steps"),
        (["--tested", "15", "--device", "cpu"], "multiple of 10"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], told: str) -> None:
    done = bench(*options)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="no vision encoder 'tower'"):
        bench_recognition(["dist", "tower"])
    with pytest.raises(InputError, match="counts start at 1"):
        bench_recognition(steps=0)
    with pytest.raises(InputError, match="multiple of 10"):
        bench_recognition(tested=12)
