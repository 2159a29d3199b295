"""The file of answers that `vidllm eval --out` keeps: one JSON line a question, resumable.

The first line holds the settings. A run with the same settings goes on where the file ends; one
with others is refused, so that answers of two models never mix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidllm.errors import InputError, WorkError

from .metrics import Reply

#: What a receipt tells a run: seconds by stage and counts.
Cost = dict[str, Any]


class AnswerFile:
    """Replies and costs by question id; with a path they are kept on disk.

    Args:
        path: a .jsonl file, made if it is not there; None keeps nothing.
        settings: what the answers depend on.

    Raises:
        InputError: a file of other settings, or one that is damaged or cannot be written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.replies: dict[str, Reply] = {}
        self.costs: dict[str, Cost] = {}
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                self._read(path, settings)
            else:
                path.write_text(_line({"settings": settings}), encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--out {path} cannot be used: {error}") from error

    def add(self, replies: Sequence[Reply], cost: Cost) -> None:
        """Keep the answers about one clip."""
        for reply in replies:
            self.replies[reply.id] = reply
            self.costs[reply.id] = cost
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(_line({**r.as_dict(), "cost": cost}) for r in replies))
        except OSError as error:
            raise WorkError(
                f"--out {self.path} cannot be written: {error.strerror or error}"
            ) from error

    def _read(self, path: Path, settings: dict[str, Any]) -> None:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a run that was ended may leave half a line
        lines = whole.splitlines()
        try:
            before = json.loads(lines[0])["settings"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"--out {path} is no answer file: its first line holds no settings; "
                "give another name"
            ) from error
        for key in {**settings, **before}:
            if before.get(key) != settings.get(key):
                raise InputError(
                    f"--out {path} holds answers of another run ({key}: {before.get(key)}, not "
                    f"{settings.get(key)}): give another name, or delete it"
                )
        for number, line in enumerate(lines[1:], 2):
            try:
                row = json.loads(line)
                self.replies[row["id"]] = Reply.from_dict(row)
                self.costs[row["id"]] = dict(row["cost"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"line {number} of --out {path} is damaged: delete the line, or the file"
                ) from error
        if len(whole) != len(text):
            path.write_text(whole, encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
