"""Fingerprints: which model, which compressor and which file an index was made of.

Imports no torch, so that the command line can look at a file before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError
from vidllm.errors.bounds import short
from vidllm.errors.paths import input_file, is_file

if TYPE_CHECKING:
    from vidllm.compressors import Compressor
    from vidllm.models.engine import Engine

#: What the header of an index begins with.
KIND = "vidllm index"
_ENDS = 1 << 20  # bytes at both ends of a file that are hashed
_PIECES, _PIECE = 64, 1 << 12  # evenly spread pieces between, and their bytes
#: Settings of a model that change what it says without changing its weights.
_TOLD = ("temporal", "time_code", "downsample", "frames", "stamps", "time_embedding")


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an index, by its first bytes; False for what cannot be read."""
    if not is_file(path):  # a pipe would be waited for
        return False
    try:
        with Path(path).open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            return length < 1 << 26 and f'"kind": "{KIND}"'.encode() in file.read(4096)
    except (OSError, ValueError, struct.error):
        return False


def model_mark(engine: Engine) -> str:
    """A short hash of a model's config and weights (a few numbers of every tensor).

    Of a model of the hub also of how pictures become its pixels.

    Numbers are hashed in bfloat16: the mark of a model is the same in float32 and bfloat16.
    """
    digest = hashlib.sha256(str(type(engine.model).__name__).encode())
    for name, value in sorted(engine.model.named_parameters()):
        flat = value.detach().flatten()
        few = flat[:: max(1, flat.numel() // 16)][:16]
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(few.bfloat16().float().cpu().numpy().tobytes())
    told = {k: v for k, v in engine.config.to_dict().items() if k in _TOLD}
    told |= engine.pixel_settings
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def source_mark(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name, absolute path, size, and a hash of both ends of a video file and of pieces between.

    Raises:
        InputError: it cannot be read.
    """
    file = input_file(path, "video file").resolve()
    try:
        size = file.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with file.open("rb") as data:
            digest.update(data.read(_ENDS))
            for number in range(_PIECES):
                data.seek(size * number // _PIECES)
                digest.update(data.read(_PIECE))
            data.seek(max(0, size - _ENDS))
            digest.update(data.read(_ENDS))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return {"name": file.name, "path": str(file), "bytes": size, "sha256": digest.hexdigest()}


def method_facts(method: Compressor) -> dict[str, Any]:
    """A compressor as JSON: `spec`, `keep`, `budget` for `build`, and `repr`, all it is.

    `spec` is None for one that `build` cannot make again, such as an instance of a class of one's
    own.
    """
    from vidllm.compressors import build

    chained = method.methods != (method,)
    facts: dict[str, Any] = {
        "spec": ",".join(map(_spec, method.methods)),
        "keep": method.keep if chained else 1.0,
        "budget": method.budget if chained else None,
    }
    try:
        same = repr(build(**facts)) == repr(method)
    except InputError:
        same = False
    return {**facts, "spec": facts["spec"] if same else None, "repr": repr(method)}


def _spec(method: Compressor) -> str:
    values = {f.name: (getattr(method, f.name), f.default) for f in fields(method)}
    told = [f"{name}={value}" for name, (value, usual) in values.items() if value != usual]
    return ":".join((method.name, *told))


def method_of(facts: dict[str, Any], engine: Engine) -> Compressor:
    """The compressor that an index was made with.

    Raises:
        InputError: `engine` has another one, and this one cannot be made from its name.
    """
    from vidllm.compressors import build

    if repr(engine.compressor) == facts["repr"]:
        return engine.compressor
    if facts["spec"] is None:
        raise InputError(
            f"this index was made with {facts['repr']}: load the model with this compressor"
        )
    made = build(facts["spec"], keep=facts["keep"], budget=facts["budget"])
    if repr(made) != facts["repr"]:
        raise InputError(
            f"this index is damaged: field compressor says {facts['spec']!r} and "
            f"{short(facts['repr'])}: index the video again"
        )
    return made


def method_words(facts: dict[str, Any]) -> str:
    """A compressor for people."""
    told = facts["spec"] or facts["repr"]
    if facts["budget"] is not None:
        return f"{told}, {facts['budget']} tokens"
    return told if facts["keep"] == 1.0 else f"{told}, keep {facts['keep']:g}"
