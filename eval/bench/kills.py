"""``vidllm bench kills``: runs that are killed at random moments must end as undisturbed ones do.

A run is the command line in a process of its own, forked from one that has imported what all runs
import. It gets a signal once it has used so many seconds of CPU, drawn from a seed within what an
undisturbed run uses: that is the same moment of the work on a busy machine and on an idle one. It
is started again, some kills more follow, and in the end it may
finish; then its files are compared byte by byte with those of the undisturbed run. Left out is
only what was measured (seconds, memory) and what names the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.cli.tables import table
from vidllm.errors import InputError, WorkError

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
#: Kills before a run may finish, at most.
CHAIN = 4
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_MEASURED = ("cost", "costs", "sums", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Target:
    """What is killed.

    Args:
        command: the words behind `vidllm`, for a folder of results.
        files: what the folder holds in the end, without what differs between two equal runs.
    """

    command: Callable[[Path], list[str]]
    files: Callable[[Path], dict[str, bytes]]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, the seconds of CPU it used, its last line."""

    code: int
    seconds: float
    line: str


def bench_kills(
    names: Sequence[str],
    folder: Path,
    *,
    kills: int = 20,
    seed: int = 0,
    keep: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Kill every target so many times; a row a start.

    Args:
        names: of `TARGETS`. folder: for the work; what failed is kept there.
        keep: told of every row at once.

    Raises:
        InputError: a name that is not known.
        WorkError: an undisturbed run fails.
    """
    if unknown := [name for name in names if name not in TARGETS]:
        raise InputError(f"no target {unknown[0]!r}: there are {', '.join(TARGETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with Starter() as starter:
        for name in names:
            target, draw = TARGETS[name](folder), random.Random(f"{seed} {name}")
            for row in _kill(name, target, starter, folder, kills, draw):
                rows.append(row)
                keep(row)
    return rows


def _kill(
    name: str,
    target: Target,
    starter: Starter,
    folder: Path,
    kills: int,
    draw: random.Random,
) -> Iterator[Row]:
    out = folder / f"{name}-undisturbed"
    for _ in range(2):  # the first may have data to make, and its seconds would count them
        shutil.rmtree(out, ignore_errors=True)
        whole = starter.run(target.command(out), out.with_suffix(".txt"))
    if whole.code:
        raise WorkError(f"an undisturbed {name} ends with code {whole.code}: {whole.line}")
    wanted = target.files(out)
    done, number = 0, 0
    while done < kills:
        number += 1
        out = folder / f"{name}-{number}"
        shutil.rmtree(out, ignore_errors=True)
        chain, right = min(draw.randint(1, CHAIN), kills - done), True
        for left in range(chain, -1, -1):
            sent = draw.choice(SIGNALS) if left else None
            after = draw.uniform(0, whole.seconds) if left else None
            ended = starter.run(target.command(out), out.with_suffix(".txt"), sent, after)
            row = {
                "target": name,
                "run": number,
                "signal": "" if sent is None else sent.name,
                "after": "" if after is None else round(after, 3),
                "code": ended.code,
                "outcome": _outcome(ended, sent),
                "said": ended.line.replace(str(folder), "DIR"),
            }
            if row["outcome"] == "finished":
                same = target.files(out) == wanted
                row["outcome"] = "same bytes" if same else "other bytes"
            else:
                done += row["outcome"] != "failed"
            right = right and row["outcome"] not in ("failed", "other bytes")
            row["kept"] = "" if right else str(out)
            yield row
            if not right or row["outcome"] == "same bytes":
                break
        if right:
            shutil.rmtree(out, ignore_errors=True)
        else:
            done += 1  # a target that always fails must come to an end


def _outcome(ended: Ended, sent: signal.Signals | None) -> str:
    if ended.code == 0:
        return "finished"
    if sent is not None and ended.code == -sent:
        return "killed"
    if sent is not None and ended.code == 128 + sent:
        return "stopped"
    return "failed"


class Starter:
    """Starts command lines in forked processes; a context manager."""

    def __enter__(self) -> Starter:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def run(
        self,
        words: list[str],
        said: Path,
        sent: signal.Signals | None = None,
        after: float | None = None,
    ) -> Ended:
        """Run a command, and send it a signal once it used `after` seconds of CPU.

        Args:
            said: file for what it prints.
        """
        import psutil

        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(said), words]) + "\n")
        self._process.stdin.flush()
        number, used = int(self._process.stdout.readline()), 0.0
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            child = psutil.Process(number)
            while child.status() != psutil.STATUS_ZOMBIE:
                times = child.cpu_times()
                used = max(used, times.user + times.system)
                if sent is not None and after is not None and used >= after:
                    child.send_signal(sent)
                    sent = None
                time.sleep(0.002)
        code = int(self._process.stdout.readline())
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Ended(code, used, lines[-1][:300] if lines else "")


#: Imports what runs import, then forks one for every line of its input: [file for its output,
#: words]; tells its number, and when it has ended its exit code.
_STARTER = """
import json, os, sys
import av, safetensors, torch, transformers, vidllm.ask.video_llm, vidllm.stage.training.loop
import vidllm.eval.run.evaluate, vidllm.longvideo.build
from vidllm.cli.main import main
for line in sys.stdin:
    said, words = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1), os.dup2(file, 2)
            code = main(words)
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def _eval(folder: Path) -> Target:
    data = folder / "stage"

    def command(out: Path) -> list[str]:
        words = ["eval", "stage", "--split", "val", "--limit", "3", "--data", str(data)]
        words += ["--compressor", "temporal-pool", "--keep", "0.5", "--frames", "16"]
        return [*words, "--device", "cpu", "--max-new-tokens", "4", "--out", str(out)]

    def files(out: Path) -> dict[str, bytes]:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
        return {
            "answers": (out / "answers.jsonl").read_bytes(),
            "results": json.dumps(_unmeasured(results), sort_keys=True).encode(),
        }

    return Target(command, files)


