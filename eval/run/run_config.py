"""The whole resolved configuration of a run: what `run.json` holds."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tasks.base import Item, Task
from ..tasks.files import HUB, annotation_files
from .ask_model import Asker
from .clips import clips_of, video_folders
from .records import FORMAT, prompts_mark

if TYPE_CHECKING:
    from vidllm.cli.options import CommonOptions

    from .evaluate import Order

#: Packages that answers depend on.
PACKAGES = ("vidllm", "torch", "transformers", "av")


def resolved(
    order: Order,
    options: CommonOptions,
    asker: Asker,
    items: Sequence[Item],
    data: Path,
    split: str,
) -> dict[str, Any]:
    """The whole configuration of a run, for run.json."""
    task, about = order.task, asker.about()
    limits = {n: getattr(options, n) for n in ("max_pixels", "max_seconds", "max_frames")}
    return {
        "format": FORMAT,
        "task": task.name,
        "family": task.family,
        "split": split,
        "options": asdict(task) if is_dataclass(task) else {},
        "limit": order.most,
        "items": len(items),
        "clips": len(clips_of(items)),
        "data": str(data if data == HUB else data.resolve()),
        "videos": [str(folder.resolve()) for folder in video_folders(data, order.videos)],
        "files": fingerprints(task, data, split),
        "prompts": prompts_mark(items),
        **about,
        "recipe": options.recipe,
        "settings": [setting.as_dict() for setting in asker.settings()],
        "frames": options.frames,
        "fps": options.fps,
        "tokens": options.tokens,
        "reader": options.reader,
        "limits": {name: value for name, value in limits.items() if value is not None},
        "attn": options.attn,
        "seed": options.seed,
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": commit(),
    }


def fingerprints(task: Task, data: Path, split: str) -> dict[str, str]:
    """sha256 of the annotation files, by their place below the data folder."""
    found = {}
    for path in annotation_files(task, data, split):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        found[path.relative_to(data).as_posix()] = digest.hexdigest()
    return found


def commit() -> str | None:
    """The commit of the checkout that runs, with "-dirty" where it was changed; None elsewhere."""
    import vidllm

    top = Path(vidllm.__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
