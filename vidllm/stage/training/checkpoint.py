"""The checkpoint of a training: one safetensors file with JSON in its header, no pickles.

It holds all that the next step depends on: weights, moments of the optimiser, the average, the
states of the random number generators, the sums of the log. It is renamed into place as a whole,
so that a folder always has the newest whole one.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vidllm.errors import InputError
from vidllm.errors.disk import unwritten
from vidllm.errors.schema import (
    Anything,
    Array,
    Integer,
    Nullable,
    Number,
    Object,
    String,
    damage,
    parse,
    validate,
)
from vidllm.errors.writing import whole_file

CHECKPOINT = "checkpoint.safetensors"
#: Where versions before kept theirs, as pickles.
OLD = "state"
KIND = "vidllm-training"
FORMAT = 1
ADVICE = "train again in another folder"

#: The one entry of the header, so that equal checkpoints are equal bytes.
HEADER = Object(
    {
        "kind": String(enum=(KIND,)),
        "format": Integer(1),
        "facts": String(longest=1 << 20),
        "sum": String(longest=8),
    }
)
_WORD = Integer(0, 2**32 - 1)
#: What stands as JSON in the header.
FACTS = Object(
    {
        "step": Integer(0),
        "settings": Object(other=Anything()),
        "python": Object(
            {
                "version": Integer(3, 3),
                "state": Array(_WORD, 625, 625),
                "gauss": Nullable(Number()),
            }
        ),
        "numpy": Object(
            {
                "state": Array(_WORD, 624, 624),
                "at": Integer(0, 624),
                "has_gauss": Integer(0, 1),
                "gauss": Number(),
            }
        ),
    }
)


@dataclass
class Checkpoint:
    """What a training goes on from.

    Args:
        step: how many steps are done. settings: of the run. tensors: by name.
        python, numpy: states of their generators; torch's are tensors.
    """

    step: int
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    python: dict[str, Any] = field(default_factory=dict)
    numpy: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        size = len(prefix)
        return {k[size:]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the one of before, which stays until this one is whole.

    Raises:
        WorkError: the disk is full, or the file cannot be written.
    """
    names = ("step", "settings", "python", "numpy")
    facts = json.dumps({name: getattr(checkpoint, name) for name in names}, allow_nan=False)
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    told = {"kind": KIND, "format": FORMAT, "facts": facts, "sum": _sum_of(facts, tensors)}
    path = folder / CHECKPOINT
    try:
        with whole_file(path) as part:
            part.write_bytes(save(tensors, metadata={KIND: json.dumps(told)}))
    except (OSError, SafetensorError) as error:
        raise unwritten(path, error) from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of a folder.

    Raises:
        InputError: there is none, one of an older version, or it is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        if (folder / OLD).exists():
            raise InputError(
                f"{folder / OLD} was written by an older version as pickles, which can run "
                f"programs and are not read: {ADVICE}"
            )
        raise InputError(f"nothing to resume in {folder}: start without --resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(damage(path, "it is no whole safetensors file", ADVICE)) from error
    if KIND not in header:
        raise InputError(f"{path} is no checkpoint of a training: {ADVICE}")
    told = parse(header[KIND], path, ADVICE)
    validate(told, HEADER, path, ADVICE)
    if told["format"] != FORMAT:
        raise InputError(f"{path} was written by another version of vidllm: {ADVICE}")
    facts = told["facts"]
    if _sum_of(facts, tensors) != told["sum"]:
        raise InputError(damage(path, "its checksum does not fit", ADVICE))
    found = parse(facts, path, ADVICE)
    validate(found, FACTS, path, ADVICE)
    return Checkpoint(**found, tensors=tensors)


def take_generators(checkpoint: Checkpoint) -> None:
    """Put the states of all random number generators into a checkpoint."""
    version, state, gauss = random.getstate()
    checkpoint.python = {"version": version, "state": list(state), "gauss": gauss}
    _, keys, at, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    checkpoint.numpy = {
        "state": [int(word) for word in keys],
        "at": int(at),
        "has_gauss": int(has_gauss),
        "gauss": float(cached),
    }
    checkpoint.tensors["rng.cpu"] = torch.get_rng_state()
    for number, device in enumerate(torch.cuda.get_rng_state_all() if _cuda() else ()):
        checkpoint.tensors[f"rng.cuda.{number}"] = device


def give_generators(checkpoint: Checkpoint, path: Path) -> None:
    """Set all random number generators to the states of a checkpoint.

    Raises:
        InputError: these are no states.
    """
    python, numpy = checkpoint.python, checkpoint.numpy
    try:
        random.setstate((python["version"], tuple(python["state"]), python["gauss"]))
        np.random.set_state(  # noqa: NPY002
            (
                "MT19937",
                np.asarray(numpy["state"], dtype=np.uint32),
                numpy["at"],
                numpy["has_gauss"],
                numpy["gauss"],
            )
        )
        torch.set_rng_state(checkpoint.tensors["rng.cpu"])
        cuda = checkpoint.part("rng.cuda.")
        if _cuda() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([cuda[str(number)] for number in range(len(cuda))])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = "it holds no states of random number generators"
        raise InputError(damage(path, reason, ADVICE)) from error


def copy_into(
    target: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path, what: str
) -> None:
    """Copy tensors of equal names and shapes into those of a model, in their own layout.

    Raises:
        InputError: names, shapes or types differ; the message names the first.
    """
    odd = sorted(set(target) ^ set(saved)) or [
        name
        for name, tensor in target.items()
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype
    ]
    if odd:
        raise InputError(damage(path, f"{what} {odd[0]} is not that of this model", ADVICE))
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(saved[name])


def _cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _sum_of(facts: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(facts.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        value = tensors[name]
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
