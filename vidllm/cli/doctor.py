"""Checks of an install, for ``vidllm doctor``: what is there, what is broken, what to do."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path

from vidllm.errors import VidllmError
from vidllm.models.folder import read_config
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.heads.head_config import HeadConfig
from vidllm.models.model_options import ATTENTION
from vidllm.models.shipped import (
    broken_files,
    default_model,
    manifest,
    sample_videos,
    shipped_models,
    weights_dir,
)

_LOW_DISK = 2 * 1024**3


@dataclass(frozen=True)
class Check:
    """One thing looked at: ``state`` is ok, absent (an extra), warning or broken."""

    name: str
    state: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        """The three fields, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.state:<7} {self.name:<14} {self.detail}"


def examine() -> list[Check]:
    """Every check in turn; one that fails in an unforeseen way is reported as broken."""
    found: list[Check] = []
    for part in (_python, _packages, _device, _attention, _decoders, _weights, _commands, _disk):
        found += _guarded(part)
    return found


def _guarded(part: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(part())
    except VidllmError as error:
        return [Check(part.__name__.strip("_"), "broken", str(error))]
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check(part.__name__.strip("_"), "broken", what)]


def _python() -> Iterator[Check]:
    detail = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Check("python", "ok" if sys.version_info >= (3, 10) else "broken", detail)


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    for line in requires("vidllm") or []:
        wanted = Requirement(line)
        if wanted.marker is not None:  # an extra, or another platform
            continue
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            yield Check(wanted.name, "broken", f"not installed: pip install '{wanted}'")
            continue
        if wanted.specifier.contains(have, prereleases=True):
            yield Check(wanted.name, "ok", have)
        else:
            yield Check(wanted.name, "broken", f"{have} is too old: pip install '{wanted}'")
    if find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            what = " ".join(str(error).split())
            help_ = "install the build that matches torch, or remove it"
            yield Check("torchvision", "broken", f"does not import ({what}): {help_}")
        else:
            yield Check("torchvision", "ok", version("torchvision"))


def _device() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        detail = f"cuda: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    elif torch.backends.mps.is_available():
        detail = "mps"
    else:
        detail = f"cpu: {torch.get_num_threads()} threads, {os.cpu_count()} cores"
    value = float((torch.ones(2, 2) @ torch.ones(2, 2)).sum())
    yield Check("device", "ok" if value == 8.0 else "broken", detail)


def _attention() -> Iterator[Check]:
    flash = find_spec("flash_attn") is not None
    names = [name for name in ATTENTION if flash or not name.startswith("flash")]
    yield Check("attention", "ok", ", ".join(names))
    if not flash:
        yield Check("flash-attn", "absent", "needs CUDA: pip install 'vidllm[flash]'")


def _decoders() -> Iterator[Check]:
    from av.codec import Codec

    wanted = ("h264", "hevc", "vp9", "av1", "mpeg4", "gif")
    missing = []
    for name in wanted:
        try:
            Codec(name, "r")
        except Exception:  # PyAV's own error, whose place in the package changed between versions
            missing.append(name)
    detail = f"reads {', '.join(name for name in wanted if name not in missing)}"
    if missing:
        detail += f"; not {', '.join(missing)}"
    yield Check("pyav", "broken" if "h264" in missing else "ok", detail)
    installed = [name for name in ("decord", "decord2") if _has(name)]
    if len(installed) == 2:
        yield Check("decord", "broken", "decord and decord2 clash: pip uninstall decord2")
    elif not installed:
        yield Check("decord", "absent", "a second reader: pip install 'vidllm[decord]'")
    else:
        importlib.import_module("decord")
        yield Check("decord", "ok", f"{installed[0]} {version(installed[0])}")


def _weights() -> Iterator[Check]:
    from vidllm.video import load_video

    problems = [f"{problem}: get the weights folder again" for problem in broken_files()]
    problems += _unfit_models()
    for problem in problems:
        yield Check("weights", "broken", problem)
    if not problems:
        count = len(manifest()["files"])
        yield Check("weights", "ok", f"{default_model().name}, {count} files as shipped")
    samples = sample_videos()
    if not samples:
        yield Check("sample", "broken", f"no sample video in {weights_dir() / 'samples'}")
        return
    clip = load_video(samples[0], frames=2)
    state = "broken" if clip.notes or len(clip) != 2 else "ok"
    detail = f"{samples[0].name}: {clip.width}x{clip.height}, {clip.duration:.1f} s"
    yield Check("sample", state, detail)


def _unfit_models() -> Iterator[str]:
    """What is wrong with shipped models that need another one, by their configs alone."""
    from vidllm.models.deltas import base_of

    for name in shipped_models():
        folder = weights_dir() / name
        try:
            config = read_config(folder)
            base_of(str(folder), config)
            if config.get("model_type") != HEAD_TYPE:
                continue
            head = HeadConfig.read(folder)
        except (VidllmError, OSError) as error:
            yield str(error)
            continue
        under = head.start or head.guard  # a guard only counts where nothing is stood on
        # What a head for trying out stands on lies in its own folder; a path is somebody's own.
        inside = not Path(under).is_absolute() and (folder / under / "config.json").is_file()
        if under and under not in shipped_models() and not inside:
            yield f"{name} needs the model {under}, which does not ship: get the weights again"


def _commands() -> Iterator[Check]:
    for entry in sorted(entry_points(group="vidllm.commands"), key=lambda item: item.name):
        try:
            entry.load()
        except ModuleNotFoundError as error:
            lacks = error.name or "a module"
            state = "broken" if lacks.startswith("vidllm") else "absent"
            yield Check(f"vidllm {entry.name}", state, f"needs {lacks}")
        else:
            yield Check(f"vidllm {entry.name}", "ok", entry.value.split(":")[0])


def _disk() -> Iterator[Check]:
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    while not cache.exists():
        cache = cache.parent
    for name, folder in (("disk here", Path.cwd()), ("disk of models", cache)):
        free = shutil.disk_usage(folder).free
        detail = f"{free / 2**30:.1f} GiB free"
        state = "ok" if free >= _LOW_DISK else "warning"
        yield Check(name, state, detail if state == "ok" else f"{detail}: make room")


def _has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
