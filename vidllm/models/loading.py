"""What `VideoLLM.from_pretrained` needs: weights, what goes with them, compressors by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vidllm.compressors import Compressor, build
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import check, lacks_memory
from vidllm.errors.paths import is_file, is_folder
from vidllm.timecode import get_timecode

from .deltas import base_of, whole_state
from .families.processing import Processing
from .families.scripts import SCRIPTS
from .families.served import FAMILIES, PARTS, check_transformers
from .families.unserved import refusal
from .folder import check_folder, read_config, tensor_shapes
from .heads.head_config import MODEL_TYPE as HEAD_TYPE
from .heads.head_config import HeadConfig
from .hub import unreachable
from .load_options import LoadPlan
from .native.config import NativeConfig
from .native.model import NativeVideoLLM
from .parts import ModelParts, hub_parts, native_parts
from .tuned import find_tuned

#: What reduces tokens where a share is given and no method, and the model was trained with none.
#: Of the methods that need no training it did best on the stage world at a quarter and an eighth
#: of the tokens (docs/results/stage-compressors.csv); it reads neither the question nor attention,
#: so every family serves it and one video serves many questions.
DEFAULT_METHOD = "vidcom2"


def choose_compressor(
    config: NativeConfig,
    compressors: str | Compressor | None,
    keep: float | None,
    tokens: int | None = None,
) -> Compressor:
    """The compressors of a call; what is not said comes from the model's own training, and for a
    model that was trained with none a share goes to `DEFAULT_METHOD`.

    With a number of `tokens` a method needs no share of its own.
    """
    if keep is not None:
        check("keep", keep)
    if compressors is None:
        if keep is None:
            return build(config.compressors, keep=config.keep)
        if keep == 1:
            return build("none")
        spec = config.compressors if config.compressors != "none" else DEFAULT_METHOD
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


def model_kind(folder: str, **hub: Any) -> str:
    """The model type of a folder or of a name on the hub; no code of the model's own is run.

    Args:
        hub: revision, token and so on.

    Raises:
        InputError: no such model, a config that cannot be read, or a transformers that is too old.
    """
    tuned = find_tuned(folder)
    folder = folder if tuned is None else tuned.model
    local = is_folder(folder)
    if local:
        check_folder(folder)
    try:
        found, _ = PretrainedConfig.get_config_dict(folder, **hub)
    except Exception as error:  # whatever a config's fields trip over
        if local:
            raise InputError(f"{folder} holds no model whose config.json can be read") from error
        raise unreachable(folder, error, bool(hub.get("local_files_only"))) from error
    kind = str(found.get("model_type") or "unnamed")
    _, kind = PARTS.get(kind, ("", kind))  # of such a model that part is loaded
    if kind not in (NativeConfig.model_type, HEAD_TYPE, *FAMILIES):
        raise InputError(f"'{folder}': {refusal(kind)}, or leave --model out for the shipped one")
    check_transformers(kind)
    return kind


def model_parts(folder: str, **hub: Any) -> ModelParts:
    """What a model of a folder or a name on the hub is made of, by its config and files.

    Raises:
        InputError: as `model_kind`.
    """
    kind = model_kind(folder, **hub)
    if kind == HEAD_TYPE:
        return ModelParts(recipe=HeadConfig.read(Path(folder)).recipe)
    if kind != NativeConfig.model_type:
        return hub_parts(kind)
    found, _ = PretrainedConfig.get_config_dict(folder, **hub)
    return native_parts(found, Path(folder) if is_folder(folder) else None)


def usual_frames(folder: str, **hub: Any) -> int | None:
    """Frames that a model's family is asked with; None for the project's own models.

    `hub` as for `model_kind`.
    """
    tuned, script = find_tuned(folder), SCRIPTS.get(model_kind(folder, **hub))
    if tuned is not None:
        return tuned.frames
    return None if script is None else script.frames


def load_native(folder: str, attn: str | None) -> tuple[NativeVideoLLM, PreTrainedTokenizerBase]:
    """A model of this project and its tokenizer, in float32 on the CPU.

    Raises:
        InputError: a model of another kind, which transformers would fill up with fresh weights.
        WorkError: weights or tokenizer that cannot be read.
    """
    kind = model_kind(folder)
    if kind != NativeConfig.model_type:
        what = "a system without an LLM" if kind == HEAD_TYPE else f"of the kind {kind!r}"
        raise InputError(
            f"{Path(folder).name} is {what}: a video LLM of this project is needed here"
        )
    options: dict[str, Any] = {} if attn is None else {"attn_implementation": attn}
    model = _weights(NativeVideoLLM, folder, dtype=torch.float32, **options, **_on_base(folder))
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


def load_hub(folder: str, plan: LoadPlan) -> tuple[torch.nn.Module, Processing]:
    """A model of one of the hub's families, with all that it takes to ask it.

    Returns:
        The model where the plan has it, and what goes with it.

    Raises:
        InputError: files or packages that are missing. WorkError: weights that cannot be read.
    """
    plan.check_folder(folder)
    kind = model_kind(folder, **plan.hub)
    if plan.processor is None:
        beside = Processing.beside(folder, kind, plan.hub)
    else:
        beside = Processing.of(plan.processor, kind, plan.elsewhere)
    cls = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])
    told, _ = PretrainedConfig.get_config_dict(folder, **plan.hub)
    quantized = plan.quantization_config is not None or bool(told.get("quantization_config"))
    model = _weights(cls, folder, **plan.weights(quantized))
    if not quantized and plan.device_map is None:
        model = model.to(plan.device)
    return model, beside


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


def _weights(cls: Any, folder: str, **options: Any) -> Any:
    """Load weights with options of `from_pretrained`; `state_dict` is one of `_on_base`.

    Raises:
        InputError: a package that is not installed, or a quantization that cannot be.
        WorkError: weights that cannot be read.
    """
    report: dict[str, Any]
    try:
        place = None if "state_dict" in options else folder
        loaded: Any = cls.from_pretrained(place, output_loading_info=True, **options)
        model, report = loaded
    except ImportError as error:
        told = _line(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            told = f"it needs {error.name}: pip install {error.name}"
        raise InputError(f"the model in {folder} cannot be loaded: {told}") from error
    except Exception as error:  # whatever config and weights trip over together
        if options.get("quantization_config") is not None and not lacks_memory(error):
            raise InputError(f"quantization_config cannot be used: {_line(error)}") from error
        raise _unreadable(folder, error) from error
    missing = [k for k in report["missing_keys"] if not k.endswith("lm_head.weight")]
    if missing or report["unexpected_keys"]:
        raise WorkError(
            f"the weights in {folder} do not fit their config: {len(missing)} missing, "
            f"{len(report['unexpected_keys'])} too many"
        )
    for name, value in model.named_parameters():
        if type(value) is not torch.nn.Parameter or value.is_meta or value.element_size() < 2:
            continue  # of fewer bits, or kept elsewhere until it is used
        # A sum is not finite where one of its numbers is not, and takes no memory of its own.
        if value.is_floating_point() and not math.isfinite(value.detach().sum(dtype=torch.float32)):
            raise WorkError(f"the weights in {folder} are damaged: {name} holds what is no number")
    return model


def _unreadable(folder: str, error: Exception) -> WorkError:
    if lacks_memory(error):
        return WorkError(f"the model in {folder} takes more memory than is free: use a smaller one")
    return WorkError(f"the model in {folder} cannot be loaded: {_line(error)}")


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
