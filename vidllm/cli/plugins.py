"""Sub-commands that other rooms and other packages add: listed at once, loaded when used."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import guard_command

from .loading import imports_kept

# One line a command for `--help`, so that listing the commands loads none of them.
_PLUG_INS = {
    "eval": "Score a model on a benchmark: mIoU, R1@m, QA accuracy, tokens, seconds.",
    "report": "Write a page, plots and tables of evaluations.",
    "index": "Read a long video once, to ask it often.",
    "library": "Search a folder of indexed videos.",
    "bench": "Measure readers, compressors, methods, encoders, models and long videos.",
    "advise": "Say which method to take for a task at a share, from measured tables.",
    "cost": "Predict FLOPs and KV cache, and how much faster a run can get at most.",
    "train": "Train a recipe, in stages, resumable.",
    "demo": "Open the web page: a video, a question, the answer with its times.",
    "serve": "Serve a model with vLLM, its videos compressed (OpenAI-compatible).",
}
_EXTRAS = {"gradio": "demo", "decord": "decord", "cv2": "opencv", "flash_attn": "flash"}


class _Later(TyperCommand):
    """A plug-in command that is listed but not loaded."""

    def __init__(self, entry: EntryPoint) -> None:
        super().__init__(entry.name, help=_PLUG_INS.get(entry.name, f"From {entry.module}."))
        self.entry = entry

    def load(self) -> Any:
        """The real command. Raises ``InputError`` when a package that it needs is missing."""
        try:
            with imports_kept():
                app = self.entry.load()
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in ("", "vidllm"):
                raise WorkError(f"command {self.name!r} is missing: {error}") from error
            extra = _EXTRAS.get(package)
            what = f"'vidllm[{extra}]'" if extra else package
            raise InputError(f"{self.name} needs {package}: pip install {what}") from error
        if not isinstance(app, typer.Typer):
            raise WorkError(f"command {self.name!r} ({self.entry.value}) is not a typer.Typer")
        command = typer.main.get_command(app)
        command.name = self.name
        completion = ("install_completion", "show_completion")  # of a program, not of its parts
        command.params = [item for item in command.params if item.name not in completion]
        return command


class Commands(TyperGroup):
    """The commands of this file, then those of the entry-point group."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = list(self.commands)
        rest = [name for name in plug_ins() if name not in own]
        known = [name for name in _PLUG_INS if name in rest]
        return own + known + sorted(set(rest) - set(known))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = self.commands.get(cmd_name)
        entry = plug_ins().get(cmd_name)
        return found if found or entry is None else _Later(entry)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, _Later):
            foreign = not command.entry.module.startswith("vidllm.")
            command = command.load()
            return name, command if foreign else guard_command(command), rest
        return name, guard_command(command) if command is not None else command, rest


def plug_ins() -> dict[str, EntryPoint]:
    """The sub-commands that other rooms and other packages add, by name."""
    return {entry.name: entry for entry in entry_points(group="vidllm.commands")}
