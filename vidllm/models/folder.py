"""A model's folder, validated where it is opened: config.json, header of the weights, checksums.

Sizes of a config are compared with the tensors that the folder holds before a model of them is
built. Nothing here reads tensors but for their checksums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import SPEC_SIGNS
from vidllm.errors.paths import input_file, is_file
from vidllm.errors.schema import (
    Anything,
    Array,
    Boolean,
    Integer,
    Number,
    Object,
    String,
    damage,
    parse,
    validate,
)
from vidllm.errors.writing import sha256

_NATIVE = "vidllm-native"
_BYTES = 2**26  # of a config.json
_ANY = Anything()
_NATIVE_CONFIG = Object(
    {},
    {
        "model_type": String(longest=100),
        "vision": Object({}, {"type": String(longest=100)}, other=_ANY),
        "text": Object({"model_type": String(longest=100)}, other=_ANY),
        "temporal": Array(Object({"name": String(longest=100)}, other=_ANY), 0, 64),
        "downsample": Integer(1, 64),
        "time_code": String(longest=100),
        "time_tokens": Integer(2, 10**5),
        "time_token_start": Integer(0, 10**8),
        "time_embedding": Boolean(),
        "stamps": Boolean(),
        "frames": Integer(1, 10**6),
        "compressors": String(longest=SPEC_SIGNS),
        "keep": Number(1e-12, 1),
        "recipe": String(longest=100),
        "base": String(longest=100),
        "base_sha256": String(longest=64),
    },
    other=_ANY,
)
_CONFIG = Object({}, {"model_type": String(longest=100)}, other=_ANY)
MANIFEST = Object(
    {"files": Object(other=String(longest=64))},
    {"default": String(longest=255), "sample": String(longest=1024)},
    other=_ANY,
)
#: Names of a config's fields that count layers, and of those that are a side of some tensor.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "depths", "blocks")
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "out_hidden_size", "embed_dim", "d_model",
    "num_attention_heads", "num_key_value_heads", "num_heads", "head_dim", "widths",
    "mlp_dim", "projection_dim",
)  # fmt: skip
_POSITIVE = (*_LAYERS[:5], *_SIZES, "patch_size", "image_size", "max_position_embeddings")
_MOST_LAYERS, _MOST_SIZE, _MOST = 4096, 2**24, 2**40
_CHECKED = (".json", ".safetensors", ".jinja")
_ADVICE = "get the model again"


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a folder's config.json, with types and ranges that can be.

    Raises:
        InputError: none, or a damaged one; the line names file and field.
    """
    file = input_file(Path(folder) / "config.json", "config.json")
    if file.stat().st_size > _BYTES:
        raise InputError(f"{file} has {file.stat().st_size} bytes, which no config has")
    config = parse(file.read_bytes(), file, _ADVICE)
    kind = config.get("model_type") if isinstance(config, dict) else None
    validate(config, _NATIVE_CONFIG if kind == _NATIVE else _CONFIG, file, _ADVICE)
    for name, value in _numbers(config, ""):
        if isinstance(value, int) and abs(value) > _MOST:
            raise InputError(damage(file, f"field {name} is beyond all that a model has", _ADVICE))
    return dict(config)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """See that a model's folder is whole and its config is that of its weights.

    A folder beside a manifest (as the shipped ones) has the files that it names, byte for byte.

    Raises:
        InputError: a config that cannot be, or that its weights do not have. WorkError: a file
            that is missing or not the one that was shipped.
    """
    home = Path(folder)
    _check_manifest(home)
    config = read_config(home)
    # Of changes to another model only the files say what is there, not how large all of it is.
    shapes = {} if config.get("base") else tensor_shapes(home)
    layers, size, where = _MOST_LAYERS, _MOST_SIZE, "any model"
    if shapes:
        numbers = (int(p) for name in shapes for p in name.split(".") if p.isdecimal() and p != "")
        layers = min(layers, 1 + max(numbers, default=_MOST_LAYERS))
        size = max((max(shape, default=1) for shape in shapes.values()), default=size)
        where = "its weights"
    file = home / "config.json"
    for name, value in _numbers(config, ""):
        last = name.rsplit(".", 1)[-1].split("[")[0]
        most = layers if last in _LAYERS else size if last in _SIZES else None
        if last in ("blocks", "depths"):
            most = _MOST_LAYERS
        if most is not None and value > most:
            raise InputError(
                damage(file, f"field {name} is {value:g}, more than {where} have ({most})", _ADVICE)
            )
        if last in _POSITIVE and value < 1:
            raise InputError(
                damage(file, f"field {name} is {value:g}, which must be at least 1", _ADVICE)
            )
    if config.get("model_type") == _NATIVE and shapes:
        _check_native(config, shapes, file)


def _check_native(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], file: Path
) -> None:
    """The sizes of one of the project's models beside its table of words."""
    table = shapes.get("language_model.model.embed_tokens.weight")
    text = config.get("text", {})
    if table is None or len(table) != 2:
        return
    for name, size in zip(("vocab_size", "hidden_size"), table, strict=True):
        if text.get(name, size) != size:
            raise InputError(
                damage(file, f"field text.{name} is {text[name]}, and the weights have {size}",
                       _ADVICE)
            )  # fmt: skip
    first, count = config.get("time_token_start", 0), config.get("time_tokens", 100)
    if config.get("time_code", "relative") == "relative" and first + count > table[0]:
        raise InputError(
            damage(file, "fields time_token_start and time_tokens name words beyond the "
                         f"{table[0]} of the weights", _ADVICE)
        )  # fmt: skip


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of all tensors in a folder's safetensors files; none where one is damaged."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if not is_file(file):
            raise InputError(f"{file} is not a regular file: {_ADVICE}")
        try:
            with safe_open(str(file), framework="pt") as held:
                shapes |= {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return {}  # what is wrong is said when it is loaded
    return shapes


def _check_manifest(folder: Path) -> None:
    file = folder.absolute().parent / "manifest.json"
    if not is_file(file) or file.stat().st_size > _BYTES:
        return
    told = parse(file.read_bytes(), file, _ADVICE)
    if not isinstance(told, dict) or "files" not in told:
        return  # of another program
    validate(told, MANIFEST, file, _ADVICE)
    for name, wanted in told["files"].items():
        place, _, rest = name.partition("/")
        if place != folder.absolute().name or not rest.endswith(_CHECKED):
            continue
        if not is_file(folder / rest):
            raise WorkError(f"{folder / rest} is missing: {_ADVICE}")
        if sha256(folder / rest) != wanted:
            raise WorkError(
                f"{folder / rest} is not the file that was shipped (its sha256 differs): {_ADVICE}"
            )


def _numbers(value: Any, at: str) -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with its place."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _numbers(one, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _numbers(one, f"{at}[{number}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield at, value
