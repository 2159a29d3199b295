"""The vision tower's view of the training clips, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidllm.errors import InputError
from vidllm.errors.disk import unwritten
from vidllm.errors.schema import Integer, Object, String, parse, validate
from vidllm.errors.writing import whole_file
from vidllm.models.native.model import NativeVideoLLM
from vidllm.progress.interruption import Halt, leave_to_parent

from .data import StageBatches
from .run import multiplies_bfloat16
from .settings import TrainSettings
from .trainee import paint

#: The clips' noise is drawn from seeds that follow this one.
_FIRST_SEED = 17_000_000
#: What stands beside a file of cells.
STAMP = Object({"frames": Integer(1), "tower": String(longest=64)})


class _CellMaker(Dataset[Tensor]):
    """Item i: the cells (T, N, C) of clip i as the bits of bfloat16, int16."""

    def __init__(self, model: NativeVideoLLM, clips: StageBatches, todo: list[int]) -> None:
        self.model, self.clips, self.todo = model, clips, todo

    def __len__(self) -> int:
        return len(self.todo)

    @torch.inference_mode()
    def __getitem__(self, index: int) -> Tensor:
        device = self.model.device
        # The noise of a clip is its own, whoever draws it and when.
        with torch.random.fork_rng():
            torch.manual_seed(_FIRST_SEED + self.todo[index])
            return self._cells(index, device)

    def _cells(self, index: int, device: torch.device) -> Tensor:
        row = self.clips.moving(self.clips.settings.scene(self.todo[index]))
        batch = {k: torch.from_numpy(np.asarray(v))[None].to(device) for k, v in row.items()}
        fast = multiplies_bfloat16(device.type == "cuda")
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            cells = self.model.vision(paint(batch, self.model.vision.image_size, noisy=True))
        return cells.to(torch.bfloat16).cpu().view(torch.int16)


class CellCache:
    """Cells of the first `clips` training scenes, in one file of bfloat16 numbers.

    A run that was stopped goes on with the rows that are still empty; a row counts by its last
    cell, which is written when the others are there. Beside the file stands whose cells these are.

    Raises:
        InputError: a file of another tower or other frames.
        WorkError: it cannot be written.
    """

    def __init__(self, path: Path, settings: TrainSettings, model: NativeVideoLLM) -> None:
        self.path, self.model, self.workers = path, model, settings.cell_workers
        self.shape = (
            settings.clips,
            settings.frames,
            model.vision.side**2,
            model.vision.hidden_size,
        )
        self._claim({"frames": settings.frames, "tower": mark_of(model)})
        size = 2 * int(np.prod(self.shape, dtype=object))
        try:
            with path.open("ab") as file:
                if file.tell() < size:  # new rows are zeros
                    file.truncate(size)
        except OSError as error:
            raise unwritten(path, error) from error
        self.data: np.memmap[Any, Any] = np.memmap(path, dtype=np.int16, mode="r", shape=self.shape)

    def _claim(self, told: dict[str, Any]) -> None:
        stamp = self.path.with_name(f"{self.path.name}.json")
        advice = "delete both files, or give another --cells"
        try:
            if not self.path.exists():
                stamp.unlink(missing_ok=True)
            elif not stamp.exists():
                raise InputError(f"{self.path} has no {stamp.name} beside it: {advice}")
            else:
                found = parse(stamp.read_bytes(), stamp, advice)
                validate(found, STAMP, stamp, advice)
                if found != told:
                    raise InputError(f"{self.path} holds cells of another tower: {advice}")
                return
            with whole_file(stamp) as part:
                part.write_text(json.dumps(told) + "\n", encoding="utf-8")
        except OSError as error:
            raise unwritten(stamp, error) from error

    def fill(self, clips: StageBatches, bar: Progress, halt: Halt) -> None:
        """Render every clip that is missing and run the frozen tower over it.

        Raises:
            Stopped: `halt` wants it; what is done is kept.
        """
        todo = [i for i in range(len(self.data)) if not self.data[i, -1, -1].any()]
        on_cpu = self.model.device.type == "cpu"
        loader = DataLoader(
            _CellMaker(self.model, clips, todo),
            batch_size=None,
            # One thread a process: small pictures gain nothing from more.
            num_workers=self.workers if on_cpu else 0,
            worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # else it would draw from the run's own
        )
        task = bar.add_task("cells", total=len(todo))
        try:
            # Not through the map: a full disk would end the process there without a word.
            with self.path.open("r+b", buffering=0) as file:
                for i, cells in zip(todo, loader, strict=True):
                    self._put(file, i, cells.numpy().tobytes())
                    bar.advance(task)
                    halt.check()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritten(self.path, error) from error
        bar.remove_task(task)

    def _put(self, file: FileIO, row: int, data: bytes) -> None:
        last = 2 * self.shape[-1]
        file.seek(row * len(data))
        for piece in (data[:-last], data[-last:]):
            rest = memoryview(piece)
            while len(rest):
                rest = rest[file.write(rest) or 0 :]

    def __getitem__(self, scenes: Tensor) -> Tensor:
        """Cells (B, T, N, C) float32 of scenes (B,)."""
        rows = torch.from_numpy(np.asarray(self.data[scenes.numpy()]))
        return rows.view(torch.bfloat16).float()


def mark_of(model: NativeVideoLLM) -> str:
    """A hash of the tower's weights as they are saved, so that a run that starts from the model
    of another takes over its cells."""
    digest = hashlib.sha256()
    for name, value in sorted(model.vision.state_dict().items()):
        digest.update(name.encode())
        saved = value.detach().cpu().to(torch.bfloat16).contiguous().reshape(-1)
        digest.update(saved.view(torch.uint8).numpy().data)
    return digest.hexdigest()
