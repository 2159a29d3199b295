"""What a system without an LLM is made of, as its folder keeps it; quick to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.schema import Anything, Array, Integer, Number, Object, String, damage, validate

MODEL_TYPE = "vidllm-head"
#: What a system does, by the course that it was taught.
ANSWERS = {
    "alignment": "says when a sentence happens",
    "choice": "chooses among the options of a question",
    "recognition": "names an action",
}
COURSES = tuple(ANSWERS)
_ADVICE = "get the model again, or train it again"
_PARTS = Object(other=Anything())
_SCHEMA = Object(
    {
        "model_type": String(enum=(MODEL_TYPE,)),
        "recipe": String(longest=100),
        "course": String(enum=COURSES),
    },
    {
        "start": String(longest=4096),
        "mark": String(longest=64),
        "frames": Integer(0, 10**6),
        "fps": Number(0, 1000),
        "reads": String(longest=20),
        "text": _PARTS,
        "head": _PARTS,
        "encoder": _PARTS,
        "labels": Array(String(longest=1000), 0, 10**5),
        "guard": String(longest=4096),
    },
    other=Anything(),
)


@dataclass(frozen=True)
class HeadConfig:
    """What a system without an LLM is made of.

    Args:
        recipe: its name. course: what it was taught, which says what it answers.
        start: the model whose frozen part it stands on: a shipped name, or a folder; "" for none.
        mark: of that part's weights (see `frozen_frames.frozen_mark`).
        frames: of a clip, if it takes a number of them; fps: else at which rate.
        reads: which features of the frozen part.
        text: options of the sentence encoder. head: {"name": …} and options of the head.
        encoder: {"name": …} and options of a vision encoder. labels: that it tells apart.
        guard: of a system without a start, the model whose footage it was taught on: it answers
            about what that model knows; "" for no claim.
    """

    recipe: str
    course: str
    start: str = ""
    mark: str = ""
    frames: int = 0
    fps: float = 0.0
    reads: str = "mixed"
    text: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    guard: str = ""

    #: As `Spending` asks a config of transformers: there is no decoder to be accounted for.
    model_type = MODEL_TYPE

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        return {"model_type": MODEL_TYPE, **asdict(self), "labels": list(self.labels)}

    @classmethod
    def read(cls, folder: Path) -> HeadConfig:
        """The config of a folder.

        Raises:
            InputError: none, or a damaged one.
        """
        file = folder / "config.json"
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(damage(file, "it is no JSON", _ADVICE)) from error
        if isinstance(told, dict) and told.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise InputError(
                f"{folder.name} is no system without an LLM: VideoLLM.from_pretrained loads it"
            )
        validate(told, _SCHEMA, file, _ADVICE)
        known = {item.name for item in fields(cls)}
        given = {name: value for name, value in told.items() if name in known}
        return cls(**{**given, "labels": tuple(told.get("labels", ()))})
