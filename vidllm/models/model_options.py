"""Which model a command runs, and how it is loaded: options that every such command shares.

A command takes them all as `ModelOptions`, or some by their types. Quick to import: typer only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vidllm.errors import InputError
from vidllm.errors.paths import shown

from .tuned import Tuned, find_tuned

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
#: The heading of the help under which they stand.
PANEL = "The model"


def _option(name: str, help: str, **settings: Any) -> Any:
    return typer.Option(name, help=help, rich_help_panel=PANEL, **settings)


Model = Annotated[
    str | None,
    _option("--model", "Shipped name, folder or hub name; the shipped model if absent."),
]
Revision = Annotated[
    str | None, _option("--revision", "Branch, tag or commit of a model on the hub.")
]
AdapterFolder = Annotated[
    str | None,
    _option(
        "--adapter",
        "Adapters of vidllm train hub, on --model or on the model that they name.",
        metavar="DIR",
    ),
]
Device = Annotated[str | None, _option("--device", "cpu, cuda, cuda:1, mps; the best if absent.")]
DeviceMap = Annotated[
    str | None,
    _option(
        "--device-map",
        "How a hub model is spread over devices, instead of --device: auto, balanced, …",
    ),
]
Dtype = Annotated[str | None, _option("--dtype", f"Number type: {', '.join(DTYPES)}.")]
Attn = Annotated[str | None, _option("--attn", f"Attention: {', '.join(ATTENTION)}.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command and how it is loaded; as for `VideoLLM.from_pretrained`."""

    model: Model = None
    revision: Revision = None
    adapter: AdapterFolder = None
    device: Device = None
    device_map: DeviceMap = None
    dtype: Dtype = None
    attn: Attn = None

    def tuned(self) -> Tuned | None:
        """What the folder of adapters says; None without one. Raises `InputError` for another."""
        return adapters_of(self.adapter)

    def named(self) -> str | None:
        """The model, or the one that the adapters name; None for the shipped one.

        Raises:
            InputError: no such adapters.
        """
        return self.model or (None if (tuned := self.tuned()) is None else tuned.model)

    def loading(self) -> dict[str, Any]:
        """All but the model, for `from_pretrained`."""
        names = ("revision", "adapter", "device", "device_map", "dtype", "attn")
        return {name: getattr(self, name) for name in names}


def adapters_of(folder: str | None) -> Tuned | None:
    """What a folder given as --adapter says; None without one.

    Raises:
        InputError: it holds no adapters.
    """
    found = find_tuned(folder)
    if found is None and folder is not None:
        raise InputError(
            f"--adapter: no adapters in {shown(folder)}: give a folder of vidllm train hub"
        )
    return found
