"""A folder of adapters, as `vidllm train hub` writes it: what was trained beside a hub model.

It holds a LoRA in peft's own form, a temporal encoder and learned reducers, each as safetensors,
and says whose they are. Quick to import.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vidllm.errors import InputError
from vidllm.errors.bounds import SPEC_SIGNS
from vidllm.errors.paths import is_file
from vidllm.errors.schema import (
    Anything,
    Integer,
    Nullable,
    Number,
    Object,
    String,
    parse,
    validate,
)

#: The file that says whose the adapters are.
STAMP = "training.json"
#: The LoRA's files, as peft has them.
LORA, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: The temporal encoder's.
TEMPORAL = "temporal.safetensors"
_ADVICE = "train again in another folder"
_STAMP = Object(
    {
        "adapters_of": String(longest=4096),
        "model_type": String(longest=100),
        "width": Integer(1, 2**20),
        "layers": Integer(1, 4096),
        "compressors": String(longest=SPEC_SIGNS),
        "keep": Nullable(Number(1e-12, 1)),
        "frames": Integer(1, 10**6),
    },
    other=Anything(),
)


@dataclass(frozen=True)
class Tuned:
    """What a folder of adapters says.

    Attributes:
        folder: where they are. model: folder or hub name of the model that they stand beside.
        model_type, width, layers: of its decoder, to see that another model is none.
        compressors, keep, frames: that it was trained with.
    """

    folder: Path
    model: str
    model_type: str
    width: int
    layers: int
    compressors: str
    keep: float | None
    frames: int

    @property
    def lora(self) -> bool:
        """Whether there is a LoRA among them."""
        return is_file(self.folder / LORA)


def find_tuned(folder: str | os.PathLike[str] | None) -> Tuned | None:
    """The adapters of a folder; None where it is no folder of adapters.

    Raises:
        InputError: a damaged one.
    """
    if folder is None:
        return None
    home = Path(folder)
    stamp = home / STAMP
    if is_file(home / "config.json") or not is_file(stamp):
        return None
    told = parse(stamp.read_bytes(), stamp, _ADVICE)
    if not isinstance(told, dict) or "adapters_of" not in told:
        return None
    validate(told, _STAMP, stamp, _ADVICE)
    names = ("model_type", "width", "layers", "compressors", "keep", "frames")
    return Tuned(home, told["adapters_of"], **{name: told[name] for name in names})


def check_tuned(tuned: Tuned, model_type: str, width: int, layers: int) -> None:
    """See that adapters were made for a model.

    Raises:
        InputError: they were made for another one.
    """
    if (tuned.model_type, tuned.width, tuned.layers) != (model_type, width, layers):
        raise InputError(
            f"the adapters in {tuned.folder} were trained beside a {tuned.model_type} of width "
            f"{tuned.width} with {tuned.layers} layers, and the model is a {model_type} of width "
            f"{width} with {layers}: load them on {tuned.model}"
        )
