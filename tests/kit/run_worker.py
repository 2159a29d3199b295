"""Runs in forked children that are killed: a process of its own, so that imports are paid once.

``python run_worker.py MODEL DATA OUT SEED`` kills a run in OUT/kills 20 times at random moments,
most of them in the middle of a line that is being written, and lets it finish then; then it runs
two processes in OUT/pair, of which the second is killed. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from run_tiny import done, order, tiny_options
from tqdm.auto import tqdm

from vidllm.errors import VidllmError
from vidllm.eval.run import journal
from vidllm.eval.run.evaluate import evaluate

KILLS = 20


def fork(work: Callable[[], object], said: Path | None = None) -> int:
    """Run `work` in a child; its exit code is that of the command line, `said` its last words."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except VidllmError as error:
        code = error.exit_code
        if said is not None:
            said.write_text(str(error), encoding="utf-8")
    finally:
        os._exit(code)


def run(model: Path, data: Path, out: Path) -> None:
    done(order("charades", data, out, compressor="uniform,random"), tiny_options(model))


def torn(after: int, part: float) -> None:
    """From now on this process dies while it writes: in its write `after`, when `part` is done."""
    whole, count = journal.Journal._write, 0

    def write(self: journal.Journal, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > after:
            whole(self, data[: int(part * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, data)

    journal.Journal._write = write  # type: ignore[method-assign]


def signalled(file: str, rows: int, number: int) -> None:
    """From now on this process sends itself a signal when a journal has so many rows."""
    whole = journal.Journal._write

    def write(self: journal.Journal, data: bytes) -> None:
        whole(self, data)
        if Path(file).read_bytes().count(b"\n") >= rows:
            os.kill(os.getpid(), number)

    journal.Journal._write = write  # type: ignore[method-assign]


def warm(model: Path, data: Path, out: Path) -> float:
    """Import and load all that a run does; gives the seconds that the run of one video takes."""
    seconds = 0.0
    for name in ("first", "second"):
        began = time.perf_counter()
        folder = out.with_name(f"{out.name}-{name}")
        asked = order("charades", data, folder, compressor="uniform,random", limit=1)
        done(asked, tiny_options(model))
        seconds = time.perf_counter() - began
    return seconds


def kills(model: Path, data: Path, out: Path, seed: int) -> dict[str, object]:
    longest = warm(model, data, out)
    draw, rows, cut = random.Random(seed), [], 0
    kept = b""
    file = out / "rows-0.jsonl"
    for number in range(KILLS):
        after, part = number % 2, draw.random()
        child = fork(lambda a=after, p=part: (torn(a, p), run(model, data, out)))
        if number % 3 == 0:  # at any moment before it dies by itself
            time.sleep(draw.uniform(0.0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"child {number} ended by itself: {status}"
        found = file.read_bytes() if file.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        assert whole.startswith(kept), f"kill {number} lost an answer"
        kept, cut = whole, cut + (len(whole) < len(found))
        rows.append(whole.count(b"\n"))
    _, status = os.waitpid(fork(lambda: run(model, data, out)), 0)
    return {"rows": rows, "cut": cut, "end": os.waitstatus_to_exitcode(status)}


def pair(model: Path, data: Path, out: Path) -> dict[str, object]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    said = out.with_name(f"{out.name}-said")

    def work(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank:
            torn(1, 0.5)
        evaluate(order("charades", data, out, compressor="uniform,random"), tiny_options(model))

    children = [fork(lambda r=rank: work(r), None if rank else said) for rank in (0, 1)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"codes": codes, "said": said.read_text(encoding="utf-8") if said.exists() else ""}


def main() -> None:
    torch.set_num_threads(1)
    # Progress bars share a lock of the system among forked processes: one that is killed with it
    # would stop all others.
    tqdm.set_lock(threading.RLock())
    model, data, out = (Path(part) for part in sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    killed = kills(model, data, out / "kills", int(sys.argv[4]))
    print(json.dumps({"kills": killed, "pair": pair(model, data, out / "pair")}))


if __name__ == "__main__":
    main()
