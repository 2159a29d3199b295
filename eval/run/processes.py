"""Several processes of one run: ``accelerate launch -m vidllm.cli eval …``.

They meet twice before the work begins and never again: each keeps a journal of its own, and the
main one reads all journals in the end. While a process lives it holds a lock on a file of the
run's folder, which the system gives back whenever and however it ends; so the main process waits
for nobody who is dead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError, WorkError

if TYPE_CHECKING:
    from .records import RunFolder

#: Making a benchmark's videos may take hours; a process that ends is noticed at once.
PATIENCE = timedelta(hours=24)

#: Where launchers say how many processes there are.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Crew:
    """The processes of a run, seen by one of them.

    Args:
        rank: its number. size: how many there are. device: for the model, None for the usual one.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None
    state: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes the results."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all processes are here.

        Raises:
            WorkError: one of them ended.
        """
        if self.size == 1:
            return
        import torch.distributed

        try:
            torch.distributed.barrier()
        except RuntimeError as error:  # a connection to it was closed
            raise WorkError(
                f"process {self.rank} of {self.size} waited for one that ended: see what that "
                "one said, then run the same command again"
            ) from error

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """What only one may do first: the others go in when the main process is through."""
        if not self.is_main:
            self.meet()
        yield
        if self.is_main:
            self.meet()

    def wait_for_others(self, folder: RunFolder, halted: Callable[[], bool]) -> None:
        """As the main process, wait until all others are done, or dead."""
        for rank in range(1, self.size):
            lock = folder.lock(rank)
            while not halted():
                if _taken(lock):
                    lock.release()
                    break
                time.sleep(0.05)

    def leave(self) -> None:
        """Part from the others without waiting for them."""
        if self.state is not None:
            self.state.destroy_process_group()


def join(device: str | None) -> Crew:
    """The processes that ``accelerate launch`` (or torchrun) started, or this one alone.

    Args:
        device: that was asked for; with several GPUs each process takes its own.

    Raises:
        InputError: they do not find each other.
    """
    if not any(int(os.environ.get(name, "1")) > 1 for name in SIZES):
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            raise InputError(
                "accelerate launch --cpu started one process, not several: on CPUs use "
                "accelerate launch --multi_gpu --num_processes N …, which needs no GPU here"
            )
        return Crew(device=device)
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    gpus = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    try:  # gloo also where there are GPUs: it notices at once that a process ended
        state = PartialState(cpu=device == "cpu" or not gpus, backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes do not find each other ({error}): start them with accelerate launch"
        ) from error
    own = str(state.device) if device in (None, "cuda") else device
    return Crew(int(state.process_index), int(state.num_processes), own, state)


def _taken(lock: Any) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
