"""Damaged folders of models: a tiny one of the project's own, the shipped one, a tiny hub model."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from vidllm.errors.bounds import short
from vidllm.models.shipped import default_model, weights_dir
from vidllm.video import VideoClip

from .byte_damage import ANYWHERE, special
from .json_damage import damage_json, written
from .outcomes import ANSWER, CHANGED, WHOLE, Case

_Damage = Callable[[bytearray, random.Random], None]
_READ = (".json", ".jinja", ".safetensors")
_ASKED = "when does the red star spin?"
_LETTERS = [*map(chr, range(32, 127)), "\n"]
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<pad>", "<image>", "<video>")


class WeightsTarget:
    """See `outcomes.Target`."""

    memory: ClassVar[int] = 2**28
    seconds: ClassVar[float] = 20.0
    cases: ClassVar[int | None] = None

    def __init__(self, folder: Path) -> None:
        self._folders = {
            "own": folder / "own",
            "hub": folder / "hub",
            "shipped": folder / "shipped" / default_model().name,
        }
        for name, make in (("own", _save_own), ("hub", _save_hub)):
            if not (folder / name / "model.safetensors").exists():
                make(folder / name)
        if not self._folders["shipped"].exists():  # beside its manifest, as it is shipped
            shutil.copytree(default_model(), self._folders["shipped"])
            shutil.copy(weights_dir() / "manifest.json", folder / "shipped")
        draw = np.random.default_rng(0)
        pictures = draw.integers(0, 255, (4, 48, 64, 3), dtype=np.uint8)
        self._clip = VideoClip(pictures, np.arange(4.0), 1.0, 4.0, np.arange(4), "made")
        self._right = {name: self._answer(home) for name, home in self._folders.items()}

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        """See `outcomes.Target.case`."""
        which = ("own", "hub", "own", "shipped")[number % 4]
        home = place / self._folders[which].name
        home.mkdir()
        for file in self._folders[which].iterdir():
            os.link(file, home / file.name)
        if which == "shipped":
            shutil.copy(self._folders[which].parent / "manifest.json", place)
        file = draw.choice([one for one in sorted(home.iterdir()) if one.suffix in _READ])
        data = bytearray(file.read_bytes())
        file.unlink()
        kind = draw.choice(("bytes", "known", "known", "known"))
        plausible, told = which != "shipped", file.name
        if kind == "known" and file.suffix == ".json":
            made = json.loads(data)
            done = damage_json(made, draw)
            mutation, told = done.name, f"{file.name}: {done.told}"
            plausible = plausible and done.plausible
            file.write_bytes(written(made))
        elif kind == "known" and file.suffix == ".safetensors":
            mutation = draw.choice(list(_TENSORS))
            _TENSORS[mutation](data, draw)
            file.write_bytes(data)
        elif kind == "known":
            mutation = draw.choice(("missing", "empty", "null bytes"))
            if mutation != "missing":
                file.write_bytes(b"" if mutation == "empty" else bytes(len(data)))
        else:
            mutation = draw.choice(list(ANYWHERE))
            ANYWHERE[mutation](data, draw, bytes(data))
            file.write_bytes(data)
        # A template, and a finite number of a tensor, say what they say.
        if mutation == "numbers beyond all":
            plausible = False
        case = f"{which} {file.suffix[1:]} {mutation}"
        return Case(case, lambda: self._read(home, which, plausible, told))

    def _read(self, home: Path, which: str, plausible: bool, told: str) -> tuple[str, str]:
        answer = self._answer(home)
        if answer == self._right[which]:
            return WHOLE, told
        return (ANSWER if plausible else CHANGED), f"{told}: {short(answer)}"

    def _answer(self, folder: Path) -> Any:
        from vidllm.ask.video_llm import VideoLLM

        llm = VideoLLM.from_pretrained(folder, compressor="uniform", keep=0.5, device="cpu")
        answer = llm.ask(self._clip, _ASKED, max_new_tokens=4, anyway=True)
        return answer.raw, answer.text


def _save_own(folder: Path) -> None:
    from vidllm.stage.training.settings import TrainSettings, build_model

    torch.manual_seed(0)
    model, tokenizer = build_model(TrainSettings(out="", size="tiny", frames=16))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_hub(folder: Path) -> None:
    """A LLaVA-OneVision with random weights and a tokenizer of letters."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    words = {word: i for i, word in enumerate([*_LETTERS, *_SPECIAL])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    special_words = list(_SPECIAL)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=special_words,
    )
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlavaOnevisionConfig(
        text_config={
            **sizes,
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "max_position_embeddings": 512,
            "eos_token_id": words["<|im_end|>"],
            "pad_token_id": words["<pad>"],
        },
        vision_config={
            **sizes,
            "model_type": "siglip_vision_model",
            "image_size": 32,
            "patch_size": 8,
            "num_attention_heads": 2,
            "vision_use_head": False,
        },
        image_token_index=words["<image>"],
        video_token_index=words["<video>"],
        **{f"{kind}_token_id": words[f"<{kind}>"] for kind in ("image", "video")},  # type: ignore[arg-type]
        image_grid_pinpoints=[[32, 32]],
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {"size": {"height": 32, "width": 32}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(made))


def _header(data: bytearray) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), bytes(data[8 + length :])


def _with(data: bytearray, header: Any, rest: bytes) -> None:
    text = written(header)
    data[:] = struct.pack("<Q", len(text)) + text + rest


def _tensor_of(header: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = header[draw.choice([name for name in header if name[0] != "_"])]
    return found


def _in_header(change: Callable[[dict[str, Any], random.Random], object]) -> _Damage:
    """Damage to the header of a safetensors file, whose tensors stay as they are."""

    def damage(data: bytearray, draw: random.Random) -> None:
        header, rest = _header(data)
        change(header, draw)
        _with(data, header, rest)

    return damage


def _offsets(header: dict[str, Any], draw: random.Random) -> None:
    _tensor_of(header, draw)["data_offsets"][draw.randrange(2)] = special(draw)


def _shape(header: dict[str, Any], draw: random.Random) -> None:
    one = _tensor_of(header, draw)
    one["shape"] = draw.choice(([], one["shape"][::-1], [*one["shape"], 1], [2**40], [0], [-1]))


def _dtype(header: dict[str, Any], draw: random.Random) -> None:
    _tensor_of(header, draw)["dtype"] = draw.choice(("F16", "I32", "F64", "U8", "X", 3))


def _names(header: dict[str, Any], draw: random.Random) -> None:
    name = draw.choice([name for name in header if name[0] != "_"])
    header[draw.choice((f"{name}.x", "x"))] = header.pop(name)


def _length(data: bytearray, draw: random.Random) -> None:
    data[:8] = struct.pack("<Q", draw.choice((0, 2**63, 2**64 - 1, 10**8, special(draw))))


def _beyond(data: bytearray, draw: random.Random) -> None:
    header, rest = _header(data)
    low, high = _tensor_of(header, draw)["data_offsets"]
    at = low + 4 * draw.randrange((high - low) // 4)
    value = struct.pack("<f", draw.choice((float("nan"), float("inf"), float("-inf"))))
    _with(data, header, rest[:at] + value + rest[at + 4 :])


#: What safetensors files are made to say. A name or a number that fits is not to be told.
_TENSORS: dict[str, _Damage] = {
    "lying offsets": _in_header(_offsets),
    "other shape": _in_header(_shape),
    "other type": _in_header(_dtype),
    "lying length": _length,
    "other name": _in_header(_names),
    "numbers beyond all": _beyond,
    "twisted header": _in_header(damage_json),
}
