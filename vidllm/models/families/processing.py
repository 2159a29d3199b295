"""What goes with a hub model's weights: its tokenizer, its chat template and how pixels are made.

From the files beside the weights, or from a processor of transformers that the caller has.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from vidllm.errors import InputError

from .own_processor import OwnProcessor
from .pixel_files import FILES, complete, pixel_options
from .served import FAMILIES, OWN_PIXELS


@dataclass(frozen=True)
class Processing:
    """What it takes to ask a model, beside its weights.

    Attributes:
        tokenizer: of it. template: its chat template, or None for the family's documented one.
        pixels: options of `pixels.video_pixels`. processor: the family's own instead, where that
            makes the pixels.
        source: whose files `save` writes: a processor object, or a place with the hub's options.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    pixels: dict[str, Any] = field(default_factory=dict)
    processor: OwnProcessor | None = None
    source: Any = None

    @classmethod
    def beside(cls, place: str, kind: str, hub: Mapping[str, Any]) -> Processing:
        """From the files of a folder or of a name on the hub.

        Args:
            kind: the model type. hub: revision, token and so on.

        Raises:
            InputError: files of the tokenizer or of the preprocessor that are missing.
        """
        own = kind in OWN_PIXELS
        pixels = pixel_options(place, kind, **hub) if own else {}
        processor = None if own else OwnProcessor.load(place, FAMILIES[kind][0], **hub)
        try:
            tokenizer = (
                AutoTokenizer.from_pretrained(place, trust_remote_code=False, **hub)
                if processor is None
                else processor.processor.tokenizer
            )
            tokenizer("when?", add_special_tokens=False)  # fields that loading does not look at
        except Exception as error:  # whatever the tokenizer's class trips over
            raise InputError(
                f"the tokenizer of '{place}' cannot be loaded: put tokenizer.json and "
                "tokenizer_config.json beside its weights"
            ) from error
        source = (place, hub) if processor is None else processor.processor
        return cls(tokenizer, _template(place, tokenizer, hub), pixels, processor, source)

    @classmethod
    def of(cls, processor: Any, kind: str, hub: Mapping[str, Any]) -> Processing:
        """From a processor of transformers, or from the place where one's files are.

        Raises:
            InputError: none, or one that cannot read videos.
        """
        if processor is None:
            raise InputError(
                "a model object comes without its processor: give processor=AutoProcessor."
                "from_pretrained(...), or the folder or hub name where its files are"
            )
        if isinstance(processor, (str, os.PathLike)):
            return cls.beside(str(processor), kind, hub)
        video = getattr(processor, "video_processor", None)
        tokenizer = getattr(processor, "tokenizer", None)
        if video is None or tokenizer is None:
            raise InputError(
                f"a {type(processor).__name__} does not say how pixels are made: give "
                "processor=AutoProcessor.from_pretrained(...), or the folder or hub name where its "
                "files are"
            )
        found = getattr(processor, "chat_template", None) or tokenizer.chat_template
        template = found.get("default") if isinstance(found, dict) else found
        if kind not in OWN_PIXELS:
            return cls(tokenizer, template, {}, OwnProcessor(processor), processor)
        told = {
            name: {k: v for k, v in dict(value).items() if v is not None}
            if isinstance(value, Mapping)
            else value
            for name, value in video.to_dict().items()
        }
        return cls(tokenizer, template, complete(kind, told), None, processor)

    def save(self, folder: Path) -> None:
        """Write the files that `beside` reads, as they are."""
        if not isinstance(self.source, tuple):
            self.source.save_pretrained(folder)
        else:
            place, hub = self.source
            self.tokenizer.save_pretrained(folder)
            for name in FILES:
                path = cached_file(place, name, _raise_exceptions_for_missing_entries=False, **hub)
                if path is not None and Path(path).resolve() != (folder / name).resolve():
                    shutil.copyfile(path, folder / name)
        if self.template is not None:
            (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")


def _template(place: str, tokenizer: PreTrainedTokenizerBase, hub: Mapping[str, Any]) -> str | None:
    """The processor's own template, which knows videos, or else the tokenizer's."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = cached_file(place, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            text = Path(path).read_text(encoding="utf-8")
            try:
                return text if name.endswith("jinja") else str(json.loads(text)["chat_template"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{name} of '{place}' holds no chat template") from error
    found: Any = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found
