"""What `VideoLLM.from_pretrained` needs: weights, tokenizer, device and compressors by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.hub import cached_file

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import check, lacks_memory
from vidllm.errors.paths import is_file, is_folder
from vidllm.timecode import get_timecode

from .deltas import base_of, whole_state
from .families.own_processor import OwnProcessor
from .families.pixel_files import pixel_options
from .families.scripts import SCRIPTS
from .families.served import FAMILIES, OWN_PIXELS, PARTS
from .families.unserved import refusal
from .folder import check_folder, read_config, tensor_shapes
from .heads.head_config import MODEL_TYPE as HEAD_TYPE
from .heads.head_config import HeadConfig
from .native.config import NativeConfig
from .native.model import NativeVideoLLM
from .parts import ModelParts, hub_parts, native_parts
from .tuned import find_tuned

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_compressor(
    config: NativeConfig,
    compressors: str | Compressor | None,
    keep: float | None,
    tokens: int | None = None,
) -> Compressor:
    """The compressors of a call; what is not said comes from the model's own training.

    With a number of `tokens` a method needs no share of its own.
    """
    if keep is not None:
        check("keep", keep)
    if compressors is None:
        if keep is None:
            return build(config.compressors, keep=config.keep)
        if keep == 1:
            return build("none")
        spec = config.compressors if config.compressors != "none" else "uniform"
        return build(spec, keep=keep)
    if not isinstance(compressors, str):
        if keep is not None:
            raise InputError("keep goes with a compressor's name; an instance has its own")
        return compressors
    if keep is not None:
        return build(compressors, keep=keep)
    made = build(compressors)
    if made.lacks_share() and tokens is None:
        raise InputError(f"how much should '{compressors}' keep? Give keep, for example keep=0.25")
    return made


def choose_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device '{name}' cannot be used here: use cpu") from error
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number type of a name; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if name in (None, "auto"):
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"dtype must be auto or one of {', '.join(DTYPES)}, not '{name}'")
    return DTYPES[str(name)]


def model_kind(folder: str) -> str:
    """The model type of a folder or of a name on the hub; no code of the model's own is run.

    Raises:
        InputError: no such model, or a config that cannot be read.
    """
    tuned = find_tuned(folder)
    folder = folder if tuned is None else tuned.model
    local = is_folder(folder)
    if local:
        check_folder(folder)
    try:
        found, _ = PretrainedConfig.get_config_dict(folder)
    except Exception as error:  # whatever a config's fields trip over
        if local:
            raise InputError(f"{folder} holds no model whose config.json can be read") from error
        raise InputError(
            f"no model '{folder}': it is no folder, and the hub lacks it or is out of reach"
        ) from error
    kind = str(found.get("model_type") or "unnamed")
    _, kind = PARTS.get(kind, ("", kind))  # of such a model that part is loaded
    if kind not in (NativeConfig.model_type, HEAD_TYPE, *FAMILIES):
        raise InputError(f"'{folder}': {refusal(kind)}, or leave --model out for the shipped one")
    return kind


def model_parts(folder: str) -> ModelParts:
    """What a model of a folder or a name on the hub is made of, by its config and files.

    Raises:
        InputError: as `model_kind`.
    """
    kind = model_kind(folder)
    if kind == HEAD_TYPE:
        return ModelParts(recipe=HeadConfig.read(Path(folder)).recipe)
    if kind != NativeConfig.model_type:
        return hub_parts(kind)
    found, _ = PretrainedConfig.get_config_dict(folder)
    return native_parts(found, Path(folder) if is_folder(folder) else None)


def usual_frames(folder: str) -> int | None:
    """Frames that a model's family is asked with; None for the project's own models."""
    tuned, script = find_tuned(folder), SCRIPTS.get(model_kind(folder))
    if tuned is not None:
        return tuned.frames
    return None if script is None else script.frames


def load_native(folder: str, attn: str | None) -> tuple[NativeVideoLLM, PreTrainedTokenizerBase]:
    """A model of this project and its tokenizer, in float32 on the CPU.

    Raises:
        WorkError: weights or tokenizer that cannot be read.
    """
    model = _weights(NativeVideoLLM, folder, attn, torch.float32, **_on_base(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer("when?", add_special_tokens=False)  # fields that loading does not look at
    except Exception as error:  # whatever the tokenizer's files hold
        raise _unreadable(folder, error) from error
    _check_words(folder, model, tokenizer)
    return model, tokenizer


def _check_words(folder: str, model: NativeVideoLLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """See that the tokenizer is that of its model.

    Raises:
        WorkError: it is not.
    """
    rows = int(model.language_model.get_input_embeddings().weight.shape[0])
    config, problem = model.config, ""
    if len(tokenizer) > rows or max(tokenizer.get_vocab().values(), default=0) >= rows:
        problem = f"it has more words than the {rows} of the model"
    elif tokenizer.eos_token_id is None:
        problem = "it has no token that ends an answer"
    elif config.time_code == "relative":
        code = get_timecode("relative", n=config.time_tokens)
        ids = tokenizer.convert_tokens_to_ids(list(code.special_tokens))
        first = config.time_token_start
        if ids != list(range(first, first + config.time_tokens)):
            problem = "its time tokens are not where config.json says"
    if problem:
        raise WorkError(f"the tokenizer in {folder} does not fit its model: {problem}")


def load_hub(
    folder: str, attn: str | None, dtype: torch.dtype
) -> tuple[
    torch.nn.Module, PreTrainedTokenizerBase, str | None, dict[str, Any], OwnProcessor | None
]:
    """A model of one of the hub's families, with all that it takes to ask it.

    Returns:
        The model on the CPU, its tokenizer, its chat template or None, and the options of its
        pixels (see `families.pixel_files.pixel_options`) or the processor that makes them.

    Raises:
        InputError: files of the tokenizer or of the preprocessor that are missing.
        WorkError: weights that cannot be read.
    """
    kind = model_kind(folder)
    own = kind in OWN_PIXELS
    pixels = pixel_options(folder) if own else {}
    processor = None if own else OwnProcessor.load(folder, FAMILIES[kind][0])
    try:
        tokenizer = (
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if processor is None
            else processor.processor.tokenizer
        )
        tokenizer("when?", add_special_tokens=False)  # fields that loading does not look at
    except Exception as error:  # whatever the tokenizer's class trips over
        raise InputError(
            f"the tokenizer of '{folder}' cannot be loaded: put tokenizer.json and "
            "tokenizer_config.json beside its weights"
        ) from error
    cls = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])
    model = _weights(cls, folder, attn, dtype)
    return model, tokenizer, _chat_template(folder, tokenizer), pixels, processor


def _on_base(folder: str) -> dict[str, Any]:
    """Where the weights are changes to a shipped model: all of them, and the config they are for.

    Raises:
        WorkError: that model is not there, or the changes cannot be read.
    """
    if not is_folder(folder) or (base := base_of(folder, read_config(folder))) is None:
        return {}
    config = NativeConfig.from_pretrained(folder)
    try:
        state = whole_state(Path(folder), base)
    except Exception as error:  # whatever the files trip over
        raise _unreadable(folder, error) from error
    with torch.device("meta"):
        names = NativeVideoLLM(config).state_dict().keys()
    return {"config": config, "state_dict": {k: v for k, v in state.items() if k in names}}


def footage_home(folder: str) -> str:
    """Where it is said what footage a model knows: beside it, or beside what it changes.

    A model whose tower is that of its base knows what the base knows.
    """
    if not is_folder(folder) or is_file(Path(folder) / "footage.json"):
        return folder
    base = base_of(folder, read_config(folder))
    changed = () if base is None else tensor_shapes(Path(folder))
    own = any(name.startswith("vision.") for name in changed)
    return folder if base is None or own else str(base)


def _weights(cls: Any, folder: str, attn: str | None, dtype: torch.dtype, **whole: Any) -> Any:
    """Load weights; `whole` is what `_on_base` says."""
    options: dict[str, Any] = {**whole, **({} if attn is None else {"attn_implementation": attn})}
    report: dict[str, Any]
    try:
        place = None if whole else folder
        loaded: Any = cls.from_pretrained(place, output_loading_info=True, dtype=dtype, **options)
        model, report = loaded
    except Exception as error:  # whatever config and weights trip over together
        raise _unreadable(folder, error) from error
    missing = [k for k in report["missing_keys"] if not k.endswith("lm_head.weight")]
    if missing or report["unexpected_keys"]:
        raise WorkError(
            f"the weights in {folder} do not fit their config: {len(missing)} missing, "
            f"{len(report['unexpected_keys'])} too many"
        )
    for name, value in model.named_parameters():
        # A sum is not finite where one of its numbers is not, and takes no memory of its own.
        if value.is_floating_point() and not math.isfinite(value.detach().sum(dtype=torch.float32)):
            raise WorkError(f"the weights in {folder} are damaged: {name} holds what is no number")
    return model


def _unreadable(folder: str, error: Exception) -> WorkError:
    if lacks_memory(error):
        return WorkError(f"the model in {folder} takes more memory than is free: use a smaller one")
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WorkError(f"the model in {folder} cannot be loaded: {line}")


def _chat_template(folder: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The processor's own template, which knows videos, or else the tokenizer's."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            text = Path(path).read_text(encoding="utf-8")
            try:
                return text if name.endswith("jinja") else str(json.loads(text)["chat_template"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{name} of '{folder}' holds no chat template") from error
    found: Any = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found
