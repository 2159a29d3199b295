"""The whole resolved configuration of a run: what `run.json` holds."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError
from vidllm.errors.paths import input_folder
from vidllm.errors.writing import sha256

from ..tasks.base import Item, Task, check_split
from ..tasks.files import HUB, annotation_files
from .ask_model import Asker
from .clips import clips_of, items_of, video_folders
from .progress_bar import bar
from .records import FORMAT, prompts_mark
from .run_settings import Wanted

if TYPE_CHECKING:
    from vidllm.cli.options import CommonOptions

#: Packages that answers depend on.
PACKAGES = ("vidllm", "torch", "transformers", "av")


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Args:
        task: the benchmark, with its options. split: of it, None for the usual one.
        wanted: compressors and shares.
        data: folder of the annotation files; None for a benchmark that makes its own.
        videos: folder of the videos, None for the usual places.
        limit: only so many videos. out: folder to keep, None for none.
        max_new_tokens: the longest answer, None for the task's.
        retry_failed: ask again what failed before.
        memory: measure memory on a CPU too.
        jobs: processes that write videos of a benchmark that makes its own.
        baselines: score answers without a video, where the benchmark has some.
        anyway: score the shipped model also on a benchmark of real footage.
        kinds: ask only questions of these kinds; empty for all.
        skip_refused: leave out what the model cannot serve and note why, instead of ending.
        engine: who runs the model; None for transformers. engine_options: of vLLM's `LLM`.
    """

    task: Task
    wanted: Wanted
    split: str | None = None
    data: Path | None = None
    videos: Path | None = None
    limit: int | None = None
    out: Path | None = None
    max_new_tokens: int | None = None
    retry_failed: bool = False
    memory: bool = False
    jobs: int = 1
    baselines: bool = False
    anyway: bool = False
    kinds: tuple[str, ...] = ()
    skip_refused: bool = False
    engine: str | None = None
    engine_options: dict[str, Any] | None = None

    def items(self, data: Path, split: str) -> list[Item]:
        """What is asked, in order, before the limit. Raises InputError as `clips.items_of`."""
        found = items_of(self.task, data, split)
        return [item for item in found if not self.kinds or item.kind in self.kinds]

    @property
    def most(self) -> int | None:
        """How many videos there are at most."""
        usual: int | None = getattr(self.task, "usual_limit", None)
        return usual if self.limit is None else self.limit

    def prepared(self, options: CommonOptions) -> tuple[Path, str]:
        """The folder of the annotation files, made where the benchmark makes its own; the split.

        Raises:
            InputError: no folder, or no such split.
        """
        split = check_split(self.task, self.split)
        prepare = getattr(self.task, "prepare", None)
        if prepare is not None:
            with bar("writing videos") as progress:
                made: Path = prepare(
                    self.data,
                    split,
                    seed=options.seed,
                    limit=self.most,
                    jobs=self.jobs,
                    progress=progress,
                )
            return made, split
        if self.data is None:
            home = f" (from {self.task.home})" if self.task.home else ""
            raise InputError(
                f"--data is missing: give the folder with the files of {self.task.name}{home}"
            )
        data = self.data.expanduser()
        if data == HUB and self.videos is None:
            raise InputError("--data hub brings the annotations alone: give --videos DIR too")
        if data != HUB:
            input_folder(data, "--data")
        if self.videos is not None:
            input_folder(self.videos, "--videos")
        return data, split


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
        **({"engine_options": order.engine_options} if order.engine_options else {}),
        "recipe": options.recipe,
        **{name: value for name, value in _of_hub(options).items() if value is not None},
        "settings": [setting.as_dict() for setting in asker.settings()],
        **({"kinds": list(order.kinds)} if order.kinds else {}),
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


def _of_hub(options: CommonOptions) -> dict[str, str | None]:
    """Of which version and with which adapters a hub model answers."""
    adapter = None if options.adapter is None else str(Path(options.adapter).resolve())
    return {"revision": options.revision, "adapter": adapter}


def fingerprints(task: Task, data: Path, split: str) -> dict[str, str]:
    """sha256 of the annotation files, by their place below the data folder."""
    paths = annotation_files(task, data, split)
    return {path.relative_to(data).as_posix(): sha256(path) for path in paths}


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
