"""What a frozen model makes of the training clips, computed once and kept in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.errors.disk import unwritten
from vidllm.errors.schema import Anything, Object, parse, validate
from vidllm.errors.writing import whole_file
from vidllm.progress.interruption import Halt

_ADVICE = "delete both files, or name another one"


class FeatureFile:
    """Rows of bfloat16 numbers, clip after clip, of as many rows as each has.

    The file grows by whole clips, so that a run that was stopped goes on where it ends. Beside it
    stands whose features these are.

    Args:
        path: of the file. rows: of every clip. width: of a row.
        told: whose they are, JSON; a file of something else is refused.

    Raises:
        InputError: a file of other features. WorkError: it cannot be written.
    """

    def __init__(self, path: Path, rows: Sequence[int], width: int, told: dict[str, Any]) -> None:
        self.path, self.width = path, width
        self.ends = np.cumsum([0, *rows])
        self._claim({**told, "width": width, "clips": len(rows), "rows": int(self.ends[-1])})

    def _claim(self, told: dict[str, Any]) -> None:
        stamp = self.path.with_name(f"{self.path.name}.json")
        try:
            if not self.path.exists():
                with whole_file(stamp) as part:
                    part.write_text(json.dumps(told) + "\n", encoding="utf-8")
                self.path.touch()
                return
            if not stamp.exists():
                raise InputError(f"{self.path} has no {stamp.name} beside it: {_ADVICE}")
            found = parse(stamp.read_bytes(), stamp, _ADVICE)
            validate(found, Object(other=Anything()), stamp, _ADVICE)
            if found != told:
                raise InputError(f"{self.path} holds features of something else: {_ADVICE}")
        except OSError as error:
            raise unwritten(self.path, error) from error

    def fill(
        self, make: Callable[[int], Tensor], heard: Callable[[int, int], None], halt: Halt
    ) -> None:
        """Make what is missing: `make(clip)` gives its rows (rows, width).

        Raises:
            Stopped: `halt` wants it; whole clips are kept.
        """
        size, total = 2 * self.width, len(self.ends) - 1
        try:
            with self.path.open("r+b") as file:
                there = os.fstat(file.fileno()).st_size // size
                done = int(np.searchsorted(self.ends, there, side="right")) - 1
                file.truncate(int(self.ends[done]) * size)
                file.seek(0, os.SEEK_END)
                for clip in range(done, total):
                    rows = make(clip).to("cpu", torch.bfloat16).contiguous()
                    file.write(rows.view(torch.int16).numpy().tobytes())
                    heard(clip + 1, total)
                    halt.check()
        except OSError as error:
            raise unwritten(self.path, error) from error

    def __getitem__(self, clip: int) -> Tensor:
        """(rows, width) float32 of a clip that was filled."""
        first, end = int(self.ends[clip]), int(self.ends[clip + 1])
        shape = (int(self.ends[-1]), self.width)
        data: np.memmap[Any, Any] = np.memmap(self.path, dtype=np.int16, mode="r", shape=shape)
        return torch.from_numpy(np.array(data[first:end])).view(torch.bfloat16).float()
