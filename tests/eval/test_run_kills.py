"""A run that is killed, stopped, or done by several processes ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tiny import done, final, order, rows_of, tiny_options, write_charades
from tiny import save_tiny

KIT = Path(__file__).parents[1] / "kit"
VIDEOS = 12
ROWS = VIDEOS * 2 * 3
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_charades(tmp_path_factory.mktemp("data"), VIDEOS)


@pytest.fixture(scope="module")
def undisturbed(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("out")
    done(order("charades", data, out, compressor="uniform,random"), tiny_options(model))
    return final(out)


@pytest.fixture(scope="module")
def killed(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Where the runs of `run_worker.py` are, and what happened to them."""
    out = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(KIT / "run_worker.py"), *map(str, (model, data, out, 5))]
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=KIT, env=ENV, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    return out, json.loads(found.stdout.splitlines()[-1])


def keys(out: Path) -> list[tuple[str, str]]:
    """What the journals hold, and that nothing is there twice."""
    rows = [row for file in sorted(out.glob("rows-*.jsonl")) for row in rows_of(file)]
    found = [(row["setting"], row["id"]) for row in rows]
    assert len(set(found)) == len(found)
    return found


def test_twenty_kills_lose_nothing_and_do_nothing_twice(
    killed: tuple[Path, dict[str, Any]], undisturbed: dict[str, bytes]
) -> None:
    out, happened = killed[0] / "kills", killed[1]["kills"]
    assert happened["end"] == 0
    assert happened["cut"] >= 5  # lines that were half written
    assert len(set(happened["rows"])) >= 5  # it came further in between
    assert len(keys(out)) == ROWS
    assert final(out) == undisturbed
    assert not list(out.glob(".*part")) and not list(out.glob(".*reserve"))


def command(model: Path, data: Path, out: Path) -> list[str]:
    words: list[object] = ["eval", "charades", "--model", model, "--frames", 4, "--data", data]
    words += ["--compressor", "uniform,random", "--keep", "0.5", "--out", out, "--device", "cpu"]
    return [*map(str, words), "--max-new-tokens", "3"]


def ended(words: list[str], file: Path, rows: int, number: signal.Signals) -> tuple[int, str]:
    """Start the command line, which sends itself a signal when its journal has so many rows."""
    start = f"from run_worker import signalled; signalled({str(file)!r}, {rows}, {int(number)}); "
    start += "from vidllm.cli.main import main; import sys; sys.exit(main())"
    ran = subprocess.run(
        [sys.executable, "-c", start, *words],
        capture_output=True,
        text=True,
        cwd=KIT,
        env=ENV,
        check=False,
    )
    return ran.returncode, ran.stderr


def test_the_command_goes_on_after_kill_and_ctrl_c(
    model: Path, data: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, file = tmp_path / "out", tmp_path / "out" / "rows-0.jsonl"
    words = command(model, data, out)
    code, _ = ended(words, file, 2, signal.SIGKILL)
    assert code == -signal.SIGKILL
    kept = len(file.read_bytes().splitlines())
    assert 0 < kept < ROWS
    code, said = ended(words, file, kept + 4, signal.SIGINT)
    lines = said.strip().splitlines()
    assert code == 130
    stopped = len(keys(out))
    assert kept < stopped < ROWS
    told = f"vidllm: stopped, {stopped} of {ROWS} answers kept in {out}: run the same command"
    assert lines == [f"{told} again to go on"]
    assert not (out / "results.json").exists()
    done(order("charades", data, out, compressor="uniform,random"), tiny_options(model))
    assert len(keys(out)) == ROWS
    assert final(out) == undisturbed


def test_two_processes_of_accelerate_equal_one(
    model: Path, data: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vidllm.cli"]
    found = subprocess.run(
        [*launch, *command(model, data, out), "--json"],
        capture_output=True,
        text=True,
        env=ENV,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["finished"]  # the main process speaks alone
    assert len(keys(out)) == ROWS
    sizes = [len(rows_of(out / f"rows-{rank}.jsonl")) for rank in (0, 1)]
    assert max(sizes) - min(sizes) <= 6  # a clip at most
    assert final(out) == undisturbed


def test_a_process_that_dies_does_not_hang_the_other_and_one_goes_on_alone(
    killed: tuple[Path, dict[str, Any]], model: Path, data: Path, undisturbed: dict[str, bytes]
) -> None:
    out, happened = killed[0] / "pair", killed[1]["pair"]
    assert happened["codes"] == [1, -signal.SIGKILL]
    assert "a process of 2 ended before it was done" in happened["said"]
    kept = len(keys_whole(out))
    assert f"{kept} of {ROWS} answers kept" in happened["said"]
    assert not (out / "results.json").exists()
    done(order("charades", data, out, compressor="uniform,random"), tiny_options(model))
    # What the dead process had half written was asked again by the one that went on.
    assert final(out) == undisturbed


def keys_whole(out: Path) -> list[str]:
    """The whole lines of all journals."""
    files = sorted(out.glob("rows-*.jsonl"))
    return [line for file in files for line in file.read_text().split("\n")[:-1]]


def test_cpu_processes_that_accelerate_does_not_start_are_not_passed_over(
    model: Path, data: Path, tmp_path: Path
) -> None:
    from vidllm.errors import InputError
    from vidllm.eval.run.processes import join

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "True")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(InputError, match="--multi_gpu --num_processes"):
            join("cpu")
    assert join("cpu").is_main
