"""What is trained beside a hub model: its temporal encoder and its learned reducers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from vidllm.compressors import Compressor
from vidllm.compressors.shared.learned import Learned
from vidllm.encoders.temporal import temporal_names
from vidllm.errors import InputError
from vidllm.errors.bounds import short
from vidllm.errors.disk import unwritten
from vidllm.errors.paths import is_file, is_folder
from vidllm.errors.registry import did_you_mean
from vidllm.errors.writing import whole_file
from vidllm.tokens import VideoTokens

from ..families.family import Adapter
from .temporal import TemporalAdapter

#: The name that they have among a model's modules while they are attached.
NAME = "vidllm"


class LearnedParts(nn.ModuleDict):
    """The modules that a method and a temporal encoder bring along, by name.

    Args:
        adapter: of the model, for whose embeddings the modules are made. method: the compressors;
            learned ones among them have these very modules from then on. temporal: an encoder.

    Raises:
        InputError: modules that are for embeddings of another width.
    """

    def __init__(
        self, adapter: Adapter, method: Compressor, temporal: TemporalAdapter | None = None
    ) -> None:
        super().__init__()
        place = cast(Any, adapter.decoder).get_input_embeddings().weight.device
        place = torch.device("cpu") if place.type == "meta" else place  # offloaded
        width, kind = width_of(adapter)
        if temporal is not None:
            temporal.check_model(width, kind)
            self["temporal"] = temporal.to(place)
        blank = VideoTokens.from_grid(torch.zeros(1, 1, 1, width, device=place), [0.0], 1.0)
        for item in learned_in(method):
            self[item.name] = item.ready(blank)

    @property
    def encoder(self) -> TemporalAdapter | None:
        """The temporal encoder."""
        return cast(TemporalAdapter, self["temporal"]) if "temporal" in self else None

    @contextmanager
    def attached(self, core: nn.Module) -> Iterator[None]:
        """In the block they are a part of the model: its `parameters`, `train`, `to`, state."""
        if not len(self):
            yield
            return
        self.train(core.training)
        core.add_module(NAME, self)
        try:
            yield
        finally:
            delattr(core, NAME)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write each part into a folder: `temporal.safetensors`, `<method>.safetensors`.

        Raises:
            WorkError: it cannot be written.
        """
        if self.encoder is not None:
            self.encoder.save_pretrained(folder)
        for name, module in self.items():
            if isinstance(module, TemporalAdapter):
                continue
            path = Path(folder) / f"{name}.safetensors"
            state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as part:
                    part.write_bytes(save(state, {"format": "pt"}))
            except (OSError, SafetensorError) as error:
                raise unwritten(path, error) from error


def learned_in(method: Compressor) -> Iterator[Learned]:
    """The learned methods of a method or chain, also inside wrappers."""
    for item in method.methods:
        inner = getattr(item, "inner", None)
        if isinstance(item, Learned):
            yield item
        elif isinstance(inner, Compressor):
            yield from learned_in(inner)


def width_of(adapter: Adapter) -> tuple[int, str]:
    """The width of a model's embeddings, and its type."""
    table = cast(Any, adapter.decoder).get_input_embeddings().weight
    return int(table.shape[-1]), str(adapter.config.model_type)


#: The name of an encoder, or options with it (of one or several), a file or folder of one that was
#: saved, or the encoder itself.
Temporal = (
    str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] | TemporalAdapter
)


def read_temporal(told: Temporal) -> list[Mapping[str, Any]] | TemporalAdapter:
    """What is meant by a temporal encoder: new ones by name and options, or one that was saved.

    Raises:
        InputError: no such name or file.
    """
    if isinstance(told, TemporalAdapter):
        return told
    if isinstance(told, str) and told in temporal_names():
        return [{"name": told}]
    if isinstance(told, str | os.PathLike):
        if is_folder(told) or is_file(told):
            return TemporalAdapter.load(told)
        hint = did_you_mean(str(told), temporal_names(), otherwise="vidllm list encoders")
        raise InputError(
            f"no temporal encoder '{told}': {hint}; or give the folder of one that was saved"
        )
    specs: list[Any] = list(told) if isinstance(told, Sequence) else [told]
    for spec in specs:
        if not isinstance(spec, Mapping) or spec.get("name") not in temporal_names():
            raise InputError(
                f"a temporal encoder is {{'name': …}} with its options, not {short(spec)} "
                "(vidllm list encoders)"
            )
    if not specs:
        raise InputError("no temporal encoder was given: leave out temporal")
    return specs


def find_temporal(adapter: Adapter, told: Temporal, recipe: str = "") -> TemporalAdapter:
    """The temporal encoder that is meant, for a model; a new one is the identity.

    Args:
        recipe: the system that a new one becomes a part of.

    Raises:
        InputError: no such name, option or file, an encoder that is not the identity before
            training, or one of another model.
    """
    width, kind = width_of(adapter)
    found = read_temporal(told)
    if not isinstance(found, TemporalAdapter):
        found = TemporalAdapter(found, width, kind, recipe)
        found.check_new()
    found.check_model(width, kind)
    return found
