"""What a model is made of, as far as recipes ask; quick to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelParts:
    """What a model is made of.

    Attributes:
        vision: type of its tower. temporal: names of its temporal encoders, in order.
        time_code: how it tells time. learned: methods whose trained weights lie beside its own.
        recipe: the system that it was trained as, "" for none.
    """

    vision: str = ""
    temporal: tuple[str, ...] = ()
    time_code: str = ""
    learned: tuple[str, ...] = ()
    recipe: str = ""

    @property
    def mixing(self) -> tuple[str, ...]:
        """The temporal encoders that mix something."""
        return tuple(name for name in self.temporal if name != "identity")


def native_parts(config: Mapping[str, Any], folder: Path | None) -> ModelParts:
    """Those of a model of this project.

    Args:
        config: as its config.json. folder: where weights of methods may lie beside its own.
    """
    beside = () if folder is None else folder.glob("*.safetensors")
    return ModelParts(
        vision=str((config.get("vision") or {}).get("type", "conv")),
        temporal=tuple(str(spec.get("name")) for spec in config.get("temporal") or []),
        time_code=str(config.get("time_code", "relative")),
        learned=tuple(sorted(file.stem for file in beside)),
        recipe=str(config.get("recipe") or ""),
    )


def hub_parts(kind: str, temporal: Sequence[str] = ()) -> ModelParts:
    """Those of a model of another family, by its type.

    Args:
        temporal: encoders that were put into it; it has none of its own.
    """
    return ModelParts(vision=kind, temporal=tuple(temporal), time_code="text")
