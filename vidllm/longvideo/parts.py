"""What an unfinished index keeps on disk: a folder of blocks, each written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vidllm.errors import InputError
from vidllm.errors.disk import unwritten

fcntl: Any
try:
    import fcntl
except ImportError:  # no such locks on Windows: two runs into one place are not told apart there
    fcntl = None

_SETTINGS, _LOCK = "index.json", "lock"


def folder_of(path: Path) -> Path:
    """Where the blocks of an index wait until it is finished."""
    return path.with_name(path.name + ".part")


class Parts:
    """The folder of an index that is being made; one process at a time works on it.

    Args:
        folder: made where it is not there; blocks in it are taken up.
        settings: JSON that the blocks depend on.
        fresh: forget what is there.

    Raises:
        InputError: a folder of other settings, a damaged one, or one in use.
        WorkError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        file = folder / _SETTINGS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
        except OSError as error:
            raise unwritten(folder, error) from error
        try:
            for rest in folder.glob("*.tmp"):
                rest.unlink()
            if fresh:
                for block in (file, *folder.glob("*.safetensors")):
                    block.unlink(missing_ok=True)
            if file.is_file():
                self._same(dict(json.loads(file.read_text(encoding="utf-8"))), settings)
            else:
                _whole(file, json.dumps(settings).encode())
        except OSError as error:
            self.close()
            raise unwritten(folder, error) from error
        except InputError:
            self.close()
            raise
        except (ValueError, TypeError) as error:
            self.close()
            raise InputError(f"{file} is damaged: delete the folder {folder}") from error

    def _same(self, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        for key in {**settings, **before}:
            if before.get(key) != settings.get(key):
                raise InputError(
                    f"{self.folder} was begun with {other(key, before.get(key), settings.get(key))}"
                    ": delete it, or give another output file"
                )

    def __len__(self) -> int:
        """Blocks that are there, from the first one on."""
        number = 0
        while (self.folder / _name(number)).is_file():
            number += 1
        return number

    def add(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a block. Raises WorkError when it cannot be written."""
        try:
            _whole(self.folder / _name(number), save(dict(tensors)))
        except OSError as error:
            raise unwritten(self.folder, error) from error

    def load(self, number: int) -> dict[str, Tensor]:
        """A block. Raises InputError when it is damaged."""
        file = self.folder / _name(number)
        try:
            return load_file(str(file))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is damaged: delete it, and index again") from error

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()

    def remove(self) -> None:
        """The index is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def other(key: str, before: object, now: object) -> str:
    """What is different about a setting, in words."""
    if isinstance(before, int | float) and isinstance(now, int | float):
        return f"{key} {before:g}, not {now:g}"
    if key in ("precision", "dtype", "reader", "compressor", "tower"):
        return f"{key} {before or 'none'}, not {now or 'none'}"
    return f"another {'video' if key == 'source' else key}"


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


def _locked(folder: Path) -> BinaryIO | None:
    """The folder's lock, which ends with the process, however that ends."""
    if fcntl is None:
        return None
    file = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / _LOCK).stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):  # in use, or finished just now
        pass
    except OSError:  # a file system without locks
        return file
    file.close()
    raise InputError(f"another process is making {folder.name.removesuffix('.part')}: wait for it")


def _whole(file: Path, data: bytes) -> None:
    part = file.with_suffix(".tmp")
    try:
        with part.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
