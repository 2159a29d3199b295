"""The campaign: cases in forked processes, so that a crash, a hang or too much memory is counted.

A process takes cases of a target one after the other, telling the beginning and the end of each;
who dies or is killed is followed by another, which goes on with the next case. Every case has its
own random numbers, so that it can be made again alone. What is done is written down: the same
command again goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.cli.tables import table
from vidllm.errors import InputError, VidllmError, WorkError
from vidllm.errors.bounds import lacks_memory
from vidllm.errors.printable import printable

from .outcomes import CRASH, FAULTS, HANG, MEMORY, RAW, REFUSED, Target

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
#: Times as many cases as of others, which are not as cheap.
MANY = {"media": 10}
#: Cases of one process: what they leave behind must not add up.
BATCH = 250
#: Of the stated limit.
_MOST = 1.5
#: Address space beyond what is in use, which ends what memory would else end on a small machine.
_ROOM = 6 << 30
#: Seconds on the wall that a process may sleep, as a share of those of CPU it may use.
_PATIENCE = 20.0


def _target(module: str, name: str) -> type[Target]:
    found: type[Target] = getattr(import_module(f".{module}", __package__), name)
    return found


#: What can be damaged. Each process of cases makes its target itself: this one runs no decoder and
#: no model, whose threads a fork would leave behind.
TARGETS: dict[str, Callable[[], type[Target]]] = {
    "media": partial(_target, "media_cases", "MediaTarget"),
    "indexes": partial(_target, "index_cases", "IndexTarget"),
    "runs": partial(_target, "run_folder_cases", "RunFolderTarget"),
    "weights": partial(_target, "weights_cases", "WeightsTarget"),
    "bombs": partial(_target, "bombs", "BombTarget"),
}


def bench_fuzz(
    names: Sequence[str],
    folder: Path,
    *,
    number: int = 300,
    first: int = 0,
    seed: int = 0,
    keep: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Damage every target so many times; a row a case.

    Args:
        names: of `TARGETS`. folder: for the work, for what fails and for cases.jsonl, the rows so
            far; cases that it holds are not made again.
        number: cases of each target, from case `first` on; of media ten times as many, of bombs
            all there are.
        keep: told of every row at once.

    Returns:
        Rows of target, number, mutation, outcome, said, kept (where the files of a fault are),
        seconds (of CPU), megabytes (beyond those held before).

    Raises:
        InputError: a name that is not known.
        WorkError: the undamaged cannot be made.
    """
    if unknown := [name for name in names if name not in TARGETS]:
        raise InputError(f"no target {unknown[0]!r}: there are {', '.join(TARGETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(1)
    journal, rows = folder / "cases.jsonl", []
    before = _before(journal, seed)
    with journal.open("a", encoding="utf-8") as file:
        for name in names:
            target = TARGETS[name]()
            share = MANY.get(name, 1)
            wanted = range(share * first, share * (first + number))
            if target.cases is not None:
                wanted = range(target.cases)
            rows += [before[name, n] for n in wanted if (name, n) in before]
            left = [n for n in wanted if (name, n) not in before]
            for row in _run(name, target, left, seed, folder):
                file.write(json.dumps({"seed": seed, **row}) + "\n")
                file.flush()
                rows.append(row)
                keep(row)
    return rows


def _before(journal: Path, seed: int) -> dict[tuple[str, int], Row]:
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.pop("seed") == seed:
                found[row["target"], row["number"]] = row
    return found


def _run(
    name: str, target: type[Target], numbers: list[int], seed: int, folder: Path
) -> Iterator[Row]:
    place = folder / f".{name}-{os.getpid()}"
    try:
        while numbers:
            for row in _process(name, target, numbers[:BATCH], seed, place):
                row["kept"] = ""
                if row["outcome"] in FAULTS:
                    kept = folder / "kept" / f"{name}-{seed}-{row['number']}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(place, kept, symlinks=True)
                    row["kept"] = str(kept)
                numbers = [n for n in numbers if n != row["number"]]
                yield row
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _process(
    name: str, target: type[Target], numbers: list[int], seed: int, place: Path
) -> Iterator[Row]:
    """The rows of one process, up to the first case that it did not survive."""
    said = place.with_name(f"{place.name}.txt")
    told, tell = os.pipe()
    answered, answer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(told)
            os.close(answer)
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            faulthandler.enable(all_threads=False)  # a crash says where
            _work(name, target, numbers, seed, place, tell, answered)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(tell)
    os.close(answered)
    try:
        with os.fdopen(told, "rb", buffering=0) as lines:
            yield from _watch(name, target, child, lines.fileno(), answer, said)
    finally:
        os.close(answer)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said.unlink(missing_ok=True)


def _watch(
    name: str, target: type[Target], child: int, told: int, answer: int, said: Path
) -> Iterator[Row]:
    """Rows as a process tells them; it waits after each until that is taken."""
    import psutil

    process = psutil.Process(child)
    now: Row | None = None  # the case in hand
    began = since = 0.0
    rest = b""
    while True:
        ready, _, _ = select.select([told], [], [], 0.1)
        if ready:
            data = os.read(told, 1 << 16)
            if not data:
                break
            rest += data
            *lines, rest = rest.split(b"\n")
            for line in lines:
                row = json.loads(line)
                if "outcome" in row:
                    assert now is not None
                    yield {**now, **row}
                    now = None
                    os.write(answer, b".")
                else:
                    now = {"target": name, **row}
                    began, since = _cpu(process), time.monotonic()
        elif now is not None:
            used, slept = _cpu(process) - began, time.monotonic() - since
            if used > target.seconds or slept > _PATIENCE * target.seconds:
                process.kill()
                os.waitpid(child, 0)
                told_so = f"stopped after {used:.0f} s of CPU, {slept:.0f} s in all"
                yield {**now, "outcome": HANG, "said": told_so, "seconds": used, "megabytes": 0.0}
                return
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(encoding="utf-8", errors="replace").strip()
    last = printable(text.splitlines()[-1][:300]) if text else ""
    if now is not None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        outcome = MEMORY if code == -signal.SIGKILL else CRASH
        yield {
            **now,
            "outcome": outcome,
            "said": f"{how}: {last}",
            "seconds": 0.0,
            "megabytes": 0.0,
        }
    elif code:
        raise WorkError(f"the cases of {name} cannot be made: {last}")


def _cpu(process: Any) -> float:
    import psutil

    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _work(
    name: str,
    kind: type[Target],
    numbers: list[int],
    seed: int,
    place: Path,
    tell: int,
    answered: int,
) -> None:
    """The process of cases: makes one, tells so, works on it, tells what came of it."""
    home = place.parent / name
    home.mkdir(exist_ok=True)
    target = kind(home)
    limit = _status("VmSize") + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        case = target.case(number, random.Random(f"{seed} {name} {number}"), place)
        _say(tell, {"number": number, "mutation": case.mutation})
        began, held = time.process_time(), _reset_peak()
        outcome, said = _outcome(case.work)
        used, taken = time.process_time() - began, max(0, _status("VmHWM") - held)
        if outcome not in FAULTS and taken > _MOST * (case.memory or target.memory):
            outcome, said = MEMORY, f"{taken / 2**20:.0f} MB; {outcome}: {said}"
        if outcome not in FAULTS and used > target.seconds:
            outcome, said = HANG, f"{used:.0f} s; {outcome}: {said}"
        row = {"outcome": outcome, "said": said.replace(str(place), "DIR")[:300]}
        _say(tell, {**row, "seconds": round(used, 3), "megabytes": round(taken / 2**20, 1)})
        os.read(answered, 1)


def _outcome(work: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    try:
        return work()
    except VidllmError as error:
        said = str(error)
        if "\n" in said.strip() or not said.strip() or said != printable(said):
            return RAW, f"not one line of text: {said!r}"
        cause: BaseException | None = error
        while cause is not None:
            # It asked for more than a process may have; what FFmpeg does not even ask for is none.
            if lacks_memory(cause) and not type(cause).__module__.startswith("av."):
                return MEMORY, said
            cause = cause.__cause__ or cause.__context__
        return REFUSED, said
    except BaseException as error:
        if lacks_memory(error):
            return MEMORY, printable(repr(error))
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "vidllm" in f.filename or "/eval/" in f.filename]
        at = (own or frames)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        return RAW, printable(f"{type(error).__name__} at {where}: {error}")


def _say(tell: int, row: Row) -> None:
    os.write(tell, json.dumps(row).encode() + b"\n")


def _status(name: str) -> int:
    """Bytes of an entry of this process's status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> int:
    """Begin to measure the greatest memory anew; bytes held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def counts(rows: Sequence[Row]) -> list[Row]:
    """How often every outcome came, by target and mutation."""
    names = ("target", "mutation", "outcome")
    found = Counter(tuple(row[name] for name in names) for row in rows)
    order = {name: place for place, name in enumerate(TARGETS)}
    ordered = sorted(found.items(), key=lambda entry: (order[entry[0][0]], *entry[0][1:]))
    return [{**dict(zip(names, key, strict=True)), "count": n} for key, n in ordered]


def fuzz_table(rows: Sequence[Row]) -> Table:
    """The counts of all mutations together, for people."""
    found = Counter((row["target"], row["outcome"]) for row in rows)
    cells = [(*key, count) for key, count in sorted(found.items())]
    return table(cells, left=("target", "outcome", "count"))
