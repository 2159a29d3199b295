"""Course "hub": adapters of a hub model are trained on fewer tokens, go on, and are asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_tiny import TAKES_VIDEOS, save_hub
from processes import Run
from run_tiny import write_charades
from safetensors.torch import load_file
from tiny import write_video

from vidllm import VideoLLM
from vidllm.cli.main import main
from vidllm.errors import InputError
from vidllm.models.tuned import find_tuned
from vidllm.recipes.courses import CourseSettings
from vidllm.recipes.courses.hub import HubTuning, train
from vidllm.recipes.courses.hub import _checked as checked
from vidllm.stage.training.checkpoint import read_checkpoint
from vidllm.stage.training.run_folder import TrainingFolder

pytest.importorskip("peft", reason="training adapters needs peft: pip install 'vidllm[lora]'")
FILES = ("adapter_model.safetensors", "temporal.safetensors", "timesuite.safetensors")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and annotated videos."""
    made = tmp_path_factory.mktemp("hub")
    save_hub(made / "model", "qwen2_5_vl", TAKES_VIDEOS)
    save_hub(made / "other", "llava_onevision", TAKES_VIDEOS)
    write_charades(made / "data", videos=2)
    write_video(made / "v.mp4", [i / 4 for i in range(16)])
    return made


def settings(home: Path, out: Path, **more: Any) -> CourseSettings:
    usual = {
        "init": str(home / "model"), "data": str(home / "data"), "task": "charades", "frames": 4,
        "lora": 2, "temporal": "ssd", "compressor": "timesuite", "keep": 0.5, "steps": 3,
        "batch": 1, "lr": 1e-2, "workers": 0, "log_every": 1, "device": "cpu",
    }  # fmt: skip
    return CourseSettings(out=str(out), **{**usual, "quiet": True, **more})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_loss_falls_and_the_adapters_answer_as_they_were_trained(
    home: Path, tmp_path: Path
) -> None:
    told = settings(home, tmp_path / "out", steps=12, lr=3e-2)
    folder = TrainingFolder(tmp_path / "out")
    with folder.claimed():
        tuning = HubTuning(*checked(told), folder)
        tuning.go()
    rows = rows_of(folder.path)
    assert len(rows) == 12 and all(row["kept"] == 0.5 for row in rows)
    assert sum(r["total"] for r in rows[-3:]) < 0.9 * sum(r["total"] for r in rows[:3])
    engine = tuning.engine
    engine.model.eval()
    engine.temporal = tuning.learned.encoder
    want = VideoLLM.of(engine).ask(home / "v.mp4", "when?", frames=4, max_new_tokens=6)
    llm = VideoLLM.from_pretrained(folder.path)
    got = llm.ask(home / "v.mp4", "when?", max_new_tokens=6)
    assert (got.raw, got.receipt.tokens_kept) == (want.raw, want.receipt.tokens_kept)
    assert got.receipt.frames == 4 and not llm.compressor.notes()
    assert llm.temporal is not None and llm.temporal.recipe == "hub"
    plain = VideoLLM.from_pretrained(home / "model", keep=1)
    beside = VideoLLM.from_pretrained(home / "model", adapter=folder.path)
    assert beside.ask(home / "v.mp4", "when?", max_new_tokens=6).raw == got.raw
    assert plain.ask(home / "v.mp4", "when?", frames=4, max_new_tokens=6).raw != got.raw
    card = (folder.path / "README.md").read_text(encoding="utf-8")
    assert "data, annotations as of charades" in card and "vidllm train hub --out out" in card
    assert str(tmp_path) not in card and str(home) not in card
    told_ = find_tuned(folder.path)
    assert told_ is not None and told_.lora and told_.model == str(home / "model")
    for more, reason in (
        ({"name": home / "other", "adapter": folder.path}, "and the model is a llava_onevision"),
        ({"name": home / "model", "adapter": home}, "no adapters in"),
        ({"name": folder.path, "temporal": "ssd"}, "bring a temporal encoder already"),
        ({"adapter": folder.path, "name": "vidllm-stage"}, "are put into hub models"),
    ):
        with pytest.raises(InputError, match=reason):
            VideoLLM.from_pretrained(**more)


def test_a_stopped_training_goes_on_to_the_same_weights(home: Path, tmp_path: Path) -> None:
    straight = train(settings(home, tmp_path / "straight"))
    halted = train(settings(home, tmp_path / "halted", minutes=1e-9))
    assert read_checkpoint(halted).step == 1
    for more, reason in (
        ({}, "add --resume to go on"),
        ({"resume": True, "seed": 1}, "is trained with seed 0, not 1"),
        ({"resume": True, "keep": 0.25}, "is trained with keep 0.5, not 0.25"),
        ({"resume": True, "lora": 4}, "is trained with lora 2, not 4"),
    ):
        with pytest.raises(InputError, match=reason):
            train(settings(home, halted, **more))
    (halted / "temporal.safetensors").unlink()  # killed between two files
    train(settings(home, halted, resume=True, more={"checkpointing": "false"}))
    for name in FILES:
        one, two = load_file(straight / name), load_file(halted / name)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one), name
    assert [r["total"] for r in rows_of(straight)] == [r["total"] for r in rows_of(halted)]
    assert not list(halted.glob(".*.part"))


