"""What ships with vidllm: the weights folder, the models and sample videos in it, the manifest.

The folder is data of the installed package ``vidllm.weights``: a wheel carries it, an editable
install reads the checkout. ``manifest.json`` names the default model, the sample and the sha256
of every file::

    {"default": "NAME", "sample": "samples/NAME.mp4", "files": {"NAME/config.json": "<sha256>"}}
"""

from __future__ import annotations

import json
import os
import stat
from importlib.resources import files
from pathlib import Path
from typing import Any

from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import input_file, input_folder, is_file, is_folder, look, shown
from vidllm.errors.registry import did_you_mean
from vidllm.errors.writing import sha256

from .folder import read_config
from .hub import is_hub_name
from .tuned import find_tuned

#: What a training folder keeps to go on from, by name and by how names begin, and the fresh model
#: that a head for trying out stands on; the trainings of higher rooms write them.
_TRAINING = ("checkpoint.safetensors", "state", "start")
_KEPT = ("cells.bin", "features.bin")


def weights_dir() -> Path:
    """The folder of the shipped weights, or the one that ``VIDLLM_WEIGHTS`` names.

    Raises:
        WorkError: the install lacks it. InputError: ``VIDLLM_WEIGHTS`` is no folder.
    """
    elsewhere = os.environ.get("VIDLLM_WEIGHTS")
    if elsewhere:
        return input_folder(elsewhere, "VIDLLM_WEIGHTS")
    try:
        folder = Path(str(files("vidllm.weights")))
    except ModuleNotFoundError:
        raise WorkError("the weights folder is missing: install vidllm again") from None
    return folder


def manifest() -> dict[str, Any]:
    """The contents of ``weights/manifest.json``. Raises ``WorkError`` if missing or damaged."""
    file = weights_dir() / "manifest.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkError("weights/manifest.json is missing: get the weights again") from None
    except ValueError as error:
        raise WorkError(f"weights/manifest.json cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise WorkError('weights/manifest.json lacks "files": get the weights again')
    return found


def shipped_models() -> list[str]:
    """Names of the models in the weights folder, sorted."""
    return sorted(entry.parent.name for entry in weights_dir().glob("*/config.json"))


def sample_videos() -> list[Path]:
    """The sample videos in the weights folder, sorted by name."""
    folder = weights_dir() / "samples"
    kinds = {".mp4", ".mkv", ".webm"}
    return sorted(entry for entry in folder.glob("*") if entry.suffix in kinds)


def default_model() -> Path:
    """The folder of the model that is used when none is named. Raises ``WorkError`` if absent."""
    name = manifest().get("default")
    if name not in shipped_models():
        raise WorkError(f"the shipped model {name!r} is not in the weights folder: get it again")
    return weights_dir() / str(name)


def find_model(name: str) -> str:
    """What a model name stands for: the path of a shipped model or a folder, or the hub name.

    Raises:
        InputError: a folder without ``config.json``, or a name that is none of the three; the
            message names close matches.
    """
    if name in shipped_models():
        return str(weights_dir() / name)
    look(name, "the model")
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # no such user
        folder = Path(name)
    if (found := look(folder)) is not None and stat.S_ISDIR(found.st_mode):
        input_folder(folder, "the model")
        if find_tuned(folder) is not None:
            return str(folder)
        if is_file(folder / "adapter_config.json") and not is_file(folder / "config.json"):
            raise InputError(
                f"{shown(name)} holds an adapter of PEFT and no model: load its base model, put "
                "the adapter on it with PeftModel.from_pretrained, and give that model object with "
                "processor="
            )
        input_file(folder / "config.json", "file", missing=f"{shown(name)} holds no model: "
                   "config.json is missing")  # fmt: skip
        return str(folder)
    if found is not None:
        raise InputError(f"{shown(name)} is a file: give the folder that holds the model")
    looks_local = name.startswith((".", "~", "/")) or (is_folder(folder.parent) and "/" in name)
    if is_hub_name(name) and not looks_local:
        return name  # left to the hub
    if "/" in name:
        raise InputError(f"{shown(name)}: no such model folder")
    known = shipped_models()
    hint = did_you_mean(name, known) if known else "give a folder or OWNER/NAME"
    raise InputError(f"no model '{shown(name)}': {hint}")


def trained_frames(name: str | None) -> int | None:
    """Frames of a clip that a model was trained with, from its config; None where it says nothing.

    Args:
        name: what ``find_model`` gave, or None for the shipped default.
    """
    file = (default_model() if name is None else Path(name)) / "config.json"
    if not is_file(file):  # a name on the hub
        return None
    frames = read_config(file.parent).get("frames")
    return frames if isinstance(frames, int) else None


def trained_fps(name: str | None) -> float | None:
    """The rate at which a model reads its clips, from its config; None for a number of frames.

    Args:
        name: as for `trained_frames`.
    """
    file = (default_model() if name is None else Path(name)) / "config.json"
    found = read_config(file.parent).get("fps") if is_file(file) else None
    return float(found) if isinstance(found, (int, float)) and found > 0 else None


def broken_files() -> list[str]:
    """What is wrong with the files of the manifest, one line each; empty when all are right."""
    problems = []
    for name, wanted in sorted(manifest()["files"].items()):
        file = weights_dir() / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif sha256(file) != wanted:
            problems.append(f"{name} is not the file that was shipped (sha256 differs)")
    return problems


def write_manifest(default: str, sample: str) -> Path:
    """Write ``manifest.json`` anew for what is in the weights folder now.

    Args:
        default: the model used when none is named. sample: the video of ``make ask``, relative to
            the folder.

    Raises:
        InputError: one of the two is not there.
    """
    folder = weights_dir()
    for name in (f"{default}/config.json", sample):
        if not (folder / name).is_file():
            raise InputError(f"{name} is not in the weights folder")
    files = {name: sha256(folder / name) for name in weight_files()}
    file = folder / "manifest.json"
    found = {"default": default, "sample": sample, "files": files}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return file


def weight_files() -> list[str]:
    """Files of the weights folder that the manifest covers, relative to it, sorted.

    A model may be a training's folder as it stands: what is hidden, or only there to go on from,
    is not among them.
    """
    folder = weights_dir()
    names = [entry.relative_to(folder) for entry in folder.rglob("*") if entry.is_file()]
    own = {"__init__.py", "manifest.json"}
    return sorted(
        name.as_posix() for name in names if name.as_posix() not in own and _is_shipped(name)
    )


def _is_shipped(name: Path) -> bool:
    """Whether a file, relative to the weights folder, is one of a model or a sample."""
    parts = name.parts
    aside = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not aside and not any(part in _TRAINING or part.startswith(_KEPT) for part in parts[1:])