def _index(folder: Path) -> Target:
    from .video_reading import short_file

    video = short_file(folder, 40)

    def command(out: Path) -> list[str]:
        out.mkdir(parents=True, exist_ok=True)
        return [
            "index",
            str(video),
            "--out",
            str(out / "video.vidx"),
            "--device",
            "cpu",
            "--anyway",
        ]

    return Target(command, lambda out: {"video.vidx": (out / "video.vidx").read_bytes()})


def _train(folder: Path) -> Target:
    sizes = {"steps-see": 4, "steps-mix": 2, "steps-answer": 4, "batch": 2, "clips": 6}
    options = {**sizes, "frames": 8, "save-every": 1, "workers": 0, "threads": 1}

    def command(out: Path) -> list[str]:
        words = ["train", "stage", "--size", "tiny", "--temporal", "identity", "--device", "cpu"]
        words += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        # From its last whole checkpoint, where there is one.
        resume = ["--resume"] if (out / "checkpoint.safetensors").exists() else []
        return [*words, "--out", str(out), *resume]

    def files(out: Path) -> dict[str, bytes]:
        names = [file for file in out.iterdir() if not file.name.startswith(".")]
        found = {file.name: file.read_bytes() for file in names}
        told = json.loads(found["training.json"])
        rows = [json.loads(line) for line in found["log.jsonl"].splitlines()]
        found["training.json"] = json.dumps(
            {name: value for name, value in told.items() if name not in ("out", "resume")}
        ).encode()
        found["log.jsonl"] = json.dumps(_unmeasured(rows)).encode()
        return found

    return Target(command, files)


#: What can be killed, made for a folder.
TARGETS: dict[str, Callable[[Path], Target]] = {"eval": _eval, "index": _index, "train": _train}


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _unmeasured(v) for k, v in value.items() if k not in _MEASURED}
    return [_unmeasured(item) for item in value] if isinstance(value, list) else value


def counts(rows: Sequence[Row]) -> list[Row]:
    """How often every outcome came, by target and signal."""
    found = Counter((row["target"], row["signal"] or "none", row["outcome"]) for row in rows)
    names = ("target", "signal", "outcome")
    return [{**dict(zip(names, key, strict=True)), "count": n} for key, n in found.items()]


def kills_table(rows: Sequence[Row]) -> Table:
    """The counts, for people."""
    found = [list(row.values()) for row in counts(rows)]
    return table(found, left=("target", "signal", "outcome", "count"))
