"""The vision tower's view of the training clips, computed once and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..models.native import NativeVideoLLM
from ..stage.scenes import make_scene
from .data import StageBatches
from .settings import TrainSettings
from .trainee import paint


class _CellMaker(Dataset[Tensor]):
    """Item i: the cells (T, N, C) of clip i as the bits of bfloat16, int16."""

    def __init__(self, model: NativeVideoLLM, clips: StageBatches, todo: list[int]) -> None:
        self.model, self.clips, self.todo = model, clips, todo

    def __len__(self) -> int:
        return len(self.todo)

    @torch.inference_mode()
    def __getitem__(self, index: int) -> Tensor:
        device = self.model.device
        row = self.clips.moving(make_scene(self.clips.settings.split, self.todo[index]))
        batch = {k: torch.from_numpy(np.asarray(v))[None].to(device) for k, v in row.items()}
        with torch.autocast(device.type, torch.bfloat16):
            cells = self.model.vision(paint(batch, self.model.vision.image_size, noisy=True))
        return cells.to(torch.bfloat16).cpu().view(torch.int16)


class CellCache:
    """Cells of the first `clips` training scenes, in one file of bfloat16 numbers.

    A run that was stopped goes on with the rows that are still empty.
    """

    def __init__(self, path: Path, settings: TrainSettings, model: NativeVideoLLM) -> None:
        shape = (settings.clips, settings.frames, model.vision.side**2, model.vision.hidden_size)
        mode = "r+" if path.exists() else "w+"
        if mode == "r+" and path.stat().st_size < 2 * np.prod(shape):
            with path.open("r+b") as file:  # more clips than before: the new rows are zeros
                file.truncate(2 * int(np.prod(shape)))
        self.data: np.memmap[Any, Any] = np.memmap(
            path, dtype=np.int16, mode=cast(Any, mode), shape=shape
        )
        self.model = model
        self.workers = settings.cell_workers

    def fill(self, clips: StageBatches, bar: Progress) -> None:
        """Render every clip that is missing and run the frozen tower over it."""
        todo = [i for i in range(len(self.data)) if not self.data[i, -1, -1].any()]
        on_cpu = self.model.device.type == "cpu"
        loader = DataLoader(
            _CellMaker(self.model, clips, todo),
            batch_size=None,
            # One thread a process: small pictures gain nothing from more.
            num_workers=self.workers if on_cpu else 0,
        )
        task = bar.add_task("cells", total=len(todo))
        for i, cells in zip(todo, loader, strict=True):
            self.data[i] = cells.numpy()
            bar.advance(task)
        self.data.flush()
        bar.remove_task(task)

    def __getitem__(self, scenes: Tensor) -> Tensor:
        """Cells (B, T, N, C) float32 of scenes (B,)."""
        rows = torch.from_numpy(np.asarray(self.data[scenes.numpy()]))
        return rows.view(torch.bfloat16).float()
