"""The model that a training starts from, with the parts that its recipe has in place of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vidllm.encoders.temporal import get_temporal
from vidllm.encoders.temporal.alike import encoders_like
from vidllm.encoders.vision import build_vision, load_vision, vision_names
from vidllm.errors import InputError
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.loading import load_native, model_kind
from vidllm.models.native.config import NativeConfig
from vidllm.models.native.model import NativeVideoLLM, TimeEmbedding
from vidllm.models.shipped import default_model, find_model
from vidllm.stage.training.settings import PLANS, TrainSettings, build_model
from vidllm.stage.training.start import words_by_spelling
from vidllm.stage.training.tokenizer import CHAT_TEMPLATE, build_tokenizer
from vidllm.timecode import TimeCode, get_timecode

from ..recipe import Part, Recipe
from . import CourseSettings

#: Frames of a clip in a tiny training.
TINY_FRAMES = 8


@dataclass
class Start:
    """What a training starts from.

    Attributes:
        name: of the model it was. folder: of it, where weights of methods may lie; None for a
            fresh one. fresh: parts that start untrained, and are trained whatever the recipe says.
    """

    model: NativeVideoLLM
    tokenizer: PreTrainedTokenizerBase
    code: TimeCode
    name: str
    folder: Path | None
    fresh: set[Part]

    @property
    def of_stage(self) -> bool:
        """Whether it speaks the language of the made world."""
        return self.tokenizer.chat_template == CHAT_TEMPLATE


def load_start(recipe: Recipe, settings: CourseSettings) -> Start:
    """The start of a training, every part in its place.

    Raises:
        InputError: a model that is not of this project, or that cannot carry the recipe's parts.
    """
    start = _loaded(settings)
    model, config = start.model, start.model.config
    if recipe.vision is not None:
        _change_tower(start, recipe, wanted=settings.vision is not None)
    own = [dict(spec) for spec in config.temporal]
    if settings.temporal is not None:
        specs = encoders_like(own, settings.temporal, _width(model), model.grid_side**2)
    elif recipe.temporal is None or {s["name"] for s in own} & set(recipe.temporal_names):
        specs = own
    else:
        specs = [dict(spec) for spec in recipe.temporal]
    if specs != own or settings.more.get("fresh"):
        config.temporal = specs
        model.temporal = nn.ModuleList(
            get_temporal(**{"dim": _width(model), **spec}) for spec in specs
        )
        start.fresh.add("temporal")
    if recipe.time_code is not None and recipe.time_code != config.time_code:
        _change_code(start, recipe.time_code)
    if recipe.frames is not None:
        config.frames = recipe.frames
    config.compressors = recipe.compressors
    config.keep = 1.0 if recipe.keep is None else recipe.keep
    config.recipe = recipe.name
    return start


def _loaded(settings: CourseSettings) -> Start:
    if not settings.init and settings.size == "tiny":
        told = TrainSettings(out="", size="tiny", vision="vit", frames=TINY_FRAMES)
        model, tokenizer = build_model(told)
        code = get_timecode("relative")
        return Start(model, tokenizer, code, "a fresh tiny model", None, set())
    if settings.size not in ("small", "tiny"):
        raise InputError(f"size must be small or tiny, not '{settings.size}'")
    folder = find_model(settings.init) if settings.init else str(default_model())
    kind = model_kind(folder)
    if kind == HEAD_TYPE:
        raise InputError(
            f"--init {settings.init} is a system without an LLM: give the video LLM to start from"
        )
    if kind != NativeConfig.model_type:
        raise InputError(
            f"--init {settings.init} is no model of this project, which alone is trained here: "
            "make one of pretrained parts (NativeVideoLLM.from_parts), or tune it with its own "
            "library and ask it with --compressor"
        )
    model, loaded = load_native(folder, None)
    options = {"n": model.config.time_tokens} if model.config.time_code == "relative" else {}
    code = get_timecode(model.config.time_code, **options)
    return Start(model, loaded, code, Path(folder).name, Path(folder), set())


def _width(model: NativeVideoLLM) -> int:
    return int(model.language_model.config.hidden_size)


def _change_tower(start: Start, recipe: Recipe, *, wanted: bool) -> None:
    """Another tower in the place of the start's, and a projector that takes what it gives.

    Args:
        recipe: its tower is a type, "vit" or "conv" of the stage training, a folder or a name on
            the hub. wanted: a user asked for it; else the start must have it.
    """
    model, config, name = start.model, start.model.config, str(recipe.vision)
    if config.vision.get("type") == name:
        return
    if not wanted:
        raise InputError(
            f"recipe {recipe.name!r} has the tower {name}, and {start.name} has "
            f"{config.vision.get('type')}: give --init with such a model, or --vision {name}"
        )
    if name in PLANS:
        fresh, _ = build_model(TrainSettings(out="", size=_size_of(model), vision=name))
        tower, told, fold = fresh.vision, fresh.config.vision, fresh.config.downsample
    elif "/" in name or Path(name).is_dir():
        tower, told = load_vision(name)
        fold = 1
    else:
        told = {"type": name, **({} if name in vision_names() else _sizes(model))}
        tower, fold = build_vision(told), 1
    while fold == 1 and tower.side > 2 * model.grid_side and tower.side % 2 == 0:
        fold *= 2
    model.vision, config.vision, config.downsample = tower, told, fold
    folded = tower.hidden_size * fold**2
    model.projector = nn.Sequential(nn.LayerNorm(folded), nn.Linear(folded, _width(model)))
    start.fresh |= {"projector"} if "/" in name or Path(name).is_dir() else {"projector", "tower"}


def _size_of(model: NativeVideoLLM) -> str:
    return "tiny" if _width(model) < 64 else "small"


def _sizes(model: NativeVideoLLM) -> dict[str, Any]:
    """A vision transformer as large as the decoder, on pictures of the usual size."""
    text = model.language_model.config
    return {
        "image_size": 96,
        "patch_size": 24,
        "hidden_size": int(text.hidden_size),
        "intermediate_size": int(text.intermediate_size),
        "num_hidden_layers": int(text.num_hidden_layers),
        "num_attention_heads": int(text.num_attention_heads),
    }


def _change_code(start: Start, name: str) -> None:
    """Another way to tell time: its tokens, and how tokens of the video are told theirs."""
    model, config, before = start.model, start.model.config, start.tokenizer
    code = get_timecode(name)
    core: Any = model.language_model
    old = core.get_input_embeddings().weight.detach().clone()
    if start.of_stage:
        tokenizer: PreTrainedTokenizerBase = build_tokenizer(code)
        rows = old.new_empty(len(tokenizer), old.shape[1]).normal_(std=float(old.std()))
        rows = words_by_spelling(rows, old, before.get_vocab(), tokenizer.get_vocab())
    else:
        tokenizer = before
        tokenizer.add_tokens(list(code.special_tokens))
        more = old.new_empty(max(0, len(tokenizer) - len(old)), old.shape[1])
        rows = torch.cat([old, more.normal_(std=float(old.std()))])
    _copy_digits(rows, tokenizer, code.special_tokens)
    core.resize_token_embeddings(len(rows), mean_resizing=False)
    with torch.no_grad():
        core.get_input_embeddings().weight.copy_(rows)
        head = core.get_output_embeddings()
        if head is not None and head.weight is not core.get_input_embeddings().weight:
            head.weight.copy_(rows)
    config.text["vocab_size"] = len(rows)
    config.time_code = name
    if name == "relative":
        config.time_tokens = len(code.special_tokens)
        first = cast(int, tokenizer.convert_tokens_to_ids(code.special_tokens[0]))
        config.time_token_start = first
        model.smooth_time_tokens()
    if model.time_embedding is not None:
        model.time_embedding = TimeEmbedding(config, old.shape[1])
        model.time_embedding.project.reset_parameters()
    start.tokenizer, start.code = tokenizer, code
    start.fresh |= {"embeddings", "projector"}


def _copy_digits(rows: Tensor, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Time digits begin as the digits that they are (VTG-LLM), pieces of a number too."""
    table = tokenizer.get_vocab()
    pairs = [*zip(tokens, "0123456789.", strict=False)] if tokens and "TIME" in tokens[0] else []
    pairs += [(f"##{sign}", sign) for sign in "0123456789." if f"##{sign}" in table]
    with torch.no_grad():
        for made, sign in pairs:
            if sign in table:
                rows[table[made]] = rows[table[sign]]
