"""What an unfinished index keeps on disk: a folder of blocks, each written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidllm.errors import InputError, WorkError

_SETTINGS = "index.json"


def folder_of(path: Path) -> Path:
    """Where the blocks of an index wait until it is finished."""
    return path.with_name(path.name + ".part")


class Parts:
    """The folder of an index that is being made.

    Args:
        folder: made where it is not there; blocks in it are taken up.
        settings: JSON that the blocks depend on.

    Raises:
        InputError: a folder of other settings, or one that is damaged.
        WorkError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        file = folder / _SETTINGS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for rest in folder.glob("*.tmp"):
                rest.unlink()
            if file.is_file():
                self._same(json.loads(file.read_text(encoding="utf-8")), settings)
            else:
                _whole(file, json.dumps(settings).encode())
        except ValueError as error:
            raise InputError(f"{file} is damaged: delete the folder {folder}") from error
        except OSError as error:
            raise _unwritten(folder, error) from error

    def _same(self, before: Any, settings: Mapping[str, Any]) -> None:
        for key in {**settings, **before}:
            if before.get(key) != settings.get(key):
                raise InputError(
                    f"{self.folder} was begun with another {key} ({before.get(key)}, not "
                    f"{settings.get(key)}): delete it, or give another output file"
                )

    def __len__(self) -> int:
        """Blocks that are there, from the first one on."""
        number = 0
        while (self.folder / _name(number)).is_file():
            number += 1
        return number

    def add(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a block."""
        file = self.folder / _name(number)
        try:
            part = file.with_suffix(".tmp")
            save_file(dict(tensors), str(part))
            with part.open("rb+") as data:
                os.fsync(data.fileno())
            part.replace(file)
        except (OSError, SafetensorError) as error:
            file.with_suffix(".tmp").unlink(missing_ok=True)
            raise _unwritten(self.folder, error) from error

    def load(self, number: int) -> dict[str, Tensor]:
        """A block. Raises InputError when it is damaged."""
        file = self.folder / _name(number)
        try:
            return load_file(str(file))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is damaged: delete it, and index again") from error

    def remove(self) -> None:
        """The index is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def pack_thumbs(thumbs: list[tuple[float, bytes]]) -> dict[str, Tensor]:
    """Pictures as tensors: their seconds, where each ends, and all bytes."""
    data = np.frombuffer(b"".join(d for _, d in thumbs), np.uint8).copy()
    return {
        "thumb_seconds": torch.tensor([t for t, _ in thumbs], dtype=torch.float64),
        "thumb_ends": torch.tensor(np.cumsum([len(d) for _, d in thumbs]), dtype=torch.int64),
        "thumbs": torch.from_numpy(data),
    }


def _name(number: int) -> str:
    return f"block-{number:06d}.safetensors"


def _whole(file: Path, data: bytes) -> None:
    part = file.with_suffix(".tmp")
    with part.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)


def _unwritten(folder: Path, error: Exception) -> WorkError:
    full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "os error 28" in str(
        error
    )
    if full:
        return WorkError(
            f"the disk is full: what was indexed stays in {folder}; free space and run it again"
        )
    reason = error.strerror if isinstance(error, OSError) else error
    return WorkError(f"{folder} cannot be written: {reason}")