def test_checkpointing_gives_the_same(home: Path, tmp_path: Path) -> None:
    more = {"steps": 1, "compressor": "vidcom2", "save_every": 1}
    one = train(settings(home, tmp_path / "one", **more))
    two = train(settings(home, tmp_path / "two", **more, more={"checkpointing": "true"}))
    assert rows_of(one)[0]["total"] == rows_of(two)[0]["total"]


def test_videos_that_are_gone_are_named(home: Path, tmp_path: Path) -> None:
    data = write_charades(tmp_path / "data", videos=1)
    (data / "videos" / "V0000.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="V0000") as caught:
        train(settings(home, tmp_path / "out", data=str(data)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "Give --model: a folder, or a name on the hub"),
        ("--model {model} --data {home}/none --task charades", "none is no folder"),
        ("--model {model} --data {data} --task charade", "no task 'charade': did you mean"),
        ("--model {model} --data {data}", "give --data DIR and --task"),
        ("--model {model} --data {data} --task msrvtt", "no answers that a model could be|needs"),
        ("--model vidllm-stage --data {data} --task charades", "is this project's own model"),
        ("{good} --keep 1.5 --compressor uniform", "--keep must be above 0 and at most 1"),
        ("{good} --keep 0.5", "which tokens are the 0.5"),
        ("{good} --compressor uniform", "how much should uniform keep"),
        ("{good} --lora 0", "nothing to train"),
        ("{good} --temporal sdd", "no temporal encoder 'sdd'"),
        ("{good} --compressor mrt5 --keep 0.5", "no gradient goes through a choice"),
        ("{good} --compressor dycoke-cache --keep 0.5", "of which training has none"),
        ("{good} --resume", "nothing to resume"),
        ("{good} --option checkpoints=true", "did you mean checkpointing"),
        ("{good} --vision vit", "--vision is not for hub"),
        ("{good} --revision v1.0", "revision names a version of a model on the hub"),
        ("{good} --device-map here", "device 'here' cannot be used"),
        ("{good} --adapter {model}", "--adapter: no adapters in"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: str, reason: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"model": home / "model", "data": home / "data", "home": home}
    good = "--model {model} --data {data} --task charades".format(**names)
    line = words.format(**names, good=good).split()
    assert main(["train", "hub", "--out", str(tmp_path / "out"), *line]) == 2
    said = [row for row in capsys.readouterr().err.splitlines() if row.startswith("vidllm: ")]
    assert len(said) == 1
    assert re.search(reason, said[0]), said


def test_the_command_line_trains_and_asks(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = f"--model {home / 'model'} --data {home / 'data'} --task charades --lora 2 --steps 1"
    words = f"train hub --out {out} {line} --batch 1 --frames 4 --workers 0 --json".split()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 1
    assert main(["ask", str(home / "v.mp4"), "when?", "--model", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["receipt"]["frames"] == 4
    line = line.replace(str(home / "model"), str(out))
    assert main(f"train hub --out {tmp_path / 'more'} {line}".split()) == 2
    assert "holds adapters already" in capsys.readouterr().err


def test_adapters_are_trained_further_from_the_command_line(
    home: Path, tmp_path: Path, cli: Run
) -> None:
    """In a process of its own; --model is the one that they name."""
    first = train(settings(home, tmp_path / "first", steps=1))
    words = f"--data {home / 'data'} --task charades --steps 1 --batch 1 --workers 0 --lr 0.01"
    line = f"train hub --out {tmp_path / 'more'} --adapter {first} --device-map cpu {words} --json"
    made = cli(*line.split())
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["step"] == 1
    told, before = find_tuned(tmp_path / "more"), find_tuned(first)
    assert told is not None and before is not None
    assert (told.model, told.compressors, told.keep, told.frames) == (
        before.model, before.compressors, before.keep, before.frames,
    )  # fmt: skip
    for name in FILES:
        one, two = load_file(first / name), load_file(tmp_path / "more" / name)
        assert one.keys() == two.keys()
        moved = max(float((one[key] - two[key]).abs().max()) for key in one)
        assert 0 < moved <= 0.011, name  # a step of AdamW from where they were, at most
    card = (tmp_path / "more" / "README.md").read_text(encoding="utf-8")
    assert "--adapter first" in card and "--lora" not in card
    again = VideoLLM.from_pretrained(tmp_path / "more")
    assert again.ask(home / "v.mp4", "when?", max_new_tokens=3).receipt.tokens_kept
    with pytest.raises(InputError, match="--temporal begins a new one, and the adapters in"):
        train(settings(home, tmp_path / "third", more={"adapter": str(first)}, lora=None))
    more: dict[str, Any] = {"adapter": str(first)}
    with pytest.raises(InputError, match="trained beside a qwen2_5_vl"):
        other = {"init": str(home / "other"), "lora": None, "temporal": None, "more": more}
        train(settings(home, tmp_path / "third", **other))
