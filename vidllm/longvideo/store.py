"""The file of an index: one safetensors file, memory-mapped, with JSON in its header.

It is written from front to back, tensor after tensor, so that an index of any length takes no
memory; checksums of the tensors and of the header itself are put into the header at the end.
Nothing but this module knows the layout.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.errors.disk import unwritten
from vidllm.errors.paths import input_file

from .facts import check_facts, check_numbers, check_tensors
from .marks import KIND, is_index

__all__ = ["FORMAT", "IndexFile", "is_index", "write_file"]

#: Raised when files of before can no longer be read.
FORMAT = 1
_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_NO_SUM = "0" * 8
_HEADER = ""  # the name of the header's own checksum

#: Name to (type, shape) of every tensor of a file.
Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def write_file(
    path: Path, shapes: Shapes, facts: Mapping[str, Any], pieces: Iterable[tuple[str, Tensor]]
) -> None:
    """Write an index; it is there as a whole or not at all.

    Args:
        shapes: of all tensors, in the order in which they are written.
        facts: JSON for the header.
        pieces: (name, rows) in that order; a tensor may come in several pieces of rows.

    Raises:
        WorkError: the disk is full, or the file cannot be written.
    """
    header, offset = {}, 0
    for name, (kind, shape) in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        header[name] = {
            "dtype": _NAMES[kind],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    sums = dict.fromkeys(shapes, 0)
    part = path.with_name(path.name + ".new")
    try:
        with part.open("wb") as file:
            file.write(_head(header, facts, dict.fromkeys(shapes, _NO_SUM)))
            for name, rows in pieces:
                data = rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                sums[name] = zlib.crc32(data, sums[name])
                file.write(data)
            written = file.tell()
            file.seek(0)
            head = _head(header, facts, {name: f"{value:08x}" for name, value in sums.items()})
            file.write(head)
            file.flush()
            os.fsync(file.fileno())
        if written != len(head) + offset:
            raise WorkError(f"{path.name}: {written - len(head)} bytes of {offset} were made")
        part.replace(path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _head(header: Mapping[str, Any], facts: Mapping[str, Any], sums: Mapping[str, str]) -> bytes:
    told = {"kind": KIND, "format": str(FORMAT), "facts": json.dumps(facts)}
    whole = {"__metadata__": told, **header}
    told["sums"] = json.dumps({_HEADER: _sum_of(whole), **sums})
    data = json.dumps(whole).encode()
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data


def _sum_of(header: Mapping[str, Any]) -> str:
    """Checksum of a header without checksums."""
    return f"{zlib.crc32(json.dumps(header, sort_keys=True).encode()):08x}"


class IndexFile:
    """An index on disk: `facts`, and tensors that are mapped, not read.

    Args:
        path: of the file. check: compare the checksums (reads the file once).

    Raises:
        InputError: no such file, no index, a damaged one, or one of another version.
    """

    def __init__(self, path: str | os.PathLike[str], *, check: bool = True) -> None:
        self.path = Path(path)
        input_file(self.path, "index file")
        if not is_index(self.path):
            raise InputError(f"{self.path} is no index of vidllm: make one with vidllm index")
        damaged = InputError(f"{self.path} is damaged or cut off: index the video again")
        try:
            self._file: Any = safe_open(str(self.path), framework="pt")
            header = _header_of(self.path)
            told = header["__metadata__"]
            version = int(told["format"])
            self._sums: dict[str, str] = json.loads(told.pop("sums"))
            whole = self._sums.pop(_HEADER, "") == _sum_of(header)
            self.facts: dict[str, Any] = json.loads(told["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged from error
        if version != FORMAT:
            raise InputError(
                f"{self.path} was made by another version (format {version}, this is {FORMAT}): "
                "index the video again"
            )
        if not whole or {"__metadata__", *self._sums} != set(header):
            raise damaged
        if check:
            self.check()
        check_facts(self.facts, self.path)
        check_tensors(self.facts, self, self.path)
        if check:
            check_numbers(self, self.path)

    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, mapped."""
        return self._file.get_tensor(name)

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows [start, end) of a tensor, without the others."""
        return self._file.get_slice(name)[start:end]

    def check(self) -> None:
        """Compare all checksums. Raises InputError when the file is damaged."""
        for name, expected in self._sums.items():
            total = 0
            for data in _bytes_of(self[name]):
                total = zlib.crc32(data, total)
            if f"{total:08x}" != expected:
                raise InputError(f"{self.path} is damaged ({name}): index the video again")


def _header_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        return dict(json.loads(file.read(length)))


def _bytes_of(tensor: Tensor, block: int = 1 << 24) -> Iterator[memoryview]:
    flat = tensor.reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(flat), block):
        yield flat[start : start + block].data
