"""What the classes of a room say of themselves, read from their source and not imported.

`vidllm list` prints names and one-line summaries, which stand in the classes as plain values;
importing the methods to get at them would import torch, which takes many times as long.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Room:
    """The classes and constants of a package, from its source files.

    Args:
        package: dotted name, for example "vidllm.compressors"; not imported.
    """

    def __init__(self, package: str) -> None:
        self.constants: dict[str, Any] = {}
        self._classes: dict[str, ast.ClassDef] = {}
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in Path(folder).rglob("*.py"):
                self._read(ast.parse(file.read_bytes()))

    def _read(self, module: ast.Module) -> None:
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                self._classes[node.name] = node
            else:
                self.constants.update(_values([node]))

    def registered(self, decorator: str) -> dict[str, dict[str, Any]]:
        """Attributes of the classes under a decorator such as `@register("aim")`, by name, sorted.

        Those of base classes in the same room count; what is no plain value is left out.
        """
        found = {}
        for node in self._classes.values():
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                    found[ast.literal_eval(call.args[0])] = self._attributes(node)
        return dict(sorted(found.items()))

    def _attributes(self, node: ast.ClassDef) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for base in reversed(node.bases):
            above = self._classes.get(ast.unparse(base))
            merged.update(self._attributes(above) if above is not None else {})
        return {**merged, **dict(_values(node.body))}


def compressor_summaries() -> list[dict[str, Any]]:
    """As `vidllm.compressors.describe`; nothing is imported where no other package has methods."""
    room = Room("vidllm.compressors")
    entries = []
    for name, its in room.registered("register").items():
        options = {
            option: {"default": value["default"], "help": value["metadata"].get("help", "")}
            for option, value in its.items()
            if isinstance(value, dict) and "metadata" in value
        }
        entries.append(
            {
                "name": name,
                "package": "vidllm",
                "stage": its["stage"],
                "query_aware": its["query_aware"],
                "needs": list(its["needs"]),
                "trained": room.constants["UNTRAINED"] if its["has_parameters"] else "",
                "same_as": its["same_as"],
                "paper": its["paper"],
                "summary": its["summary"],
                "options": options,
            }
        )
    if not entry_points(group="vidllm.compressors"):
        return entries
    from vidllm.compressors import describe

    entries += [entry for entry in describe() if entry["package"] != "vidllm"]
    return sorted(entries, key=lambda entry: str(entry["name"]))


def encoder_summaries() -> list[dict[str, Any]]:
    """Every encoder and head by name, kind, summary and paper, with those of other packages."""
    rooms = {
        "vision": ("vidllm.encoders.vision", "register_vision"),
        "temporal": ("vidllm.encoders.temporal", "register_temporal"),
        "head": ("vidllm.encoders.heads", "register_head"),
    }
    found = [{"name": "conv", "kind": "vision", "summary": "the project's small tower"}]
    for kind, (package, decorator) in rooms.items():
        room = Room(package)
        found += [
            {"name": name, "kind": kind, "summary": "a vision model of transformers"}
            for name in room.constants.get("HUB_TYPES", ())
        ]
        found += [
            {"name": name, "kind": kind, "summary": its["summary"], "paper": its["paper"]}
            for name, its in room.registered(decorator).items()
        ]
    if entry_points(group="vidllm.encoders"):
        found += _outside_encoders()
    return found


def _outside_encoders() -> Iterator[dict[str, Any]]:
    from vidllm.encoders import heads, temporal, vision

    rooms: dict[str, Any] = {
        "vision": (vision.vision_packages, vision.find_vision),
        "temporal": (temporal.temporal_packages, temporal.find_temporal),
        "head": (heads.head_packages, heads.find_head),
    }
    for kind, (packages, find) in rooms.items():
        for name, package in packages().items():
            cls = find(name)
            entry = {"name": name, "kind": kind, "summary": cls.summary, "paper": cls.paper}
            yield {**entry, "package": package}


def _values(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    """Names that statements give plain values; a dataclass `field` counts as its arguments."""
    for node in body:
        if isinstance(node, ast.AnnAssign):
            target: ast.expr = node.target
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and node.value is not None:
            try:
                yield target.id, _value(node.value)
            except ValueError:
                continue


def _value(node: ast.expr) -> Any:
    """The value of an expression. Raises ``ValueError`` for one that is not plain."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        return {str(part.arg): _value(part.value) for part in node.keywords}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _value(node.left) / _value(node.right)
    return ast.literal_eval(node)
