"""What is done about a file that already stands where an index is to be made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError
from vidllm.errors.paths import output_file

from .marks import is_index, method_facts, method_words, model_mark, source_mark
from .parts import other
from .store import IndexFile

if TYPE_CHECKING:
    from vidllm.models.engine import Engine

    from .build import Plan


def standing(engine: Engine, video: Path, place: Path, plan: Plan) -> bool:
    """Whether `place` holds the complete index of these very settings.

    False where nothing stands there, or an unfinished index of these settings.

    Args:
        plan: as it is carried out (`Plan.allowed`).

    Raises:
        InputError: something else stands there.
    """
    guard(place)
    if not place.exists():
        return False
    facts = IndexFile(place, check=False).facts
    before, now = _told(facts), _now(engine, video, plan)
    for key, value in now.items():
        if before.get(key) != value:
            words = other(key, before.get(key), value)
            if key == "source":
                words = f"another video ({facts['source']['name']})"
            raise InputError(
                f"{place} is there and was made with {words}: --force (force=True) makes it anew, "
                "or give another output file"
            )
    return bool(facts["complete"])


def guard(place: Path) -> None:
    """Refuse to write over what is no index.

    Raises:
        InputError: a folder, or a file that is no index.
    """
    output_file(place, "the index", beside=".part")
    if place.exists() and not is_index(place):
        raise InputError(f"{place} is there and is no index: give another output file")


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model", "fps", "near", "precision", "tower")
    told = {name: facts.get(name) for name in names}
    method = method_words(facts["compressor"])
    return {"source": facts["source"]["sha256"], **told, "compressor": method}


def _now(engine: Engine, video: Path, plan: Plan) -> dict[str, Any]:
    told = {"model": model_mark(engine), "fps": plan.fps, "near": plan.near}
    method = method_words(method_facts(engine.compressor))
    return {
        "source": source_mark(video)["sha256"],
        **told,
        "precision": plan.precision,
        "tower": plan.tower,
        "compressor": method,
    }
