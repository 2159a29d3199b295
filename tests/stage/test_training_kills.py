"""A training that is killed, stopped, or short of disk keeps its newest whole checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from vidllm.errors import InputError, WorkError
from vidllm.models.native.model import NativeVideoLLM
from vidllm.progress.interruption import Interrupted
from vidllm.stage.training.checkpoint import CHECKPOINT, KIND, read_checkpoint
from vidllm.stage.training.loop import TrainSettings, _Run, train
from vidllm.stage.training.run_folder import TrainingFolder

SMALL: dict[str, Any] = {
    "size": "tiny", "temporal": "identity", "steps_see": 3, "steps_mix": 0, "steps_answer": 0,
    "batch": 2, "see_batch": 2, "frames": 8, "clips": 2, "workers": 0, "cell_workers": 0,
}  # fmt: skip


def settings(out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(out=str(out), **{**SMALL, **more})


def run(out: Path, **more: Any) -> Path:
    return train(settings(out, **more), quiet=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Children that are forked have no others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training of three steps."""
    return run(tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that ended behind its first step."""
    return run(tmp_path_factory.mktemp("first") / "out", minutes=1e-9)


def child(work: Callable[[], object]) -> int:
    """How a forked child ends that does the work: its exit code, or minus the signal."""
    number = os.fork()
    if not number:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def die_at(count: int) -> None:
    """This process kills itself at its `count`-th opening, renaming or removing of a file."""
    left = count

    def hear(event: str, _: object) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def die_beyond(size: int) -> None:
    """This process dies where it makes a file larger than `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def made_step(out: Path) -> _Run:
    """A training that went on from its first step and has not saved the second."""
    going = _Run(settings(out, resume=True), TrainingFolder(out), True)
    for batch in going.loader("see"):
        going.step(batch, None)
        break
    return going


def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint_and_model(
    first: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(first, out)
    going, steps = made_step(out), []
    made = going.checkpoint()  # before forks, which seed Python's generator anew
    monkeypatch.setattr(going, "checkpoint", lambda: made)
    size = (out / CHECKPOINT).stat().st_size
    for limit in (0, 1, 100, size // 2, size - 1):  # in the middle of a file
        code = child(lambda n=limit: (die_beyond(n), going.save()))
        assert code in (-signal.SIGXFSZ, -signal.SIGBUS), limit
        steps.append(read_checkpoint(out).step)
    assert set(steps) == {1}
    for count in range(200):  # and a chain of kills between any two files
        if not child(lambda n=count: (die_at(n), going.save())):
            break
        steps.append(read_checkpoint(out).step)
        NativeVideoLLM.from_pretrained(out)
    assert steps == sorted(steps) and set(steps) == {1, 2}
    assert count > 20
    child(lambda: (die_at(15), going.save()))
    run(out, resume=True)
    for name in (CHECKPOINT, "model.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in whole.iterdir()}  # nothing half written is left


def test_a_resume_at_the_last_step_ends_with_a_model(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("model.safetensors", "config.json", "training.json"):
        (out / name).unlink()
    run(out, resume=True)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert json.loads((out / "training.json").read_text())["step"] == 3


def test_a_folder_takes_one_training_and_a_new_one_overwrites_nothing(
    whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "busy").mkdir()
    with (
        FileLock(tmp_path / "busy" / ".lock"),
        pytest.raises(InputError, match="another training is at work in"),
    ):
        run(tmp_path / "busy")
    before = (whole / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=r"holds a trained model already.* --resume"):
        run(whole)
    with pytest.raises(InputError, match="is trained with seed 0, not 5: give the options"):
        run(whole, resume=True, seed=5)
    with pytest.raises(InputError, match="3 steps already, more than the 2 asked for"):
        run(whole, resume=True, steps_see=3, steps_answer=-1)
    assert (whole / CHECKPOINT).read_bytes() == before


def test_a_full_disk_is_one_line_and_keeps_the_step_before(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(first, out)
    going, before = made_step(out), (out / CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 5000, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(WorkError) as error:
                going.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        said = str(error.value)
        assert "checkpoint.safetensors cannot be written; step 1 is saved in" in said
        assert "--resume" in said and "\n" not in said
        assert (out / CHECKPOINT).read_bytes() == before
        assert not list(out.glob(".*part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_saves_its_step_and_says_so(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _Run.report

    def report(self: _Run, *rest: Any) -> None:
        plain(self, *rest)
        if self.done == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(_Run, "report", report)
    with pytest.raises(Interrupted, match=r"stopped: step 2 is saved in .* --resume") as error:
        run(tmp_path / "out")
    assert error.value.exit_code == 128 + number
    assert read_checkpoint(tmp_path / "out").step == 2


class Opened:
    """Whoever loads its pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_of_before_are_refused_and_never_run(whole: Path, tmp_path: Path) -> None:
    old, ran = tmp_path / "old", tmp_path / "ran"
    shutil.copytree(whole, tmp_path / "both")
    for out in (old, tmp_path / "both"):
        (out / "state").mkdir(parents=True)
        for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"):
            (out / "state" / name).write_bytes(pickle.dumps(Opened(ran)))
    with pytest.raises(InputError, match=r"older version as pickles, .* not read"):
        run(old, resume=True)
    run(tmp_path / "both", resume=True)
    assert not ran.exists()


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change facts and tensors of a checkpoint, with a checksum that fits."""
    from vidllm.stage.training import checkpoint

    with safe_open(str(path), framework="pt") as file:
        told = json.loads(file.metadata()[KIND])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(told["facts"])
    change(facts, tensors)
    told["facts"] = json.dumps(facts)
    told["sum"] = checkpoint._sum_of(told["facts"], tensors)
    save_file(tensors, path, metadata={KIND: json.dumps(told)})


WRONG: list[tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    (lambda facts, _: facts.pop("step"), "field step is missing"),
    (lambda facts, _: facts.update(step=-1), "field step is -1"),
    (lambda facts, _: facts.update(step=1.5), "field step is 1.5"),
    (lambda facts, _: facts.update(step=float("nan")), "no JSON"),
    (lambda facts, _: facts["python"]["state"].pop(), "python.state has 624 items"),
    (lambda facts, _: facts["python"]["state"].__setitem__(624, 2**31), "random number"),
    (lambda facts, _: facts["numpy"].update(at=625), "numpy.at is 625"),
    (lambda facts, _: facts.update(settings=[]), "settings is a list"),
    (lambda facts, _: facts["settings"].pop("seed"), "trained with seed None"),
    (lambda _, tensors: tensors.pop("rng.cpu"), "random number generators"),
    (lambda _, tensors: tensors.update({"rng.cpu": torch.zeros(3)}), "random number"),
    (lambda _, tensors: tensors.pop("average.0"), "average 0 is not that of this model"),
    (lambda _, tensors: tensors.update({"average.0": torch.zeros(1)}), "average 0 is not"),
    (lambda _, tensors: tensors.update({"optimizer.x.step": torch.zeros(())}), "optimizer.x"),
    (lambda _, tensors: tensors.update({"optimizer.0.exp_avg": torch.zeros(1)}), "optimizer.0"),
    (lambda _, tensors: tensors.update({"trainee.more": torch.zeros(1)}), "weight more is not"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_checkpoint_with_wrong_facts_is_refused_in_one_line(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    said: str,
    first: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(first, out)
    changed(out / CHECKPOINT, change)
    with pytest.raises(InputError, match=said) as error:
        _Run(settings(out, resume=True), TrainingFolder(out), True)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_refused(first: Path, tmp_path: Path) -> None:
    data = (first / CHECKPOINT).read_bytes()
    middle = bytearray(data)
    middle[len(data) // 2] ^= 4
    for bad in (b"", data[:100], data[:-1], bytes(middle), b"\x80\x04." + data):
        (tmp_path / CHECKPOINT).write_bytes(bad)
        with pytest.raises(InputError, match=r"is damaged|is no checkpoint") as error:
            read_checkpoint(tmp_path)
        assert "\n" not in str(error.value)


def test_cells_of_another_tower_are_refused(whole: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells.bin"
    more = {"steps_answer": 1, "cells": str(cells)}
    run(tmp_path / "one", **more)
    with pytest.raises(InputError, match="cells of another tower"):
        run(tmp_path / "two", **more, seed=1)
    cells.with_name("cells.bin.json").write_text('{"frames": 0, "tower": ""}')
    with pytest.raises(InputError, match="field frames is 0"):
        run(tmp_path / "three", **more)
